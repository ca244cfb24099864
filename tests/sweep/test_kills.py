"""Killed at random again and again, a sweep ends as if nobody had hurt it.

See benchmarks/robustness/kills.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from core.files import process_tag, temporary_path
from sweep.config.sweep import create, load
from sweep.run import driver

ROOT = Path(__file__).parents[2]
BENCHMARK = [sys.executable, "-m", "benchmarks.robustness.kills"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.long
def test_random_kills_of_drivers_and_workers_leave_no_trace(tmp_path):
    # One of each; what becomes of lost nodes and servers, test_cluster and test_outbox tell.
    command = [*BENCHMARK, "--n", "3", "--kinds", "driver", "worker", "--size", "least"]

    ended = subprocess.run(  # noqa: S603  (our own script)
        [*command, "--dir", tmp_path, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["kills"] == 2
    faults = ("lost", "duplicated", "left_running", "unordered", "different", "late")
    assert {name: told[name] for name in faults} == dict.fromkeys(faults, 0)


@pytest.mark.long
def test_a_driver_whose_own_ray_dies_ends_in_order_and_goes_on(tiny_space, tmp_path):
    folder = tmp_path / "sweep"
    create(folder, load(str(tiny_space)), tiny_space.read_text())
    events = folder / "events.jsonl"
    with begun(folder) as process:
        while not (events.exists() and '"started"' in events.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "ray::RuntimeEnvAgent":  # without it a machine gives itself up
                child.kill()
        assert process.wait(timeout=300) == driver.INTERRUPTED

    with begun(folder) as process:
        assert process.wait(timeout=300) == driver.DONE


@pytest.mark.long
def test_what_a_killed_run_left_is_cleared_by_the_next(tiny_space, tmp_path, short_folder):
    folder = tmp_path / "sweep"
    config = load(str(tiny_space)).with_budget(trials=2)
    create(folder, config, tiny_space.read_text())
    events = folder / "events.jsonl"
    with begun(folder, temporary=short_folder, is_group=True) as process:
        while not (events.exists() and '"started"' in events.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list(short_folder.glob("conformer-sweep-*"))
    half = [  # as a worker leaves them, by their names now and before
        folder / "trials" / "0000" / "checkpoints" / ".000000050.31791",
        temporary_path(folder / "trials" / "0000" / "model"),
        temporary_path(folder / "mlflow.db"),
    ]
    of_a_dead = process_tag().replace(f"{os.getpid()}-", f"{process.pid}-", 1)
    half = [path.with_name(path.name.replace(process_tag(), of_a_dead)) for path in half]
    for path in half:
        path.mkdir(parents=True)
    with events.open("a") as file:
        file.write('{"time": 1, "ev')  # as a full disk leaves a line

    with begun(folder, temporary=short_folder) as process:
        assert process.wait(timeout=300) == driver.DONE

    assert list(short_folder.iterdir()) == []
    assert not any(path.exists() for path in half)
    assert [path for path in folder.rglob(".*") if path.name != ".gitignore"] == []
    assert all(json.loads(line)["event"] for line in events.read_text().splitlines())


@pytest.mark.long
def test_early_kills_of_commands_leave_nothing_undone(tmp_path):
    command = [sys.executable, "-m", "benchmarks.robustness.early_kills", "--n", "6"]
    command += ["--dir", tmp_path]

    ended = subprocess.run(  # noqa: S603  (our own script)
        [*command, "--kinds", "run sqlite", "pack", "unpack", "promote", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["kills"] >= 4
    assert (told["failures"], told["leftovers"]) == (0, 0)


@pytest.fixture
def short_folder():
    """A temporary directory whose name is as short as the system's own: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    short = folder.rename(folder.with_name(folder.name[:4]))
    yield short
    shutil.rmtree(short)


@contextmanager
def begun(folder, *, temporary=None, is_group=False):
    """A driver of the sweep, in a process of its own, which a failed test leaves nothing of."""
    command = [sys.executable, "-P", "-m", "sweep", "resume", str(folder)]
    environment = {**os.environ, **({"TMPDIR": str(temporary)} if temporary else {})}
    ends = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=is_group, **ends)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()
