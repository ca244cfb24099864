"""What a sweep's machines did, and what of it was for nothing."""

import pytest
from made_outcomes import make_outcome

from core.report import Report
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.pareto.compute_hours import hours


def record(number, state, seconds, wasted=0.0):
    return TrialRecord(number=number, state=state, seconds=seconds, wasted_seconds=wasted)


def test_hours_are_those_of_the_devices_that_trials_occupy():
    records = [record(0, "finished", 3600), record(1, "running", 1800)]

    assert (hours(records, cpus=4, gpus=0).used, hours(records, cpus=4, gpus=0).device) == (
        6,
        "CPU",
    )
    assert (hours(records, cpus=4, gpus=2).used, hours(records, cpus=4, gpus=2).device) == (
        3,
        "GPU",
    )
    assert hours([], cpus=1, gpus=0).used == 0


def test_failed_and_stopped_trials_are_all_waste_and_others_what_they_did_again():
    records = [
        record(0, "finished", 3600, 360),
        record(1, "failed", 1800),
        record(2, "stopped", 900, 100),
        record(3, "waiting", 600, 60),
    ]

    found = hours(records, cpus=1, gpus=0)

    assert found.wasted == pytest.approx((360 + 1800 + 900 + 60) / 3600)
    assert found.used == pytest.approx(6900 / 3600)
    assert str(found) == "1.92 CPU hours, 45 % of them for nothing"


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("sweep.ledger.ledger.time", clock)
    return clock


def test_the_ledger_counts_what_a_lost_attempt_did_and_the_next_did_again(tmp_path, clock):
    ledger = Ledger.create(tmp_path)
    ledger.add({}, {})

    def advance(step, seconds):
        clock.now += seconds
        ledger.advance(0, Report(stage="tune", step=step, total_steps=400, wer=0.1, gflops=1.0))

    ledger.start(0)
    for step in (100, 200, 300):
        advance(step, 10)
    clock.now += 7  # the worker is lost before its next report
    ledger.release(0)
    ledger.start(0)
    for step in (200, 300, 400):
        advance(step, 10)
    found = ledger.finish(0, [make_outcome()])
    ledger.close()

    assert found.seconds == 67
    assert found.wasted_seconds == 7 + 20
    assert Ledger.open(tmp_path).record(0) == found


def test_a_run_that_is_known_late_is_remembered_with_its_trial(tmp_path):
    ledger = Ledger.create(tmp_path)
    ledger.add({}, {})
    ledger.start(0)
    ledger.finish(0, [make_outcome()])

    ledger.track(0, "run of trial 0")
    ledger.close()

    assert Ledger.open(tmp_path).record(0).mlflow_run_id == "run of trial 0"
