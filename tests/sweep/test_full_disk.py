"""A sweep whose disk fills up in the middle of it; the disk is a small one in memory."""

import subprocess
import sys
from collections import Counter

import pytest
from mlflow import MlflowClient

from sweep.config.sweep import create, load
from sweep.ledger.ledger import Ledger
from sweep.run import driver
from sweep.storage.lock import driver_pid
from sweep.tracking.tracker import database_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL, LARGE = "16m", "400m"


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], check=False, capture_output=True)  # noqa: S603, S607


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if mount("-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", place).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # noqa: S603, S607


def resume(folder):
    command = [sys.executable, "-P", "-m", "sweep", "resume", str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)  # noqa: S603


@pytest.mark.long
def test_a_full_disk_ends_a_sweep_in_one_line_and_costs_nothing_but_time(tiny_space, small_disk):
    text = tiny_space.read_text().replace("width = 16", "width = 128")
    tiny_space.write_text(text)
    folder = small_disk / "sweep"
    create(folder, load(str(tiny_space)), text)

    ended = resume(folder)
    assert ended.returncode == driver.INTERRUPTED
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [line for line in ended.stderr.splitlines() if "No space left" in line]
    assert driver_pid(folder) is None

    assert mount("-o", f"remount,size={LARGE}", small_disk).returncode == 0
    ended = resume(folder)
    assert ended.returncode == driver.DONE, ended.stderr
    ledger = Ledger.open(folder)
    ledger.close()
    assert [record.state for record in ledger.records()] == ["finished"] * 4
    client = MlflowClient(database_uri(folder))
    runs = list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
    assert Counter(run.info.status for run in runs) == {"FINISHED": 5}
