import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace

import optuna
import psycopg
import pytest
from made_outcomes import make_outcome

from core.report import Report
from sweep.config.distributions import Choice, Range
from sweep.ledger.backends import copy_as_sqlite, find_backend
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import ADDRESS, FILE, JOURNAL, LedgerError
from sweep.ledger.ledger import Ledger
from sweep.local_lock import LockedError
from sweep.storage.lock import driver_pid, sweep_lock

LEAVES = {
    "pruning.target_sparsity": Range(low=0.1, high=0.9),
    "pruning.repair": Choice(options=("none", "ls")),
}
PARAMS = {"pruning.target_sparsity": 0.3, "pruning.repair": "ls"}


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def kind(request):
    """Where the ledger lies: every law holds everywhere."""
    return request.getfixturevalue("postgres") if request.param == "postgresql" else request.param


@pytest.fixture
def ledger(tmp_path, kind):
    ledger = Ledger.create(tmp_path, kind=kind)
    yield ledger
    ledger.close()


@pytest.fixture
def study(tmp_path):
    """Open the ledger as Optuna does."""
    opened = []

    def study_now():
        opened.append(find_backend(tmp_path).open(is_writer=False))
        return optuna.load_study(study_name=opened[-1].study, storage=opened[-1].storage)

    yield study_now
    for item in opened:
        item.close()


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
    ledger.finish(0, [make_outcome(0.2, 1.0), make_outcome(0.3, 0.5)])
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


def test_it_is_a_study_that_optuna_opens(ledger, study):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.finish(0, [make_outcome(0.2, 1.5)])

    assert [t.values for t in study().best_trials] == [[0.2, 1.5]]
    assert study().trials[0].params == PARAMS


@pytest.mark.parametrize("wer", [float("nan"), float("inf")])
def test_an_outcome_that_cannot_be_judged_fails_the_trial(ledger, wer):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    record = ledger.finish(0, [make_outcome(wer, 1.0)])

    assert record.state == "failed"
    assert "`wer` must be a finite number" in record.error


def test_a_trial_without_outcomes_fails(ledger):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)

    assert ledger.finish(0, []).state == "failed"


def test_a_stopped_trial_is_no_result(ledger, tmp_path, study):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.advance(0, report(5))
    ledger.stop(0, "beaten")

    assert study().trials[0].state == optuna.trial.TrialState.PRUNED
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


def test_a_kill_between_outcomes_and_state_loses_nothing(ledger, tmp_path, monkeypatch, study):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_set_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(0, [make_outcome(0.2, 1.5)])

    second = Ledger.open(tmp_path)
    second.reconcile()
    assert second.record(0).state == "finished"
    second.close()
    assert study().trials[0].values == [0.2, 1.5]


def test_a_lost_worker_costs_an_attempt_not_the_trial(ledger):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.release(0)

    assert ledger.start(0).attempts == 2


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
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


def lines_of(journal):
    return journal.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kind", ["journal"], indirect=True)
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda lines: lines[0][:9],
        lambda lines: b"".join([*lines[:3], b"garbage\n", *lines[3:]]),
        lambda lines: b"".join([*lines[:3], lines[3][:9], *lines[4:]]),
        lambda lines: b"".join(line for line in lines if b'"op_code":0' not in line),
        lambda lines: b"".join([*lines[:2], *lines[3:]]),
        lambda lines: b"".join([*lines, b"garbage\n"]),
        lambda lines: b"".join([*lines, b"[3]\n", lines[-1]]),
    ],
    ids=["empty", "torn first", "garbage", "torn", "no study", "a line less", "last", "no record"],
)
def test_a_damaged_journal_is_refused_and_left_as_it_is(ledger, tmp_path, damage):
    for _ in range(3):
        ledger.add(PARAMS, LEAVES)
    path = tmp_path / JOURNAL
    path.write_bytes(damage(lines_of(path)))
    before = path.read_bytes()

    with pytest.raises(LedgerError, match="is damaged"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="is damaged"):
        Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind="journal")
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["journal"], indirect=True)
def test_a_line_that_a_kill_tore_off_is_survived(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.add(PARAMS, LEAVES)
    whole = lines_of(tmp_path / JOURNAL)
    for torn in (whole[-1][:1], whole[-1][:40], whole[-1][:-1], b"\0" * 100):
        (tmp_path / JOURNAL).write_bytes(b"".join([*whole[:-1], torn]))

        assert len(reopened(tmp_path)) == 1, "who reads passes over it"
        writer = Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind="journal")
        writer.add(PARAMS, LEAVES)
        writer.close()
        assert len(reopened(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["journal"], indirect=True)
def test_a_write_that_fails_half_way_is_taken_back(ledger, tmp_path, monkeypatch):
    ledger.add(PARAMS, LEAVES)

    def full_disk(_):
        with (tmp_path / JOURNAL).open("ab") as file:
            file.write(b'{"op_code"')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match=r"must be writable, but: .*No space left"):
            ledger.start(0)
    ledger.start(0)
    assert reopened(tmp_path).record(0).state == "running"


@pytest.mark.usefixtures("ledger")
def test_a_ledger_stays_where_it_was_begun(tmp_path, kind):
    other = "journal" if kind == "sqlite" else "sqlite"

    with pytest.raises(LedgerError, match=f"`sweep.ledger` must stay .* but is {other} instead"):
        Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind=other)


def test_a_ledger_is_copied_as_sqlite_wherever_it_lies(ledger, tmp_path):
    for number, record in enumerate([PARAMS, {"pruning.method": "dense"}, PARAMS]):
        ledger.add(record, LEAVES)
        ledger.start(number)
    ledger.finish(0, [make_outcome(0.2, 1.0)])
    ledger.fail(1, "why")
    ledger.retry(1)
    ledger.set_attribute("code", "1")
    (tmp_path / "copy").mkdir()
    copy_as_sqlite(tmp_path, tmp_path / "copy")

    assert (tmp_path / "copy" / FILE).is_file()
    copy = Ledger.open(tmp_path / "copy")
    assert copy.records() == ledger.records()
    assert copy.attribute("code") == "1"
    copy.close()


def test_one_server_holds_many_sweeps(postgres, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ledger = Ledger.create(tmp_path / name, kind=postgres)
        ledger.add({"pruning.method": name}, {})
        ledger.close()

    assert reopened(tmp_path / "a").record(0).params == {"pruning.method": "a"}
    assert len(reopened(tmp_path / "b")) == 1


def test_two_drivers_never_write_one_ledger_of_a_server(postgres, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    writer = Ledger.open_or_create(first, ["wer", "gflops"], kind=postgres)
    shutil.copytree(first, second)

    with pytest.raises(LockedError, match=f"process {os.getpid()} on .* runs this sweep"):
        Ledger.open_or_create(second, ["wer", "gflops"], kind=postgres)
    assert reopened(second).records() == [], "who only reads is let in"
    writer.close()
    Ledger.open_or_create(second, ["wer", "gflops"], kind=postgres).close()


def test_a_server_s_lock_dies_with_its_process(postgres, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from sweep.ledger.ledger import Ledger
ledger = Ledger.open_or_create(Path({str(tmp_path)!r}), ["wer", "gflops"], kind={postgres!r})
ledger.add({{"pruning.method": "dense"}}, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603

    ledger = Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind=postgres)
    assert len(ledger) == 1
    ledger.close()


def test_who_lost_the_server_s_lock_writes_no_more(postgres, tmp_path):
    ledger = Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind=postgres)
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        )

    with pytest.raises(OSError, match="must stay connected"):
        ledger.add(PARAMS, LEAVES)
    ledger.close()
    assert reopened(tmp_path).records() == []


def test_no_password_is_kept(postgres, tmp_path):
    Ledger.create(tmp_path, kind=postgres).close()

    assert os.environ["PGPASSWORD"] not in (tmp_path / ADDRESS).read_text()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://sweeper@127.0.0.1:1/none", "must be a PostgreSQL server that can be used"),
        ("{postgres}_other", "database .* does not exist"),
    ],
)
def test_a_server_that_cannot_be_used_is_named(postgres, tmp_path, address, message):
    with pytest.raises(LedgerError, match=message):
        Ledger.create(tmp_path, kind=address.format(postgres=postgres))
    assert not (tmp_path / ADDRESS).exists()


def test_a_study_that_is_gone_from_the_server_is_named(postgres, tmp_path):
    Ledger.create(tmp_path, kind=postgres).close()
    note = json.loads((tmp_path / ADDRESS).read_text())
    (tmp_path / ADDRESS).write_text(json.dumps(note | {"study": "another"}))

    with pytest.raises(LedgerError, match="must hold the trials of this sweep, `another`"):
        Ledger.open(tmp_path)
    (tmp_path / ADDRESS).write_text("{}")
    with pytest.raises(LedgerError, match="must name a server and a study"):
        Ledger.open(tmp_path)


def test_a_folder_without_a_ledger_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="must hold a sweep"):
        Ledger.open(tmp_path)


def test_two_drivers_never_hold_one_sweep(tmp_path):
    with sweep_lock(tmp_path):
        assert driver_pid(tmp_path) == os.getpid()
        message = f"process {os.getpid()} runs this sweep"
        with pytest.raises(LockedError, match=message), sweep_lock(tmp_path):
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

    with sweep_lock(tmp_path):
        pass


def test_a_curve_is_kept_and_what_a_resumed_trial_repeats_takes_its_old_place(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    for step in (2, 4, 6, 4, 6, 8):
        ledger.advance(0, report(step, wer=1 / step, gflops=2.0))

    (record,) = reopened(tmp_path).records()
    assert [point.step for point in record.curve] == [2, 4, 6, 8]
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
    ledger.finish(1, [make_outcome()])
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
    ledger.finish(0, [make_outcome(wer=0.2)])
    ledger.tune_further(0, 100)
    ledger.start(0)

    (waiting,) = ledger.reconcile()
    assert (waiting.state, waiting.outcomes) == ("waiting", ())
    assert waiting.settings["tuning.more_steps"] == 100
    again = Ledger.open(tmp_path)
    again.start(0)
    fallen_back = again.fail(0, "why")
    assert fallen_back.outcomes == (make_outcome(wer=0.2),)
    assert (fallen_back.state, fallen_back.error) == ("finished", "why")
    again.tune_further(0, 50)
    assert again.record(0).settings["tuning.more_steps"] == 150
    again.start(0)
    assert again.finish(0, [make_outcome(wer=0.1)]).outcomes[0].wer == 0.1
    again.close()
    assert reopened(tmp_path).records() == again.records()


def test_latencies_that_are_measured_after_the_end_replace_those_of_before(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    old = [make_outcome(0.2, 1.0, model="model"), make_outcome(0.3, 0.5, model="model.1")]
    ledger.finish(0, old)

    new = [replace(old[0], latency_ms=7.0, latency_idle=True, speedup=2.0), old[1]]
    ledger.update_latencies(0, new)

    assert ledger.record(0).outcomes == tuple(new)
    assert reopened(tmp_path).records() == records_in(tmp_path) == ledger.records()


def test_a_trial_that_is_tuned_on_has_the_latencies_of_its_new_models(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    ledger.start(0)
    ledger.finish(0, [make_outcome(0.2, 1.0, model="model")])
    ledger.update_latencies(0, [make_outcome(0.2, 1.0, model="model", latency_ms=7.0)])
    ledger.tune_further(0, 10)
    ledger.start(0)

    ledger.finish(0, [make_outcome(0.1, 1.0, model="model-10", latency_ms=9.0)])

    for records in (ledger.records(), reopened(tmp_path).records(), records_in(tmp_path)):
        assert records[0].outcomes[0].latency_ms == 9.0


def test_what_is_not_finished_is_not_tuned_on(ledger):
    ledger.add(PARAMS, LEAVES)

    with pytest.raises(LedgerError, match="must be finished, but is waiting"):
        ledger.tune_further(0, 10)


def test_a_choice_may_grow(ledger, tmp_path):
    ledger.add(PARAMS, LEAVES)
    wider = LEAVES | {"pruning.repair": Choice(options=("mask", "none", "ls"))}
    ledger.add(PARAMS | {"pruning.repair": "mask"}, wider)

    assert [r.params["pruning.repair"] for r in reopened(tmp_path).records()] == ["ls", "mask"]


def test_what_lies_outside_a_choice_is_kept_beside_it(ledger, tmp_path):
    leaves = LEAVES | {"pruning.method": Choice(options=("l0", "acip"))}
    ledger.add({"pruning.method": "dense"}, leaves)  # the control of a sweep over methods
    ledger.add(PARAMS | {"pruning.method": "acip"}, leaves)

    methods = [r.params["pruning.method"] for r in reopened(tmp_path).records()]
    assert methods == ["dense", "acip"]


def test_the_ledger_remembers_what_it_is_told_of_the_sweep(ledger, tmp_path):
    assert ledger.attribute("code") is None
    ledger.set_attribute("code", "1")
    ledger.set_attribute("code", "2")

    ledger = Ledger.open(tmp_path)
    assert ledger.attribute("code") == "2"
    ledger.close()
