"""Next to a CPU-only torch, PyPI's torchaudio does not load: only resampling needs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = "import sys; sys.modules['torchaudio'] = None\n"
NO_CUDA = "raise OSError('libcudart.so.13: cannot open shared object file')"


@pytest.fixture(params=[pytest.param("absent", marks=pytest.mark.long), "without CUDA's libraries"])
def python(request, tmp_path):
    """Runs code in a fresh process in which torchaudio does not load."""
    folder = tmp_path / "packages"
    is_absent = request.param == "absent"
    if not is_absent:
        (folder / "torchaudio").mkdir(parents=True)
        (folder / "torchaudio" / "__init__.py").write_text(NO_CUDA)

    def run(code, *arguments):
        return subprocess.run(  # noqa: S603  (our own code)
            [sys.executable, "-c", ABSENT * is_absent + code, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.mark.slow
def test_every_module_imports_and_audio_at_16_khz_gives_features(python, tmp_path):
    done = python(
        """
import importlib, pkgutil, sys, numpy, soundfile, torch, core
for module in pkgutil.walk_packages(core.__path__, "core."):
    importlib.import_module(module.name)
from pathlib import Path
from core.data.audio import CorpusError, read_file
from core.features.kaldi import log_mel
folder = Path(sys.argv[1])
samples = numpy.random.default_rng(0).standard_normal(16_000) / 10
soundfile.write(folder / "16.wav", samples, 16_000)
soundfile.write(folder / "8.wav", samples, 8_000)
waveform = read_file(folder / "16.wav")
print(*log_mel(waveform[None], torch.tensor([len(waveform)]))[0].shape)
try:
    read_file(folder / "8.wav")
except CorpusError as error:
    print(error)
""",
        str(tmp_path),
    )

    assert done.returncode == 0, done.stderr
    shape, error = done.stdout.splitlines()
    assert shape == "1 100 80"
    assert error.startswith("`torchaudio` must be importable to resample 8000 Hz to 16000 Hz, but")
    assert "install it from the index that torch was installed from" in error


@pytest.mark.slow
def test_the_doctor_says_that_torchaudio_does_not_load(python):
    done = python(
        "import sys; sys.argv = ['conformer-sweep', 'doctor']\n"
        "from sweep.cli import app; app.main()"
    )

    (line,) = (line for line in done.stdout.splitlines() if "torchaudio" in line)
    assert line.startswith("MISS")
    assert "cannot be imported" in line
    assert done.returncode == 2
