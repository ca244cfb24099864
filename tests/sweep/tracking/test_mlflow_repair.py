"""What was deleted in MLflow by its own API is there again: the ledger is the truth."""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest
from made_outcomes import make_outcome

from core.report import Report
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.tracking import retry_queue

STEPS = (100, 200, 300)
CURVE = tuple(CurvePoint(step=step, wer=1 / (1 + step), gflops=1.0) for step in STEPS)
RUNNING = TrialRecord(number=0, state="running", params={"pruning.target_sparsity": 0.5})
DONE = replace(
    RUNNING, state="finished", outcomes=(make_outcome(0.05, 1.5),), seconds=60.0, curve=CURVE
)
NUM_TRIALS = 4


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)


@pytest.fixture(params=["own database", pytest.param("server", marks=pytest.mark.long)])
def begun(request, opened):
    """A tracker of a new segment each time it is called, as the ledger's records want it."""
    uri = ""
    if request.param == "server":
        uri = request.getfixturevalue("server")().start()

    def begin(records=()):
        tracker = opened(uri)
        tracker.reconcile(records)
        return tracker

    return begin


def report(step):
    return Report(stage="search", step=step, total_steps=300, wer=1 / (1 + step), gflops=1.0)


def run_trial(tracker, number, steps=STEPS):
    """A trial's life up to before its end; gives its run's id."""
    record = replace(RUNNING, number=number)
    run_id = tracker.open_trial(record)
    tracker.log_reports(number, [report(step) for step in steps])
    return run_id


def finished(tracker, *run_ids):
    """All trials, finished; gives the ledger's records."""
    records = [
        replace(DONE, number=number, mlflow_run_id=run_ids[number] if run_ids else None)
        for number in range(NUM_TRIALS)
    ]
    for record in records:
        tracker.finish_trial(record)
    return [replace(r, mlflow_run_id=tracker.run_id(r.number)) for r in records]


def end(tracker, records):
    tracker.reconcile(records, is_last=True)
    tracker.close()


def assert_all_is_there(tracker):
    """One parent, one child a trial, all whole and over, and nothing open in the bin."""
    everything = list(tracker.runs.search("", "all"))
    active = [run for run in everything if run.info.lifecycle_stage == "active"]
    numbers = Counter(run.data.tags.get("sweep.trial", "parent") for run in active)
    assert numbers == dict.fromkeys(("parent", *map(str, range(NUM_TRIALS))), 1)
    assert {run.info.status for run in everything} == {"FINISHED"}
    for run in active:
        if "sweep.trial" in run.data.tags:
            assert run.data.tags["mlflow.parentRunId"] == tracker.parent
            assert run.data.metrics["wer"] == DONE.outcomes[0].wer
            assert run.data.params["pruning.target_sparsity"] == "0.5"
            history = tracker.client.get_metric_history(run.info.run_id, "val/wer")
            assert [metric.step for metric in history] == list(STEPS)


def test_runs_deleted_while_the_sweep_runs_are_restored(begun, caplog):
    tracker = begun()
    ids = [run_trial(tracker, number, steps=STEPS[:1]) for number in range(NUM_TRIALS)]
    tracker.finish_trial(replace(DONE, number=0, curve=CURVE[:1]))
    for run_id in ids[:3]:  # one that is over, two that run
        tracker.client.delete_run(run_id)
    for number in range(1, NUM_TRIALS):
        tracker.log_reports(number, [report(step) for step in STEPS[1:]])
    tracker.log_reports(0, [report(step) for step in STEPS[1:]])

    end(tracker, finished(tracker))

    assert_all_is_there(tracker)
    assert [tracker.run_id(number) for number in range(NUM_TRIALS)] == ids
    assert "3 restored from its bin, 0 written again" in caplog.text


def test_runs_deleted_after_the_end_are_restored_by_the_next_segment(begun, caplog):
    tracker = begun()
    ids = [run_trial(tracker, number) for number in range(NUM_TRIALS)]
    records = finished(tracker)
    end(tracker, records)
    for run_id in (ids[1], ids[3], tracker.parent):
        tracker.client.delete_run(run_id)
    parent = tracker.parent

    tracker = begun(records)
    end(tracker, records)

    assert_all_is_there(tracker)
    assert tracker.parent == parent
    assert "3 restored from its bin, 0 written again" in caplog.text


def test_a_parent_deleted_while_the_sweep_runs_is_restored(begun):
    tracker = begun()
    for number in range(NUM_TRIALS):
        run_trial(tracker, number)
    parent = tracker.parent
    tracker.client.delete_run(parent)
    tracker.log_reports(None, [replace(report(100), stage="teacher")])

    end(tracker, finished(tracker))

    assert_all_is_there(tracker)
    assert tracker.parent == parent


@pytest.mark.parametrize("when", ["while it runs", "after its end"])
def test_a_deleted_experiment_is_restored_with_all_in_it(begun, caplog, when):
    tracker = begun()
    for number in range(NUM_TRIALS):
        run_trial(tracker, number)
    if when == "while it runs":
        tracker.client.delete_experiment(tracker.experiment)
        records = finished(tracker)
        end(tracker, records)
    else:
        records = finished(tracker)
        end(tracker, records)
        tracker.client.delete_experiment(tracker.experiment)
        tracker = begun(records)
        end(tracker, records)

    assert_all_is_there(tracker)
    assert "experiment `demo` was deleted, and is restored" in caplog.text


def empty_bin(folder):
    """As `mlflow gc` does: what lies in the bin is gone for good."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.execute("PRAGMA foreign_keys = ON")
        gone = "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'"
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        for table in ("tags", "params", "metrics", "latest_metrics"):
            assert table in tables
            connection.execute(f"DELETE FROM {table} WHERE run_uuid IN ({gone})")  # noqa: S608
        connection.execute("DELETE FROM runs WHERE lifecycle_stage = 'deleted'")
        experiments = "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'"
        connection.execute(f"DELETE FROM experiment_tags WHERE experiment_id IN ({experiments})")  # noqa: S608
        connection.execute("DELETE FROM experiments WHERE lifecycle_stage = 'deleted'")


@pytest.mark.parametrize("what", ["runs", "parent", "experiment"])
@pytest.mark.parametrize("when", ["while it runs", "after its end"])
def test_what_is_gone_for_good_is_written_again_from_the_ledger(opened, folder, what, when, caplog):
    tracker = opened()
    ids = [run_trial(tracker, number) for number in range(NUM_TRIALS)]
    records = [replace(DONE, number=n, mlflow_run_id=ids[n]) for n in range(NUM_TRIALS)]
    if when == "after its end":
        end(tracker, finished(tracker))
    if what == "experiment":
        tracker.client.delete_experiment(tracker.experiment)
    for run_id in {"runs": ids[1:3], "parent": [tracker.parent], "experiment": []}[what]:
        tracker.client.delete_run(run_id)
    empty_bin(folder)

    if when == "while it runs":
        records = finished(tracker, *ids)
    else:
        tracker = opened()
        tracker.reconcile(records)
    end(tracker, records)

    assert_all_is_there(tracker)
    if what != "parent" and when == "after its end":
        assert f"{len(records) if what == 'experiment' else 2} written again" in caplog.text


def test_what_another_sweep_deleted_in_the_same_experiment_stays_deleted(opened):
    tracker = opened()
    other = tracker.client.create_run(tracker.experiment, tags={"sweep.id": "other"})
    tracker.client.delete_run(other.info.run_id)

    tracker.reconcile([])
    end(tracker, [])

    assert tracker.client.get_run(other.info.run_id).info.lifecycle_stage == "deleted"


def test_a_double_that_lies_in_the_bin_does_not_run_there(opened):
    tracker = opened()
    first = run_trial(tracker, 0)
    tags = tracker.client.get_run(first).data.tags
    double = tracker.client.create_run(tracker.experiment, tags=tags).info.run_id
    tracker.client.delete_run(double)

    tracker.reconcile([replace(DONE, mlflow_run_id=first)])

    stages = {run: tracker.client.get_run(run).info for run in (first, double)}
    assert [info.status for info in stages.values()] == ["FINISHED", "KILLED"]
    assert [info.lifecycle_stage for info in stages.values()] == ["active", "deleted"]
