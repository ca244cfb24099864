"""Law 3 for several budgets: all are met, each tightly where any order of the units does that."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.pruning import PruningConfig
from core.config.trial import ModelConfig
from core.conformer.axes import around
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.pruning.selection import ROUNDED, Budget, NestedOrder, budgets_of, choose, prefix_choice
from core.pruning.space import Space, resource_cost
from core.testing import deeper, make_latency_table, small_model

KINDS = ["frontend", "width", "head", "inner", "channel", "module"]
# Of the model below: what the second may be when half of the first goes, so that both can bind.
TOGETHER = {
    ("params", "flops"): (0.36, 0.68),
    ("flops", "params"): (0.36, 0.68),
    ("params", "latency"): (0.36, 0.48),
    ("latency", "flops"): (0.36, 0.68),
}
few = settings(
    max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@cache
def a_space(size: str = "tiny") -> Space:
    """Of a model whose units are small against it, so that it can be met to a hundredth."""
    config = ModelConfig(size=size, blocks=1, heads=16, width=128)
    with torch.device("meta"):
        model = Conformer(Shape.of(config, 100))
    return Space.of(model, KINDS, 4.0, latency=make_latency_table(model.shape, 4.0))


def some_scores(space, seed):
    torch.manual_seed(seed)
    spread = 10 ** float(torch.empty(()).uniform_(-3, 3))  # whatever the scores' own scale
    return {axis.name: spread * torch.randn(axis.size) for axis in space.units}


def left_of(space, choice, budgets):
    cost = space.choice_cost(choice)
    return [budget.slack(space, cost) for budget in budgets]


def budgets_that(**removed):
    return [Budget(keep=1 - share, resource=name) for name, share in removed.items()]


@pytest.mark.slow
@pytest.mark.parametrize("pair", TOGETHER, ids="-".join)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@few
def test_two_budgets_that_can_bind_together_are_both_met_within_a_hundredth(pair, seed, share):
    space, (low, high) = a_space(), TOGETHER[pair]
    first, also = budgets_that(**{pair[0]: 0.5, pair[1]: low + share * (high - low)})

    choice = choose(space, some_scores(space, seed), first, [also], is_filled=True)

    assert all(-1e-9 <= left <= 0.01 for left in left_of(space, choice, [first, also]))


@pytest.mark.long
@pytest.mark.slow
@given(seed=st.integers(0, 10**6), keeps=st.lists(st.floats(0.35, 0.9), min_size=3, max_size=3))
@settings(few, max_examples=4)
def test_three_budgets_are_met_and_no_removed_unit_could_come_back(seed, keeps):
    space = Space.of(
        model := small_model(shape=deeper(1)),
        KINDS,
        4.0,
        latency=make_latency_table(model.shape, 4.0),
    )
    names = ("flops", "params", "latency")
    first, *also = (
        Budget(keep=keep, resource=name) for name, keep in zip(names, keeps, strict=True)
    )

    choice = choose(space, some_scores(space, seed), first, also, is_filled=True)

    assert min(left_of(space, choice, [first, *also])) >= -1e-9
    for name, units in choice.items():
        for index in (~units).nonzero().flatten().tolist():
            if name in {axis.name for axis in space.units}:
                more = opened(space, choice, name, index)
                assert min(left_of(space, more, [first, *also])) < 0, (name, index)


def opened(space, choice, name, index):
    more = {axis: units.clone() for axis, units in choice.items()}
    more[name][index] = True
    for above in around(space.axes)[name]:
        more[above][:] = True
    return more


@pytest.mark.slow
def test_three_budgets_that_can_bind_together_do():
    space = a_space()
    scores = some_scores(space, 3)
    # What some other tilt gives is what can be asked for.
    heads = {n: s + 0.3 * s.std() * n.endswith("head") for n, s in scores.items()}
    cost = space.choice_cost(choose(space, heads, *budgets_that(params=0.5), is_filled=True))
    removed = {n: float(space.sparsity(cost, n)) for n in ("params", "flops", "latency")}
    first, *also = budgets_that(**removed)

    choice = choose(space, scores, first, also, is_filled=True)

    assert all(-1e-9 <= left <= 0.01 for left in left_of(space, choice, [first, *also]))


@pytest.mark.parametrize("also", [{"flops": 0.05}, {"latency": 0.05}])
def test_what_cannot_bind_is_overfulfilled_and_leaves_the_order_alone(also):
    space, (first,) = a_space(), budgets_that(params=0.5)
    scores = some_scores(space, 1)

    choice = choose(space, scores, first, budgets_that(**also), is_filled=True)

    alone = choose(space, scores, first, is_filled=True)
    assert all(torch.equal(choice[name], alone[name]) for name in alone)


def test_another_target_may_be_the_only_one_that_binds():
    space = a_space()
    first, also = budgets_that(params=0.1, flops=0.7)

    choice = choose(space, some_scores(space, 1), first, [also], is_filled=True)

    of_params, of_flops = left_of(space, choice, [first, also])
    assert of_params > 0.01
    assert 0 <= of_flops <= 0.01


def test_budgets_without_filling_are_met_too():
    space = a_space()
    first, also = budgets_that(params=0.5, flops=0.52)

    choice = choose(space, some_scores(space, 5), first, [also])

    assert all(-1e-9 <= left <= 0.02 for left in left_of(space, choice, [first, also]))


@pytest.mark.parametrize(
    ("first", "also", "message"),
    [
        ({"params": 0.9999}, {"flops": 0.5}, r"`pruning.target_sparsity` must be at most 0\.\d+"),
        ({"params": 0.5}, {"flops": 0.9999}, r"`pruning.also.flops` must be at most 0\.\d+ of fl"),
        ({"params": 0.5}, {"latency": 0.9999}, r"`pruning.also.latency` must be at most 0\.\d+"),
    ],
)
def test_a_budget_below_the_floors_is_refused_by_its_name(first, also, message):
    space = a_space()

    with pytest.raises(ValueError, match=message):
        choose(space, some_scores(space, 0), *budgets_that(**first), budgets_that(**also))


@pytest.mark.parametrize("kinds", [KINDS, [*KINDS, "block"], ["block"], ["inner", "module"]])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_what_a_ladder_counts_is_what_its_choice_costs(kinds, multiple_of):
    space = Space.of(small_model(shape=deeper(3)), kinds, 4.0)
    torch.manual_seed(0)
    scores = {axis.name: torch.randn(axis.size) for axis in space.prunable}
    ladder = NestedOrder.of(space, scores, multiple_of)

    for length in range(ladder.floors, len(ladder.steps) + 1, 3):
        kept = list(range(length))
        units = [unit for step in ladder.steps for unit in step]
        size = sum(len(step) for step in ladder.steps[:length])
        assert ladder.cost(kept) == space.choice_cost(ladder.choice(kept))
        assert ladder.cost(kept) == space.choice_cost(prefix_choice(space, units, size))


@pytest.mark.parametrize("multiple_of", [2, 8, 16])
@given(seed=st.integers(0, 10**6), keep=st.floats(0.3, 0.9))
@few
def test_kept_sizes_are_multiples_and_the_budget_is_met(multiple_of, seed, keep):
    space, scores = a_space(), some_scores(a_space(), seed)
    budget = Budget(keep=keep, resource="flops")

    choice = choose(space, scores, budget, is_filled=True, multiple_of=multiple_of)

    assert 0 <= left_of(space, choice, [budget])[0] <= 0.02
    for axis in space.axes:
        kept = int(choice[axis.name].sum())
        if axis.kind in ROUNDED:
            assert kept % multiple_of == 0 or kept == axis.size, axis.name


def test_sizes_are_not_rounded_where_the_budget_does_not_permit_it():
    space = Space.of(small_model(shape=deeper(3)), KINDS, 4.0)
    scores, budget = some_scores(space, 0), Budget(keep=0.04, resource="flops")
    rounded = NestedOrder.of(space, scores, 16)
    assert budget.slack(space, rounded.cost(range(rounded.floors))) < 0

    choice = choose(space, scores, budget, multiple_of=16)

    assert left_of(space, choice, [budget])[0] >= 0
    assert any(0 < int(choice[axis.name].sum()) < axis.size for axis in space.axes)


@pytest.mark.parametrize("target", [0.0, 0.25, 0.5, 0.75, 0.95])
def test_all_targets_move_together_and_stay_targets(target):
    config = PruningConfig(resource="params", target_sparsity=0.5, also={"flops": 0.55})

    params, flops = budgets_of(config, target)

    assert params.keep == pytest.approx(1 - target)
    assert flops.resource == "flops"
    assert 0 < flops.keep <= 1
    removed = [1 - budgets_of(config, t)[1].keep for t in (target - 0.01, target, target + 0.01)]
    if 0 < target < 0.95:
        assert removed == sorted(removed)
    if target == 0.5:
        assert flops.keep == pytest.approx(0.45)


def test_a_target_of_nothing_moves_the_others_too():
    config = PruningConfig(target_sparsity=0.0, also={"params": 0.5})

    assert [budget.keep for budget in budgets_of(config, 0.0)] == [1.0, 0.5]
    assert budgets_of(config, 0.5)[1].keep == pytest.approx(0.25)


def test_a_table_is_what_makes_latency_a_cost():
    space = a_space()

    assert resource_cost(space.unpruned, "latency") > 0
    assert resource_cost(Space.of(space.model, KINDS, 4.0).unpruned, "latency") == 0
