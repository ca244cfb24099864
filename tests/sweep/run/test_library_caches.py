"""Without a home that can be written to, commands work, and say nothing of it."""

import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from made_outcomes import make_outcome

from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.run.library_caches import FOLDERS, TOKENS, provide_home, provide_token

HOMES = ["/dev/null/x", "/proc"]
"""One that is not there and cannot be made, and one that nobody can write to, root included."""
NAMES = ("HOME", *FOLDERS, *TOKENS)


@pytest.fixture
def ran():
    """Run a command in a process of its own, with another home and temporary directory."""
    # Not below pytest's own folder: the paths of Ray's sockets may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="h") as temporary:
        yield partial(_run, temporary)


def _run(temporary, home, *words):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"TMPDIR": temporary, **({"HOME": home} if home else {})}
    command = [sys.executable, "-P", "-m", "sweep", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture(autouse=True)
def _loggers_as_before():
    root = logging.getLogger()
    before = list(root.filters)
    yield
    root.filters[:] = before
    logging.getLogger("matplotlib.font_manager").setLevel(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("home", HOMES)
def test_commands_that_draw_or_look_say_nothing_of_the_home(home, ran, tiny_space, tmp_path):
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), "")
    ledger = Ledger.open_or_create(folder, ["wer", "gflops"])
    record = ledger.add({"pruning.target_sparsity": 0.5}, load(str(tiny_space)).space.distributions)
    ledger.finish(record.number, [make_outcome()])
    ledger.close()

    for words in (("--help",), ("doctor",), ("pareto", folder, "--png", tmp_path / "x.png")):
        done = ran(home, *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("home", HOMES)
def test_a_sweep_runs_and_says_nothing_of_the_home(home, ran, tiny_space, tmp_path):
    done = ran(home, "run", tiny_space, "--trials", "2", "--dir", tmp_path / "sweep")

    assert done.returncode == 0, done.stderr
    assert home not in done.stderr
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("home", [*HOMES, None])
def test_places_are_named_below_the_temporary_directory_and_stay_named(home, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"HOME": home} if home else {"HOME": "/dev/null/y"}
    environment["XDG_CACHE_HOME"] = "/mine"

    provide_home(environment)
    again = dict(environment)
    provide_home(again)
    provide_token(environment)

    assert again.items() <= environment.items()
    assert environment["XDG_CACHE_HOME"] == "/mine"
    assert Path(environment["MPLCONFIGDIR"]).is_relative_to(tmp_path)
    assert (environment["HOME"] == home) == (home == "/proc")
    token = environment.get("RAY_AUTH_TOKEN_PATH")
    assert (token is not None) == (home == "/proc")
    if token:
        assert Path(token).stat().st_mode & 0o777 == 0o600
        assert len(Path(token).read_text()) == 64
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_another_has_put_there_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"home-of-conformer-sweep-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    environment = {"HOME": "/dev/null/x"}

    provide_home(environment)

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert Path(environment["HOME"]).is_dir()


def test_a_home_that_can_be_written_to_is_left_alone(tmp_path):
    environment = {"HOME": str(tmp_path)}

    provide_home(environment)
    provide_token(environment)

    assert environment == {"HOME": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []
