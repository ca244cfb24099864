import os
import sqlite3
import subprocess
import sys

import optuna
import pytest

from core.report import Report
from sweep.ledger import FILE, Ledger, LedgerError
from sweep.lock import LockedError, driver_pid, locked
from sweep.space import Choice, Range
from sweep.testing import made_outcome

LEAVES = {
    "pruning.target_sparsity": Range(low=0.1, high=0.9),
    "pruning.repair": Choice(options=("none", "ls")),
}
PARAMS = {"pruning.target_sparsity": 0.3, "pruning.repair": "ls"}


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.create(tmp_path)
    yield ledger
    ledger.close()


def report(step, wer=None, gflops=None):
    return Report(stage="search", step=step, total_steps=9, wer=wer, gflops=gflops)


def reopened(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.close()
    return ledger


def test_a_new_ledger_is_empty(ledger):
    assert ledger.records() == []


def test_what_is_written_is_read_again(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.track(0, "run")
    ledger.advance(0, report(5))
    ledger.finish(0, [made_outcome(0.2, 1.0), made_outcome(0.3, 0.5)])
    ledger.add({"pruning.method": "dense"}, LEAVES)
    ledger.start(1)
    ledger.fail(1, "why")

    assert reopened(tmp_path).records() == ledger.records()
    first, second = ledger.records()
    assert (first.state, first.attempts, first.steps, first.mlflow_run_id) == (
        *("finished", 1, 5),
        "run",
    )
    assert first.params == PARAMS
    assert [o.wer for o in first.outcomes] == [0.2, 0.3]
    assert (second.state, second.error) == ("failed", "why")
    assert second.params == {"pruning.method": "dense"}


def test_it_is_a_study_that_optuna_opens(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.finish(0, [made_outcome(0.2, 1.5)])

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / FILE}")
    assert [t.values for t in study.best_trials] == [[0.2, 1.5]]
    assert study.trials[0].params == PARAMS


@pytest.mark.parametrize("wer", [float("nan"), float("inf")])
def test_an_outcome_that_cannot_be_judged_fails_the_trial(ledger, wer):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    record = ledger.finish(0, [made_outcome(wer, 1.0)])

    assert record.state == "failed"
    assert "`wer` must be a finite number" in record.error


def test_a_trial_without_outcomes_fails(ledger):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)

    assert ledger.finish(0, []).state == "failed"


def test_a_stopped_trial_is_no_result(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.advance(0, report(5))
    ledger.stop(0, "beaten")

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / FILE}")
    assert study.trials[0].state == optuna.trial.TrialState.PRUNED
    assert reopened(tmp_path).record(0).state == "stopped"


def test_what_ran_when_the_driver_died_waits_again_under_its_number(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.advance(0, report(5))

    second = Ledger.open(tmp_path)
    second.reconcile()
    record = second.record(0)
    second.close()
    assert (record.state, record.attempts, record.steps) == ("waiting", 1, 5)
    assert record.params == PARAMS


def test_a_kill_between_outcomes_and_state_loses_nothing(ledger, tmp_path, monkeypatch):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_turn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(0, [made_outcome(0.2, 1.5)])

    second = Ledger.open(tmp_path)
    second.reconcile()
    assert second.record(0).state == "finished"
    second.close()
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / FILE}")
    assert study.trials[0].values == [0.2, 1.5]


def test_a_lost_worker_costs_an_attempt_not_the_trial(ledger):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.release(0)

    assert ledger.start(0).attempts == 2


@pytest.mark.parametrize("damage", ["garbage", "empty", "half", "another", "attribute"])
def test_a_damaged_ledger_is_refused_and_left_as_it_is(ledger, tmp_path, damage):
    ledger.add(PARAMS, LEAVES)
    path = tmp_path / FILE
    if damage == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "another":
        path.unlink()
        sqlite3.connect(path).execute("CREATE TABLE studies (study_name TEXT)").connection.close()
    else:
        database = sqlite3.connect(path)
        database.execute("UPDATE trial_user_attributes SET value_json = '[3'")
        database.commit()
        database.close()
    before = path.read_bytes()

    with pytest.raises(LedgerError, match="is damaged"):
        Ledger.open(tmp_path)
    assert path.read_bytes() == before


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="must hold a sweep"):
        Ledger.open(tmp_path)


def test_two_drivers_never_hold_one_sweep(tmp_path):
    with locked(tmp_path):
        assert driver_pid(tmp_path) == os.getpid()
        message = f"process {os.getpid()} runs this sweep"
        with pytest.raises(LockedError, match=message), locked(tmp_path):
            pass
    assert driver_pid(tmp_path) is None


def test_the_lock_dies_with_its_process(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from sweep.lock import locked
with locked(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603

    with locked(tmp_path):
        pass


def test_a_curve_is_kept_and_what_a_resumed_trial_repeats_takes_its_old_place(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    for step in (2, 4, 6, 4, 6, 8):
        ledger.advance(0, report(step, wer=1 / step, gflops=2.0))

    (record,) = reopened(tmp_path).records()
    assert [heard.step for heard in record.curve] == [2, 4, 6, 8]
    assert record.curve[-1].wer == 1 / 8


def test_a_failed_trial_can_be_tried_again_under_its_number(ledger, tmp_path):
    for _ in range(3):
        ledger.add(PARAMS, LEAVES)
    ledger.start(1)
    ledger.track(1, "run")
    ledger.fail(1, "why")
    ledger.retry(1)

    records = reopened(tmp_path).records()
    assert [(r.number, r.state) for r in records] == [
        (0, "waiting"),
        (1, "waiting"),
        (2, "waiting"),
    ]
    assert (records[1].attempts, records[1].mlflow_run_id, records[1].error) == (1, "run", None)
    ledger.start(1)
    ledger.finish(1, [made_outcome()])
    ledger.add(PARAMS, LEAVES)
    assert reopened(tmp_path).records() == ledger.records()
    assert [r.number for r in ledger.records()] == [0, 1, 2, 3]


def test_what_has_not_failed_is_not_tried_again(ledger):
    ledger.add(PARAMS, LEAVES)

    with pytest.raises(LedgerError, match="must be failed, but is waiting"):
        ledger.retry(0)


def test_a_finished_trial_can_be_tuned_on_and_keeps_what_it_had_if_that_fails(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.finish(0, [made_outcome(wer=0.2)])
    ledger.tune_on(0, 100)
    ledger.start(0)

    (waiting,) = reopened(tmp_path).reconcile()
    assert (waiting.state, waiting.outcomes) == ("waiting", ())
    assert waiting.settings["tuning.more_steps"] == 100
    ledger = reopened(tmp_path)
    ledger.start(0)
    fallen_back = ledger.fail(0, "why")
    assert fallen_back.outcomes == (made_outcome(wer=0.2),)
    assert (fallen_back.state, fallen_back.error) == ("finished", "why")
    ledger.tune_on(0, 50)
    assert ledger.record(0).settings["tuning.more_steps"] == 150
    ledger.start(0)
    assert ledger.finish(0, [made_outcome(wer=0.1)]).outcomes[0].wer == 0.1
    assert reopened(tmp_path).records() == ledger.records()


def test_what_is_not_finished_is_not_tuned_on(ledger):
    ledger.add(PARAMS, LEAVES)

    with pytest.raises(LedgerError, match="must be finished, but is waiting"):
        ledger.tune_on(0, 10)


def test_a_choice_may_grow(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    wider = LEAVES | {"pruning.repair": Choice(options=("mask", "none", "ls"))}
    ledger.add(PARAMS | {"pruning.repair": "mask"}, wider)

    assert [r.params["pruning.repair"] for r in reopened(tmp_path).records()] == ["ls", "mask"]


def test_the_ledger_remembers_what_it_is_told_of_the_sweep(ledger, tmp_path):
    assert ledger.noted("code") is None
    ledger.note("code", "1")
    ledger.note("code", "2")

    ledger = Ledger.open(tmp_path)
    assert ledger.noted("code") == "2"
    ledger.close()
