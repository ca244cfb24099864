"""MLflow's database is complete or not there; one that was left half made is made anew."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from sweep.tracking.mlflow_server import TrackingError
from sweep.tracking.tracker import Tracker

OPEN = """
import sys
from pathlib import Path
from sweep.tracking.tracker import Tracker
Tracker(Path(sys.argv[1]), "demo").open_sweep("", {})
"""


def change(database, *statements):
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def statuses(tracker):
    return [run.info.status for run in tracker.runs.search("")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [*(pytest.param(n, marks=pytest.mark.long) for n in (0, 1)), 200_000]
)
def test_a_database_whose_making_was_killed_is_made_anew(tmp_path, size):
    command = [sys.executable, "-P", "-c", OPEN, str(tmp_path)]
    process = subprocess.Popen(command)  # noqa: S603
    while not any(path.stat().st_size >= size for path in tmp_path.glob(".mlflow.db.*/mlflow.db")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()

    tracker = Tracker(tmp_path, "demo")
    tracker.open_sweep("", {})

    assert statuses(tracker) == ["RUNNING"]
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE alembic_version"],
        pytest.param(["DROP TABLE runs"], marks=pytest.mark.long),
        pytest.param(
            ["UPDATE alembic_version SET version_num = '451aebb31d03'"], marks=pytest.mark.long
        ),
        ["UPDATE alembic_version SET version_num = '451aebb31d03'", "DROP TABLE trace_tags"],
        pytest.param(["DELETE FROM alembic_version"], marks=pytest.mark.long),
    ],
)
def test_a_half_made_database_without_runs_is_moved_aside_and_made_anew(folder, statements, caplog):
    database = folder / "mlflow.db"
    change(database, *statements)

    assert statuses_of_new_sweep(folder) == ["RUNNING"]
    assert "was incomplete" in caplog.text
    assert (folder / "mlflow.db.unfinished").is_file()


def test_an_empty_file_is_no_database_yet(folder):
    (folder / "mlflow.db").write_bytes(b"")

    assert statuses_of_new_sweep(folder) == ["RUNNING"]


def statuses_of_new_sweep(folder):
    tracker = Tracker(folder, "demo")
    tracker.open_sweep("", {})
    return statuses(tracker)


def test_a_database_with_runs_is_never_moved(opened, folder, tmp_path, caplog):
    opened()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "mlflow.db", other / "mlflow.db")
    change(other / "mlflow.db", "UPDATE alembic_version SET version_num = '451aebb31d03'")

    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        Tracker(other, "demo")
    with closing(sqlite3.connect(other / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert caplog.messages == []


def test_what_is_no_database_is_named_and_stays(folder):
    (folder / "mlflow.db").write_bytes(b"not a database" * 100)

    with pytest.raises(TrackingError, match=r"mlflow.db` cannot be opened: "):
        Tracker(folder, "demo")
    assert (folder / "mlflow.db").read_bytes() == b"not a database" * 100
