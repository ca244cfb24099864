"""The short form of benchmarks/kills.py: real sweeps of which something is killed at random."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATH = Path(__file__).parents[1] / "benchmarks" / "kills.py"
FAULTS = ("lost", "duplicated", "left_running", "unordered", "different", "late")


def test_whatever_is_killed_every_trial_ends_once_and_as_if_nothing_had_been():
    command = [sys.executable, PATH, "--n", "4", "--kinds", "driver", "worker", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 2
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
