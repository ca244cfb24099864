"""What all tests share: checked shapes, one torch thread, speech, a Ray cluster, a tiny sweep."""

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from core.config.trial import CorpusConfig, DemoConfig
from core.data.corpus import Corpus, open_corpus

CORE_TESTS = Path(__file__).parent / "core"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TINY = """
[sweep]
trials = 4
seed = 1

[trial.corpus]
tokens = "word"
vocabulary = 64

[trial.corpus.demo]
train_utterances = 40
dev_utterances = 8
test_utterances = 8

[trial.model]
blocks = 1
width = 16
inner = 32
heads = 2
channels = 16
kernel = 7
frontend_channels = 4

[trial.teacher]
steps = 2

[trial.pruning]
target_sparsity = { uniform = [0.2, 0.8] }
steps = 2
calibration_batches = 2

[trial.pruning.l0]
lambda_lr = { log_uniform = [0.03, 0.3] }

[trial.tuning]
steps = 2

[trial.evaluation]
bootstrap_samples = 100
latency_repeats = 1

[trial.runtime]
report_steps = 2
checkpoint_steps = 2
"""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Check shapes in tests of `core`, but not in whole trials and exports, nor in sweeps.

    Their parts have tests of their own, and the checks take half of the time of a test that trains.
    """
    is_whole = any(item.get_closest_marker(name) for name in ("whole", "long"))
    is_whole = is_whole or not item.path.is_relative_to(CORE_TESTS)
    jaxtyping.config.update("jaxtyping_disable", is_whole)
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_at_first():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    """A test that prepares speech leaves torch with all cores: two such processes wait in turns."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command as the shell would; give its exit code and what it printed."""
    from sweep.cli import app  # noqa: PLC0415  # of tests of the command line alone

    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return ran


@pytest.fixture
def tiny_space(tmp_path):
    """A search space whose trials take a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_shared(tmp_path_factory):
    """Speech and teacher of the tiny space, made once; a sweep that has them begins with trials."""
    from core.runtime import TrialDirs  # noqa: PLC0415  # seconds, of these tests alone
    from core.teacher import prepare  # noqa: PLC0415
    from sweep.config.sweep import parse  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("shared")
    place = TrialDirs(
        teacher=folder / "teacher", features=folder / "features", trial=folder / "none"
    )
    list(prepare(parse(TINY, source="tests/conftest.py").space.base, place))
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One cluster for all tests that need one, started as the program starts its own."""
    from sweep.run import ray_cluster as cluster  # noqa: PLC0415  # seconds, of these tests alone

    with cluster.connect(cpus=2):
        yield


def _beside(name: str) -> Path:
    root = SHARED_DATA / name
    if not root.is_dir():
        pytest.skip(f"needs real speech in {root}")
    return root


@pytest.fixture(scope="session")
def commands_root() -> Path:
    """An hour of real one-word commands, spliced; 9 words."""
    return _beside("commands")


@pytest.fixture(scope="session")
def strays_root() -> Path:
    """Twenty real utterances of LibriSpeech, none for training."""
    return _beside("librispeech-strays")


@pytest.fixture(scope="session")
def demo_config() -> CorpusConfig:
    return CorpusConfig(
        tokens="word",
        demo=DemoConfig(train_utterances=60, dev_utterances=10, test_utterances=12),
    )


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `demo_corpus` is spoken, so that it is spoken once."""
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="session")
def demo_corpus(demo_config: CorpusConfig, demo_folder: Path) -> Corpus:
    """Under a hundred utterances by eSpeak NG."""
    return open_corpus(demo_config, demo_folder)
