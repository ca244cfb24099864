from dataclasses import replace

import pytest
from made_outcomes import make_outcome, make_records

from sweep.config.sweep import MOST_TRIALS, SweepConfig
from sweep.ledger.records import TrialRecord
from sweep.search.budget import extended_budget, reached_limit

RECORDS = [replace(record, seconds=1800.0) for record in make_records(8)]


def config(**values):
    return SweepConfig.parse({"sweep": {"trials": 100, **values}})


def test_a_sweep_has_enough_trials_when_all_are_there():
    assert reached_limit(RECORDS, config(trials=8)) == "all 8 trials"
    assert reached_limit(RECORDS, config(trials=9)) is None


def test_hours_are_those_of_all_trials_together():
    assert "hours" in reached_limit(RECORDS, config(hours=4.0))
    assert reached_limit(RECORDS, config(hours=4.1)) is None


def settled(last_wer):
    """A front of two, and four trials more that may or may not add to it."""
    values = [(0.05, 3.2), (0.08, 1.6), *[(last_wer, 1.6)] * 4]
    return [
        TrialRecord(number=n, state="finished", outcomes=(make_outcome(wer, gflops),))
        for n, (wer, gflops) in enumerate(values)
    ]


def test_a_front_that_no_longer_grows_is_a_plateau():
    assert "too little" in reached_limit(settled(0.09), config(plateau_trials=4))
    assert reached_limit(settled(0.02), config(plateau_trials=4)) is None
    assert reached_limit(settled(0.09), config(plateau_trials=6)) is None, "not so many yet"
    assert reached_limit(settled(0.09), config()) is None, "not asked for"


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_trials_without_outcomes_count_for_the_plateau(state):
    records = [
        *settled(0.09)[:2],
        *(TrialRecord(number=n, state=state) for n in range(2, 6)),
    ]
    assert reached_limit(records, config(plateau_trials=4)) is not None


def test_more_trials_of_a_finished_sweep_are_more_than_there_are():
    found = extended_budget(RECORDS, config(trials=8), trials=8, hours=None)

    assert found == {"trials": 16}


def test_more_trials_of_an_unfinished_sweep_are_more_than_was_asked_for():
    assert extended_budget(RECORDS, config(trials=20), trials=8, hours=None) == {"trials": 28}


def test_more_hours_of_a_finished_sweep_lift_its_number_of_trials():
    found = extended_budget(RECORDS, config(trials=8), trials=None, hours=2.0)

    assert found == {"trials": MOST_TRIALS, "hours": 6.0}


@pytest.mark.parametrize(
    ("records", "given"), [(RECORDS, {"hours": 4.0}), (settled(0.09), {"plateau_trials": 4})]
)
def test_a_limit_that_ended_the_sweep_gives_way(records, given):
    old = config(**given)
    new = old.with_budget(**extended_budget(records, old, trials=3, hours=None))

    assert reached_limit(records, old) is not None
    assert reached_limit(records, new) is None
    assert new.sweep.trials == len(records) + 3
