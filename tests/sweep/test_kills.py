"""Killed at random again and again, a sweep ends as if nobody had hurt it: benchmarks/kills.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_random_kills_of_drivers_and_workers_leave_no_trace(tmp_path):
    # Two of each; what becomes of lost nodes and servers, test_cluster and test_outbox tell.
    command = [sys.executable, SCRIPT, "--n", "6", "--kinds", "driver", "worker", "--size", "least"]

    ended = subprocess.run(  # noqa: S603  (our own script)
        [*command, "--dir", tmp_path, "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["kills"] == 4
    faults = ("lost", "duplicated", "left_running", "unordered", "different", "late")
    assert {name: told[name] for name in faults} == dict.fromkeys(faults, 0)
