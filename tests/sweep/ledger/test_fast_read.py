"""A ledger read by plain SQL is the ledger; and many trials cost a trial no more than few do."""

import sqlite3
from unittest import mock

import pytest
from made_outcomes import make_outcome, make_records
from sqlalchemy import event

from core.report import Report
from sweep.config.distributions import Choice, Range
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import FILE, LedgerError
from sweep.ledger.ledger import Ledger

LEAVES = {
    "pruning.target_sparsity": Range(low=0.0, high=0.95),
    "pruning.l0.lambda_lr": Range(low=0.001, high=10.0, is_log=True),
    "pruning.steps": Range(low=1, high=9, is_integer=True),
    "pruning.repair": Choice(options=("none", "mask", "ls")),
}
REPORT = Report(stage="search", step=3, total_steps=9, wer=0.5, gflops=1.5)


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.create(tmp_path)
    yield opened
    opened.close()


def add(ledger, count):
    """Add finished trials."""
    for made in make_records(len(ledger) + count)[len(ledger) :]:
        number = ledger.add({**made.params, "pruning.steps": 3}, LEAVES).number
        ledger.start(number)
        ledger.advance(number, REPORT)
        ledger.finish(number, made.outcomes)


def test_what_is_read_by_plain_sql_is_what_the_ledger_says(ledger, tmp_path):
    add(ledger, 4)
    for number in (4, 5, 6):
        ledger.add({"pruning.repair": "ls", "pruning.steps": 7}, LEAVES)
        ledger.start(number)
    ledger.fail(4, "why")
    ledger.retry(4)
    ledger.release(5, {"pruning.steps": 2})
    ledger.stop(6, "beaten")
    ledger.add({"pruning.method": "dense"}, LEAVES)
    ledger.start(7)
    ledger.fail(7, "`\udcff.flac` must be audio")  # as a name that is no Unicode is told

    again = Ledger.open(tmp_path)
    again.close()
    assert records_in(tmp_path) == again.records() == ledger.records()


def test_a_trial_without_a_number_between_others_is_damage(ledger, tmp_path):
    add(ledger, 3)
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DELETE FROM trial_user_attributes WHERE trial_id = 2 AND key = 'trial'")
        database.execute("UPDATE trials SET number = 7 WHERE trial_id = 2")
    database.close()

    for read in (records_in, Ledger.open):
        with pytest.raises(LedgerError, match="trials are missing between others"):
            read(tmp_path)


def statements(ledger, act):
    """Number of statements that the database executes during a call."""
    seen = []
    engine = ledger._storage.engine

    def hear(*_):
        seen.append(1)

    event.listen(engine, "before_cursor_execute", hear)
    act()
    event.remove(engine, "before_cursor_execute", hear)
    return len(seen)


@pytest.mark.slow
def test_a_trial_more_asks_no_more_of_the_database_however_many_there_are(ledger):
    add(ledger, 10)
    few = statements(ledger, lambda: add(ledger, 1))
    add(ledger, 40)

    assert statements(ledger, lambda: add(ledger, 1)) == few


@pytest.mark.slow
def test_reading_asks_no_more_of_the_database_however_many_trials_there_are(ledger, tmp_path):
    def asked():
        seen = []
        connect = sqlite3.connect

        def listened(*args, **kwargs):
            database = connect(*args, **kwargs)
            database.set_trace_callback(seen.append)
            return database

        with mock.patch.object(sqlite3, "connect", listened):
            records_in(tmp_path)
        return len(seen)

    add(ledger, 5)
    few = asked()
    add(ledger, 60)

    assert asked() == few


def test_an_outcome_of_another_kind_is_named(ledger, tmp_path):
    ledger.add({}, {})
    ledger.start(0)
    ledger.finish(0, [make_outcome()])
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"wer\": 0.1',"
            " '\"wer\": \"low\"') WHERE key = 'outcomes'"
        )
    database.close()

    with pytest.raises(LedgerError, match=r"`outcomes.wer` must be float or int, but is 'low'"):
        records_in(tmp_path)
