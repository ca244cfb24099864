"""A real MLflow server that is killed and comes again costs nothing but delay."""

import resource
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
from made_outcomes import make_outcome

from core.report import Report
from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.tracking import retry_queue
from sweep.tracking import tracker as tracking

WAITING = TrialRecord(number=3, state="running", params={"pruning.target_sparsity": 0.5})
DONE = replace(WAITING, state="finished", outcomes=(make_outcome(0.05, 1.5),), seconds=60.0)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(retry_queue, "FIRST_PAUSE", 0.0)


def report(step, **others):
    return Report(stage="search", step=step, total_steps=700, wer=1 / (1 + step), **others)


def curve(*steps):
    return tuple(CurvePoint(step=step, wer=1 / (1 + step), gflops=1.0) for step in steps)


def runs(tracker):
    return list(tracker.runs.search(""))


def statuses(tracker):
    return [run.info.status for run in runs(tracker)]


def history(tracker, trial, key="val/wer"):
    found = tracker.client.get_metric_history(tracker.run_id(trial), key)
    return [(metric.step, metric.value) for metric in found]


@contextmanager
def full_disk():
    """No file of this process may grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.long
@pytest.mark.slow
def test_a_server_killed_midway_hears_everything_once_it_is_back(server, opened, caplog):
    mlflow = server()
    tracker = opened(mlflow.start())
    slowest = 0.0
    threading.Timer(1.0, mlflow.stop).start()  # in the middle of whatever is being said
    for number in range(40):
        began = time.monotonic()
        tracker.open_trial(replace(WAITING, number=number))
        for step in (100, 200, 300):
            tracker.log_reports(number, [report(step, losses={"ctc": 1.0})])
        tracker.finish_trial(replace(DONE, number=number))
        slowest = max(slowest, time.monotonic() - began)
        if number == 20:
            wait_until(lambda: not mlflow.answers())
    assert tracker.is_unreachable
    assert slowest < 5, "nobody waits for an MLflow that is not there"

    mlflow.start()
    tracker.close()

    numbers = Counter(run.data.tags.get("sweep.trial", "sweep") for run in runs(tracker))
    assert numbers == dict.fromkeys(("sweep", *map(str, range(40))), 1)
    assert statuses(tracker) == ["FINISHED"] * 41
    for number in range(40):
        assert history(tracker, number) == [(step, 1 / (1 + step)) for step in (100, 200, 300)]
        assert [step for step, _ in history(tracker, number, "losses/ctc")] == [100, 200, 300]
        assert len(history(tracker, number, "wer")) == 1
    assert [message[:23] for message in caplog.messages] == [
        "MLflow cannot be reache",
        "MLflow can be reached a",
    ]


def wait_until(holds):
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_whose_making_was_not_answered_is_found_not_made_again(opened, monkeypatch):
    tracker = opened()
    make = tracker.client.create_run

    def lost(*words, **named):
        make(*words, **named)
        raise OSError("the answer was lost")

    monkeypatch.setattr(tracker.client, "create_run", lost)
    assert tracker.open_trial(WAITING) is None
    monkeypatch.setattr(tracker.client, "create_run", make)
    tracker.log_reports(3, [report(100)])

    assert len(runs(tracker)) == 2
    assert history(tracker, 3) == [(100, 1 / 101)]


def test_of_two_runs_of_a_trial_the_second_is_deleted(opened):
    tracker = opened()
    first = tracker.open_trial(WAITING)
    tags = tracker.client.get_run(first).data.tags
    tracker.client.create_run(tracker.experiment, tags=tags)

    again = opened()

    assert again.run_id(3) == first
    assert len(runs(again)) == 2


def test_what_was_said_twice_is_written_once(opened, monkeypatch):
    tracker = opened()
    tracker.open_trial(WAITING)
    log = tracker.client.log_batch
    monkeypatch.setattr(tracker.client, "log_batch", _answer_lost(log))
    tracker.log_reports(3, [report(100)])
    tracker.finish_trial(replace(DONE, curve=curve(100, 200)))
    assert tracker.is_unreachable
    monkeypatch.setattr(tracker.client, "log_batch", log)
    tracker.close()

    assert [step for step, _ in history(tracker, 3)] == [100, 200]
    assert len(history(tracker, 3, "wer")) == 1


def _answer_lost(call):
    def lost(*words, **named):
        call(*words, **named)
        raise OSError("the answer was lost")

    return lost


def test_a_full_disk_costs_nothing_but_delay(opened):
    tracker = opened()
    tracker.open_trial(WAITING)

    with full_disk():
        tracker.log_reports(3, [report(100), report(200)])
        tracker.finish_trial(DONE)
        assert tracker.is_unreachable
    tracker.close()

    assert [step for step, _ in history(tracker, 3)] == [100, 200]
    assert statuses(tracker) == ["FINISHED", "FINISHED"]


def test_what_a_dead_driver_could_not_tell_is_filled_up_from_the_ledger(opened):
    tracker = opened()
    tracker.open_trial(WAITING)
    tracker.log_reports(3, [report(100)])

    tracker = opened()  # the next driver; the one before died while MLflow was away
    tracker.reconcile(
        [
            replace(DONE, curve=curve(100, 200, 300)),
            replace(DONE, number=5, curve=curve(100, 200)),
        ]
    )

    assert history(tracker, 3) == [(step, 1 / (1 + step)) for step in (100, 200, 300)]
    assert [step for step, _ in history(tracker, 5)] == [100, 200]
    assert {step for step, _ in history(tracker, 5, "val/gflops")} == {100, 200}
    assert statuses(tracker) == ["RUNNING", "FINISHED", "FINISHED"]


def test_a_trial_that_goes_on_repeats_nothing_of_what_was_filled_up(opened):
    tracker = opened()
    tracker.open_trial(WAITING)
    tracker = opened()
    tracker.open_trial(replace(WAITING, curve=curve(100, 200)))
    tracker = opened()
    tracker.open_trial(replace(WAITING, curve=curve(100, 200)))

    tracker.log_reports(3, [report(100), report(200)])
    tracker.log_reports(3, [replace(report(200), stage="tune"), report(300)])

    assert [step for step, _ in history(tracker, 3)] == [100, 200, 300]


def test_reports_that_found_no_room_are_filled_up_at_the_trials_end(opened, monkeypatch):
    tracker = opened()
    tracker._queue._max_reports = 2
    tracker.open_trial(WAITING)
    log = tracker.client.log_batch
    monkeypatch.setattr(tracker.client, "log_batch", _answer_lost(log))
    for step in range(100, 600, 100):
        tracker.log_reports(3, [report(step)])
    monkeypatch.setattr(tracker.client, "log_batch", log)
    tracker.log_reports(3, [report(600)])
    tracker.finish_trial(replace(DONE, curve=curve(*range(100, 700, 100))))

    assert [step for step, _ in history(tracker, 3)] == [*range(100, 700, 100)]


def test_an_mlflow_that_stays_away_delays_the_end_a_little_and_loses_nothing(
    opened, monkeypatch, caplog
):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 1.0)
    tracker = opened()
    tracker.open_trial(WAITING)
    with full_disk():
        tracker.log_reports(3, [report(100)])
        began = time.monotonic()
        tracker.close(is_interrupted=True)
        assert time.monotonic() - began < 10
    assert "conformer-sweep resume" in caplog.messages[-1]

    again = opened()
    again.reconcile([replace(WAITING, state="waiting", curve=curve(100))])
    assert statuses(again) == ["RUNNING", "SCHEDULED"]
    again.open_trial(replace(WAITING, curve=curve(100)))

    assert [step for step, _ in history(again, 3)] == [100]
