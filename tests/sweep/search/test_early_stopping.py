import random

import pytest

from core.config.trial import TrialConfig
from sweep.search.early_stopping import Standing, Stopping, by_domination, by_wer, first_step


def standing(trial, wer, gflops=1.0, target=0.5, **others):
    return Standing(trial=trial, wer=wer, gflops=gflops, target=target, **others)


def scattered(count, seed=0):
    """Trials whose WER grows with what they remove, some by more than they need."""
    chance = random.Random(seed)
    found = []
    for trial in range(count):
        target = chance.random()
        wer = 0.05 + 0.3 * target**3 + chance.choice((0.0, 0.2))
        found.append(standing(trial, wer, gflops=3 * (1 - target), target=target))
    return found


def test_the_front_comes_before_all_it_beats():
    found = scattered(30)
    order = by_domination(found)
    front = [
        s.trial
        for s in found
        if not any(o.wer < s.wer and o.gflops <= s.gflops for o in found if o is not s)
    ]

    assert sorted(order) == list(range(30))
    assert set(order[: len(front)]) == set(front)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_comes_before_one_that_beats_it(seed):
    found = {s.trial: s for s in scattered(20, seed)}
    order = by_domination(list(found.values()))
    for place, trial in enumerate(order):
        for later in order[place + 1 :]:
            a, b = found[later], found[trial]
            assert not (a.wer < b.wer and a.gflops < b.gflops)


def test_of_one_front_both_ends_come_first_and_then_what_lies_farthest():
    found = [standing(i, 0.1 * (i + 1), gflops=2 - 0.1 * i) for i in range(11)]

    assert by_domination(found)[:3] in ([0, 10, 5], [10, 0, 5])


def test_equal_trials_are_told_apart_by_number():
    found = [standing(i, 0.1) for i in range(4)]

    assert by_wer(found) == [0, 1, 2, 3]
    assert sorted(by_domination(found)) == [0, 1, 2, 3]


def test_the_first_rung_comes_when_the_target_has_warmed_up():
    config = TrialConfig.parse({"pruning": {"steps": 200, "l0": {"warmup_share": 0.3}}})

    assert first_step(config) == 60


def test_rungs_grow():
    stopping = Stopping(kind="pareto", first=60, keep=0.5, growth=2.0)

    assert [stopping.rung(s) for s in (59, 60, 119, 120, 239, 240)] == [None, 0, 0, 1, 1, 2]


def test_before_the_first_rung_nothing_stops():
    stopping = Stopping(kind="pareto", first=60, keep=0.5)
    for trial in range(20):
        assert not stopping.should_stop(50, standing(trial, wer=trial))


def test_a_trial_is_judged_once_a_rung():
    stopping = Stopping(kind="wer", first=10, keep=0.5, growth=10)
    for trial in range(10):
        stopping.should_stop(10, standing(trial, wer=0.1))
    bad = standing(99, wer=0.9)

    assert stopping.should_stop(10, bad)
    assert not stopping.should_stop(20, bad)
    assert stopping.should_stop(100, bad) is False, "alone on the next rung"


def test_what_is_beaten_by_too_many_stops_and_what_beats_goes_on():
    stopping = Stopping(kind="pareto", first=10, keep=0.5)
    for place, s in enumerate(scattered(20)):
        stopping.observe(10, standing(place, s.wer, gflops=s.gflops))

    assert stopping.should_stop(10, standing(50, wer=0.9, gflops=3.0))
    assert not stopping.should_stop(10, standing(51, wer=0.01, gflops=3.0))
    assert not stopping.should_stop(10, standing(52, wer=0.9, gflops=0.001)), "cheapest of all"


def test_ordinary_halving_stops_the_cheapest_and_strata_do_not():
    def judged(kind):
        stopping = Stopping(kind=kind, first=10, keep=0.5)
        for trial in range(8):
            target = trial / 8
            stopping.observe(10, standing(trial, 0.1 + target, gflops=1 - target, target=target))
        return stopping.should_stop(10, standing(50, wer=0.8, gflops=0.05, target=0.95))

    assert judged("wer")
    assert not judged("stratified")
    assert not judged("pareto")


def test_the_control_is_compared_with_but_never_stopped():
    stopping = Stopping(kind="wer", first=10, keep=0.5)
    for trial in range(4):
        stopping.observe(10, standing(trial, wer=0.1))

    assert not stopping.should_stop(10, standing(9, wer=0.9, is_safe=True))


def test_a_second_opinion_from_the_same_standings_is_the_same():
    first, again = (Stopping(kind="pareto", first=10, keep=0.5) for _ in range(2))
    found = scattered(30)
    verdicts = [first.should_stop(10, s) for s in found]
    for s in found[:20]:
        again.observe(10, s)

    assert [again.should_stop(10, s) for s in found[20:]] == verdicts[20:]
    assert True in verdicts
