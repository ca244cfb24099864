"""Law 8: nobody on the front beats another; everyone else is beaten or tied."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.report import Outcome
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point


def outcome(wer, gflops, **others):
    values = {
        "method": "l0",
        "resource": "flops",
        "target_sparsity": 0.5,
        "realised_sparsity": 0.5,
        "wer": wer,
        "wer_low": wer,
        "wer_high": wer,
        "test_wer": None,
        "test_wer_low": None,
        "test_wer_high": None,
        "gflops": gflops,
        "params": 1000,
        "flops_sparsity": 0.5,
        "params_sparsity": 0.5,
        "latency_ms": 10.0,
        "real_time_factor": 0.001,
        "steps": 100,
        "model": "model",
    }
    return Outcome(**{**values, **others})


def made(*pairs):
    return [
        Point(trial=n, outcome=0, result=outcome(wer, gflops))
        for n, (wer, gflops) in enumerate(pairs)
    ]


def pairs(found):
    return [(p.wer, p.gflops) for p in found]


def beats(a, b):
    return a.wer <= b.wer and a.gflops <= b.gflops and (a.wer, a.gflops) != (b.wer, b.gflops)


# Coarse values, so that ties and duplicates are common.
COARSE = st.integers(0, 8).map(lambda n: n / 8)
CLOUDS = st.lists(st.tuples(COARSE, COARSE), max_size=40).map(lambda found: made(*found))


@given(CLOUDS)
def test_nobody_on_the_front_beats_another(cloud):
    found = front.pareto_front(cloud)

    assert not any(beats(a, b) for a in found for b in found)


@given(CLOUDS)
def test_everyone_else_is_beaten_or_tied(cloud):
    found = front.pareto_front(cloud)

    for point in cloud:
        tied = any((p.wer, p.gflops) == (point.wer, point.gflops) for p in found)
        assert tied or any(beats(p, point) for p in found)


@given(CLOUDS, st.randoms())
def test_the_order_of_the_points_does_not_matter(cloud, chance):
    shuffled = chance.sample(cloud, len(cloud))

    assert front.pareto_front(shuffled) == front.pareto_front(cloud)


@given(CLOUDS)
def test_the_front_runs_from_the_cheapest_to_the_best(cloud):
    found = pairs(front.pareto_front(cloud))

    assert found == sorted(set(found), key=lambda pair: pair[1])
    assert [wer for wer, _ in found] == sorted((wer for wer, _ in found), reverse=True)


def test_of_equal_points_the_first_trial_stands_on_the_front():
    cloud = made((0.1, 1.0), (0.1, 1.0))

    assert [p.trial for p in front.pareto_front(reversed(cloud))] == [0]


@given(CLOUDS)
def test_the_beaten_add_nothing_to_the_hypervolume(cloud):
    found = front.pareto_front(cloud)

    whole = front.hypervolume(cloud, worst_wer=1.0, worst_gflops=1.0)
    assert front.hypervolume(found, worst_wer=1.0, worst_gflops=1.0) == pytest.approx(whole)


@given(CLOUDS, st.tuples(COARSE, COARSE))
def test_another_point_never_shrinks_the_hypervolume(cloud, pair):
    more = [*cloud, *made(pair)]

    before = front.hypervolume(cloud, worst_wer=1.0, worst_gflops=1.0)
    assert front.hypervolume(more, worst_wer=1.0, worst_gflops=1.0) >= before - 1e-12


def test_the_hypervolume_is_the_area_to_the_worst_corner():
    found = made((0.5, 1.0), (0.25, 2.0), (2.0, 0.1))  # the last is worse than the corner

    area = (1.0 - 0.5) * (4.0 - 1.0) + (0.5 - 0.25) * (4.0 - 2.0)
    assert front.hypervolume(found, worst_wer=1.0, worst_gflops=4.0) == pytest.approx(area)


def test_nothing_covers_nothing():
    assert front.hypervolume([], worst_wer=1.0, worst_gflops=1.0) == 0.0
    assert front.hypervolume_share([]) == 0.0


def test_the_share_of_the_hypervolume_is_told_against_the_unpruned_model():
    half = Point(trial=0, outcome=0, result=outcome(0.2, 3.0, flops_sparsity=0.5))

    assert front.unpruned_gflops([half]) == pytest.approx(6.0)
    assert front.hypervolume_share([half]) == pytest.approx((1 - 0.2) * (1 - 0.5))


def test_points_come_from_finished_trials_alone():
    done, gone = outcome(0.1, 1.0), outcome(math.nan, 1.0)
    records = [
        TrialRecord(number=3, state="finished", outcomes=(done, gone, done)),
        TrialRecord(number=1, state="finished", outcomes=(done,)),
        *(
            TrialRecord(number=n, state=state, outcomes=(done,))
            for n, state in enumerate(("waiting", "running", "stopped", "failed"), start=4)
        ),
    ]

    assert [p.name for p in front.points(records)] == ["1", "3", "3.2"]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"max_wer": 0.2}, [0, 1]),
        ({"max_gflops": 2.0}, [1, 2]),
        ({"max_params": 999}, [2]),
        ({"max_latency_ms": 10.0, "max_wer": 0.25}, [0, 1]),
        ({"max_wer": 0.01}, []),
    ],
)
def test_feasible_points_keep_within_every_limit(limits, kept):
    cloud = made((0.1, 3.0), (0.2, 2.0), (0.3, 1.0))
    cloud[2] = dataclasses.replace(cloud[2], result=outcome(0.3, 1.0, params=10, latency_ms=5.0))

    assert [p.trial for p in front.feasible(cloud, **limits)] == kept


def test_the_knee_is_where_the_front_bends():
    assert pairs([front.knee(made((0.9, 1.0), (0.2, 2.0), (0.1, 9.0)))]) == [(0.2, 2.0)]


def test_without_a_bend_the_best_recognizer_is_the_knee():
    assert pairs([front.knee(made((0.9, 1.0)))]) == [(0.9, 1.0)]
    assert pairs([front.knee(made((0.9, 1.0), (0.1, 9.0)))]) == [(0.1, 9.0)]
    assert pairs([front.knee(made((0.9, 1.0), (0.8, 8.0), (0.1, 9.0)))]) == [(0.1, 9.0)]


@given(CLOUDS.filter(bool), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_knee_stands_on_the_front_whatever_the_units(cloud, wers, flops):
    found = front.pareto_front(cloud)
    scaled = [dataclasses.replace(p, result=outcome(p.wer * wers, p.gflops * flops)) for p in found]

    assert front.knee(scaled).trial == front.knee(found).trial


def test_an_empty_front_has_no_knee():
    with pytest.raises(ValueError, match=r"`front` must hold a point or more.*but is empty"):
        front.knee([])


def test_no_points_tell_no_unpruned_model():
    with pytest.raises(ValueError, match="`points` must be one or more"):
        front.unpruned_gflops([])


def test_with_a_third_objective_more_points_stand_on_the_front():
    values = [(0.2, 1.0, 1.0), (0.1, 1.0, 2.0), (0.2, 1.5, 2.5), (0.1, 1.0, 2.0)]
    fast, good, beaten, twin = (
        Point(trial=n, outcome=0, result=outcome(wer, gflops, latency_ms=latency))
        for n, (wer, gflops, latency) in enumerate(values)
    )
    found = [beaten, twin, good, fast]

    assert front.pareto_front(found) == [good]
    assert front.pareto_front(found, ("wer", "gflops", "latency_ms")) == [good, fast]
