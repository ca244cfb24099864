"""Law 3: the chosen structure meets its budget exactly, and is nested in it."""

from itertools import pairwise

import pytest
import torch

from core.config.trial import ModelConfig
from core.conformer.axes import enclosing_axes
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.pruning.selection import Budget, choose, depth_order, order, prefix_choice
from core.pruning.space import Space, resource_cost
from core.testing import deeper, small_model

KINDS = ["frontend", "width", "head", "inner", "channel", "module"]
WITH_BLOCKS = [*KINDS, "block"]
RESOURCES = ["flops", "params"]
KEEPS = [0.95, 0.7, 0.5, 0.3]


def a_space(kinds=KINDS):
    return Space.of(small_model(shape=deeper(4)), kinds, 4.0)


def some_scores(space, seed=0):
    torch.manual_seed(seed)
    return {
        axis.name: torch.randn(axis.size) + (1.0 if axis.is_whole or axis.kind == "width" else 0.0)
        for axis in space.prunable
    }


def spent(space, choice, resource):
    return resource_cost(space.choice_cost(choice), resource)


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("is_filled", [False, True])
@pytest.mark.parametrize("kinds", [KINDS, WITH_BLOCKS])
def test_a_choice_meets_its_budget_and_the_best_removed_unit_would_exceed_it(
    resource, keep, is_filled, kinds
):
    space = a_space(kinds)
    scores = some_scores(space)
    limit = keep * resource_cost(space.unpruned, resource)

    choice = choose(space, scores, Budget(keep=keep, resource=resource), is_filled=is_filled)

    assert spent(space, choice, resource) <= limit
    best = next(u for u in order(space, scores) if not choice[u.axis][u.index])
    assert spent(space, opened(space, choice, best), resource) > limit


@pytest.mark.parametrize("resource", RESOURCES)
def test_once_filled_no_removed_unit_at_all_could_come_back(resource):
    space = a_space()
    scores = some_scores(space)
    limit = 0.5 * resource_cost(space.unpruned, resource)

    choice = choose(space, scores, Budget(keep=0.5, resource=resource), is_filled=True)

    removed = [u for u in order(space, scores) if not choice[u.axis][u.index]]
    assert removed
    for unit in removed:
        assert spent(space, opened(space, choice, unit), resource) > limit


def opened(space, choice, unit):
    more = {name: units.clone() for name, units in choice.items()}
    more[unit.axis][unit.index] = True
    for name in enclosing_axes(space.axes)[unit.axis]:
        more[name][:] = True
    return more


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("kinds", [KINDS, WITH_BLOCKS])
def test_choices_are_nested_in_the_budget(resource, kinds):
    space = a_space(kinds)
    scores = some_scores(space)

    choices = [choose(space, scores, Budget(keep=k, resource=resource)) for k in KEEPS]

    for larger, smaller in pairwise(choices):
        for name, units in smaller.items():
            assert (larger[name] | ~units).all(), name


def test_a_module_opens_with_its_best_unit_and_not_before_its_own_worth():
    space = a_space(["inner", "module"])
    scores = {axis.name: torch.linspace(1, 2, axis.size) for axis in space.prunable}
    scores["blocks.0.ff1"] = torch.tensor([-5.0])

    units = order(space, scores)

    last = units[-space.model.shape.blocks[0].ff1 :]
    assert {unit.axis for unit in last} == {"blocks.0.ff1.inner"}
    assert [unit.index for unit in last] == list(range(11, -1, -1))


def test_a_block_goes_with_the_last_of_its_units_and_comes_with_the_first():
    space = a_space(WITH_BLOCKS)
    scores = some_scores(space)
    scores["blocks.1"] = torch.tensor([-9.0])

    units = order(space, scores)
    inside = [unit.axis.startswith("blocks.1.") for unit in units]
    first = inside.index(True)

    assert all(inside[first:])
    assert not prefix_choice(space, units, first)["blocks.1"].any()
    assert prefix_choice(space, units, first + 1)["blocks.1"].all()


def test_a_block_that_may_not_go_stays_when_nothing_is_left_in_it():
    space = a_space()

    choice = prefix_choice(space, order(space, some_scores(space)), 0)

    assert all(choice[axis.name].all() for axis in space.axes if axis.kind == "block")


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("kept", range(5))
def test_whole_blocks_go_from_the_worst_on_until_the_budget_is_met(resource, kept):
    space = a_space(["block"])
    scores = {f"blocks.{i}": torch.tensor([float(worth)]) for i, worth in enumerate((2, 0, 3, 1))}
    wanted = {f"blocks.{i}" for i in (2, 0, 3, 1)[:kept]}
    of_wanted = {name: torch.tensor([name in wanted]) for name in scores}
    keep = spent(space, of_wanted, resource) / resource_cost(space.unpruned, resource)

    choice = choose(space, scores, Budget(keep=keep, resource=resource))

    assert {name for name in scores if choice[name]} == wanted


@pytest.mark.parametrize(
    ("gone", "expected"), [((), (2, 0, 3, 1)), ((1,), (1, 0, 2)), ((0, 1, 3), (0,)), (range(4), ())]
)
def test_a_choice_ranks_its_blocks_by_their_new_numbers(gone, expected):
    space = a_space(["block"])
    worth = {f"blocks.{i}": torch.tensor([float(w)]) for i, w in ((3, 1), (1, 0), (2, 3), (0, 2))}
    choice = space.open_choice() | {f"blocks.{i}": torch.tensor([False]) for i in gone}

    assert depth_order(space, worth, choice) == expected
    assert depth_order(space, {"width": torch.rand(16)}, choice) == ()


def test_what_an_order_ranks_holds_nothing_else_that_may_go():
    assert {axis.kind for axis in a_space(WITH_BLOCKS).units} == {*KINDS} - {"module"}
    assert {axis.kind for axis in a_space(["block"]).units} == {"block"}
    assert {axis.kind for axis in a_space(["block", "inner"]).units} == {"inner"}


def test_floors_come_first_whatever_they_are_worth():
    space = a_space()
    scores = some_scores(space)
    scores["frontend.sub1"] -= 100.0

    choice = choose(space, scores, Budget(keep=0.2, resource="flops"))

    assert choice["frontend.sub1"].any()
    assert choice["width"].sum() >= 8


def test_a_budget_below_the_floors_is_refused_with_the_lowest_there_is():
    space = a_space()

    with pytest.raises(ValueError, match=r"`pruning.target_sparsity` must be at most 0\.\d+"):
        choose(space, some_scores(space), Budget(keep=0.001, resource="params"))


def test_axes_without_scores_stay_whole():
    space = a_space()
    scores = {"width": torch.rand(16)}

    choice = choose(space, scores, Budget(keep=0.8, resource="params"))

    assert not choice["width"].all()
    assert all(units.all() for name, units in choice.items() if name != "width")


def test_the_empty_beginning_closes_every_module():
    space = a_space()

    choice = prefix_choice(space, order(space, some_scores(space)), 0)

    assert not any(choice[axis.name].any() for axis in space.axes if axis.kind == "module")


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(("size", "seed"), [("tiny", 0), ("tiny", 1), ("small", 2)])
def test_a_filled_choice_lies_within_a_hundredth_of_its_target(size, sparsity, seed):
    with torch.device("meta"):
        model = Conformer(Shape.of(ModelConfig(size=size), vocabulary=100))
    space = Space.of(model, KINDS, 10.0)

    choice = choose(
        space, some_scores(space, seed), Budget(keep=1 - sparsity, resource="flops"), is_filled=True
    )

    realised = space.sparsity(space.choice_cost(choice), "flops")
    assert sparsity <= realised <= sparsity + 0.01
