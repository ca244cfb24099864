"""The replay of recorded trials: what the benchmarks of early stopping stand on."""

import importlib

import pytest
from made_outcomes import make_outcome

from sweep.ledger.records import CurvePoint, TrialRecord
from sweep.search.early_stopping import Stopping


@pytest.fixture(scope="module")
def replaying():
    return importlib.import_module("benchmarks.lib.replay")


def trials(count):
    """Trials of four reports, each 10 steps after the other, as good on the way as at the end."""
    made = []
    for number in range(count):
        target = number / count
        wer, gflops = 0.05 + 0.3 * target**3 + 0.2 * (number % 2), 3.2 * (1 - target)
        curve = tuple(CurvePoint(step=s, wer=wer, gflops=gflops) for s in (10, 20, 30, 40))
        outcome = make_outcome(wer, gflops, target_sparsity=target)
        record = TrialRecord(number=number, state="finished", curve=curve, outcomes=(outcome,))
        made.append(record)
    return made


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_without_a_rule_every_trial_ends_by_itself(replaying, workers):
    found = replaying.replayed(trials(20), None, workers=workers, seed=0)

    assert sorted(r.number for r in found.finished) == list(range(20))
    assert found.steps == 20 * 40


def test_what_was_found_by_a_time_is_what_had_ended_by_then(replaying):
    found = replaying.replayed(trials(20), None, workers=2, seed=0)

    assert found.points(most_steps=39) == []
    assert len(found.points(most_steps=found.steps // 2)) in (9, 10)
    assert len(found.points()) == 20


def test_what_is_stopped_costs_no_more_steps(replaying):
    found = replaying.replayed(trials(20), lambda step, _: step >= 20, workers=3, seed=0)

    assert found.finished == ()
    assert found.steps == 20 * 20


def test_a_rule_that_keeps_the_front_saves_steps_and_loses_little(replaying):
    everything = trials(60)
    rule = Stopping(kind="pareto", first=10, keep=0.6)
    whole = replaying.replayed(everything, None, workers=4, seed=0)
    found = replaying.replayed(everything, rule.should_stop, workers=4, seed=0)

    assert found.steps < 0.8 * whole.steps
    assert {r.number for r in found.finished} < {r.number for r in whole.finished}
    best = [r for r in found.finished if r.number % 2 == 0]
    assert len(best) > 0.8 * len(found.finished), "what is beaten is what is stopped"
