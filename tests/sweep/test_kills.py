"""Killed at random again and again, a sweep ends as if nobody had hurt it: benchmarks/kills.py."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sweep import driver
from sweep.config import create, load

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.long
def test_random_kills_of_drivers_and_workers_leave_no_trace(tmp_path):
    # One of each; what becomes of lost nodes and servers, test_cluster and test_outbox tell.
    command = [sys.executable, SCRIPT, "--n", "3", "--kinds", "driver", "worker", "--size", "least"]

    ended = subprocess.run(  # noqa: S603  (our own script)
        [*command, "--dir", tmp_path, "--json"],
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
        assert process.wait(timeout=120) == driver.INTERRUPTED

    with begun(folder) as process:
        assert process.wait(timeout=300) == driver.DONE


@contextmanager
def begun(folder):
    """A driver of the sweep, in a process of its own, which a failed test leaves nothing of."""
    command = [sys.executable, "-P", "-m", "sweep", "resume", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()
