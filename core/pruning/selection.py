"""From scores to a structure that meets a budget exactly, or several at once.

Units are put into one order, best first; the choice is the longest prefix of that order whose exact
cost fits. So the choice of a smaller budget is part of that of a larger one, and the first unit
left out would exceed the budget. A head of a tiny model is more than 1 % of its FLOPs, so the
remaining budget may then be filled with smaller units; choices are no longer nested then.

One order meets one budget tightly. For several budgets it is reweighted by what units cost of each
resource, as core/pruning/multi_budget.py describes; choices are not nested then, either.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.config.pruning import AxisKind, PruningConfig, Resource
from core.conformer.axes import Cost, enclosing_axes
from core.pruning.multi_budget import orders_meeting_budgets
from core.pruning.space import Choice, Space, resource_cost, unit_share

# Shares differ by less than this only from rounding.
ROUNDING = 1e-12
# A budget binds if its slack is at most this: a unit of a tiny model may cost more than 1 %.
TIGHT = 0.02
ROUNDED: tuple[AxisKind, ...] = ("width", "inner", "channel", "frontend")
"""Kinds whose numbers of units are sizes of matrices."""

Scores = Mapping[str, Float[Tensor, " units"]]
"""A score for each unit, by axis, comparable across axes; higher stays longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A share of a resource of the unpruned model to keep."""

    keep: float
    resource: Resource

    def slack(self, space: Space, cost: Cost) -> float:
        """Return the share of the unpruned model that this cost leaves; negative if exceeded."""
        whole = float(resource_cost(space.unpruned, self.resource))
        return self.keep - float(resource_cost(cost, self.resource)) / whole


@dataclass(frozen=True, slots=True)
class Unit:
    axis: str
    index: int


Step = tuple[Unit, ...]
"""Units of one axis that are kept or removed together."""


def order(space: Space, scores: Scores) -> list[Unit]:
    """Return all prunable units, best first, those that must stay before all others.

    A unit scores no higher than its module, and a module no higher than its block. So a module
    opens with its best unit and grows one unit at a time, and is never added as a whole.

    Example: a module of score 0.5 with units of scores 0.9 and 0.2. The first unit counts as 0.5,
    the second as 0.2; the module itself does not appear in the order.
    """
    ranked: list[tuple[float, float, int, Unit]] = []
    scored = [axis for axis in space.prunable if axis.name in scores]
    above = enclosing_axes(space.axes)
    holders = {name for axis in scored for name in above[axis.name]}
    for axis in scored:
        if axis.name in holders:
            continue  # it opens with its first unit, and closes with its last
        best = own = scores[axis.name].double()
        for name in above[axis.name]:
            best = torch.minimum(best, scores[name].double()) if name in scores else best
        must_stay = set(own.argsort(descending=True, stable=True)[: axis.floor].tolist())
        for i, (value, tie) in enumerate(zip(best.tolist(), own.tolist(), strict=True)):
            first = float("inf") if i in must_stay else value
            # Units that their module's score holds down are equal in `first`: their own scores
            # decide.
            ranked.append((-first, -tie, len(ranked), Unit(axis.name, i)))
    return [unit for *_, unit in sorted(ranked, key=lambda entry: entry[:3])]


@dataclass(frozen=True, kw_only=True)  # slots have no room for cached properties
class NestedOrder:
    """An order of steps, and the cost of the model that keeps some of them."""

    space: Space
    steps: Sequence[Step]
    """Best first."""
    floors: int
    """The number of first steps that must stay."""

    @classmethod
    def of(cls, space: Space, scores: Scores, multiple_of: int = 1) -> "NestedOrder":
        """Group units in steps of `multiple_of`, each placed at the position of its middle unit.

        A head is a step of its own, as is a module or a block.

        Example: channels at positions 0, 3, 4 and 9 of the order with `multiple_of` = 2 become two
        steps, at positions 0 and 4: the lower middle unit of each pair decides.

        Args:
            space: the model's axes and costs.
            scores: of each unit.
            multiple_of: units per step, for the kinds in `ROUNDED`.
        """
        # Phase 1: each axis's units with their positions in the common order. Phase 2: steps of
        # units.
        by_axis: dict[str, list[tuple[int, Unit]]] = {}
        for position, unit in enumerate(order(space, scores)):
            by_axis.setdefault(unit.axis, []).append((position, unit))
        placed: list[tuple[bool, int, Step]] = []
        for axis in (axis for axis in space.axes if axis.name in by_axis):
            size = multiple_of if axis.kind in ROUNDED else 1
            positions, units = zip(*by_axis[axis.name], strict=True)
            for i in range(0, len(units), size):
                step = units[i : i + size]
                placed.append((i >= axis.floor, positions[i + (len(step) - 1) // 2], step))
        placed.sort(key=lambda entry: entry[:2])
        floors = sum(not may_go for may_go, _, _ in placed)
        return cls(space=space, steps=[step for *_, step in placed], floors=floors)

    @cached_property
    def axis_and_size(
        self,
    ) -> tuple[list[str], Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """Names of the axes; the number of each step's axis; the number of units in each step."""
        names = list(dict.fromkeys(step[0].axis for step in self.steps))
        number = {name: i for i, name in enumerate(names)}
        axes = np.array([number[step[0].axis] for step in self.steps], dtype=int)
        return names, axes, np.array([len(step) for step in self.steps], dtype=int)

    def cost(self, numbers: Sequence[int]) -> Cost:
        """Return the exact cost of the model that keeps the steps of these numbers."""
        names, axes, sizes = self.axis_and_size
        indices = np.array(numbers, dtype=int)
        counts = np.bincount(axes[indices], weights=sizes[indices], minlength=len(names))
        units_by_axis = dict(zip(names, counts.astype(int).tolist(), strict=True))
        return self.space.counted_cost(close_empty(self.space, units_by_axis))

    def choice(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rest = set(range(len(self.steps))) - set(numbers)
        units = [unit for number in (*numbers, *rest) for unit in self.steps[number]]
        return prefix_choice(self.space, units, sum(len(self.steps[number]) for number in numbers))


def choose(
    space: Space,
    scores: Scores,
    budget: Budget,
    also: Sequence[Budget] = (),
    *,
    is_filled: bool = False,
    multiple_of: int = 1,
) -> dict[str, Tensor]:
    """Return the longest prefix of the order that meets all budgets exactly.

    Args:
        space: the model's axes and costs.
        scores: of each unit.
        budget: the share to keep.
        also: budgets of other resources. All are met, and each tightly if an order of the units'
            mixes of resources does that; where one cannot be met tightly, more is removed.
        is_filled: whether to continue down the order with every unit that still fits: no removed
            unit could come back, but choices are no longer nested.
        multiple_of: keep a multiple of this many units of an axis, heads excepted, unless even the
            units that must stay would then exceed a budget.

    Raises:
        ValueError: if even the units that must stay cost more than a budget.
    """
    budgets = (budget, *also)
    nested = NestedOrder.of(space, scores, multiple_of)
    if multiple_of > 1 and not _fits(nested, range(nested.floors), budgets):
        nested = NestedOrder.of(space, scores)
    _check_floors(nested, budgets)
    best: list[int] = []
    # An order in which all budgets bind would be best. If every order leaves one of them a slack
    # above `TIGHT`, orders for fewer budgets follow; the others are then met with slack.
    for binding in _subsets(budgets):
        candidates = [
            _steps_within(nested, numbers, budgets, is_filled=is_filled)
            for numbers in _orders(nested, binding)
        ]
        slack = [
            max(b.slack(space, nested.cost(candidate)) for b in binding) for candidate in candidates
        ]
        best = candidates[slack.index(min(slack))]
        if min(slack) <= TIGHT:
            break
    return nested.choice(best)


def choose_for_target(
    space: Space, scores: Scores, pruning: PruningConfig, target: float
) -> dict[str, Tensor]:
    """Return the choice of a trial when this share of its resource is to be removed.

    Args:
        space: the model's axes and costs.
        scores: of each unit.
        pruning: the resources, their shares and `multiple_of`.
        target: share of the first resource to remove.
    """
    budget, *also = budgets_of(pruning, target)
    return choose(space, scores, budget, also, is_filled=True, multiple_of=pruning.multiple_of)


def budgets_of(pruning: PruningConfig, target: float) -> list[Budget]:
    """Return the budget of each resource; with another target than the config's, all scale.

    Below the config's target the shares to remove scale alike, above it the shares to keep. For
    example, with a target of 0.5 and also 0.4 of the parameters: a target of 0.25 halves the shares
    to remove (0.25 and 0.2), one of 0.75 halves the shares to keep (0.25 and 0.3).
    """
    first = pruning.target_sparsity
    if target < first:
        shares = {name: share * target / first for name, share in pruning.targets.items()}
    else:
        less = (1 - target) / (1 - first)
        shares = {name: 1 - (1 - share) * less for name, share in pruning.targets.items()}
    return [Budget(keep=1 - share, resource=name) for name, share in shares.items()]


def uniform_share(space: Space, target: float, resource: Resource) -> float:
    """Return the share of units that every axis keeps when all keep the same share."""

    def removed_share(share: float) -> float:
        mask = {axis.name: torch.full((axis.size,), share).double() for axis in space.units}
        return float(space.sparsity(space.mask_cost(mask), resource))

    # Removed at `low` is more than the target, at `high` at most the target; 50 halvings leave
    # 1e-15.
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if removed_share(middle) > target else (low, middle)
    return high


def prefix_choice(space: Space, units: list[Unit], length: int) -> dict[str, Tensor]:
    """Return the choice that keeps the first `length` units and drops all others of their axes.

    A prunable block without open modules closes, too.
    """
    choice = space.open_choice()
    for name in {unit.axis for unit in units}:
        choice[name] = torch.zeros_like(choice[name])
    for unit in units[:length]:
        choice[unit.axis][unit.index] = True
    return choice_without_empty(space, choice)


def choice_without_empty(space: Space, choice: Choice) -> dict[str, Tensor]:
    """Return a choice in which modules and prunable blocks without open units are closed."""
    closed = dict(choice)
    inside: dict[str | None, list[str]] = {}
    for axis in space.axes:
        inside.setdefault(axis.parent, []).append(axis.name)
    # A block comes before its modules, and they before their units.
    for axis in reversed(space.axes):
        names = inside.get(axis.name)
        is_empty = names and not any(closed[name].any() for name in names)
        if is_empty and (axis.kind != "block" or axis in space.prunable):
            closed[axis.name] = torch.zeros_like(closed[axis.name])
    return closed


def depth_order(space: Space, scores: Scores, choice: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the kept blocks, by their new numbers, best first; () without scores of blocks."""
    blocks = [axis.name for axis in space.axes if axis.kind == "block" and choice[axis.name].any()]
    if not all(name in scores for name in blocks):
        return ()
    return tuple(sorted(range(len(blocks)), key=lambda i: -float(scores[blocks[i]])))


def close_empty(space: Space, counts: Mapping[str, int]) -> dict[str, int]:
    """Return the number of open units by axis; modules and blocks without open units close."""
    remaining = {axis.name: axis.size for axis in space.axes} | dict(counts)
    inside: dict[str | None, list[str]] = {}
    for axis in space.axes:
        inside.setdefault(axis.parent, []).append(axis.name)
    for axis in reversed(space.axes):
        is_empty = axis.name in inside and not any(remaining[name] for name in inside[axis.name])
        if is_empty and (axis.kind != "block" or axis in space.prunable):
            remaining[axis.name] = 0
    return remaining


def _check_floors(nested: NestedOrder, budgets: Sequence[Budget]) -> None:
    lowest = nested.cost(range(nested.floors))
    for budget, is_first in zip(budgets, (True, *[False] * len(budgets)), strict=False):
        slack = budget.slack(nested.space, lowest)
        if slack < -ROUNDING:
            name = "target_sparsity" if is_first else f"also.{budget.resource}"
            raise ValueError(
                f"`pruning.{name}` must be at most {1 - budget.keep + slack:.4f} of"
                f" {budget.resource} for this model and these axes, but is"
                f" {1 - budget.keep:.4f} instead"
            )


def _subsets(budgets: Sequence[Budget]) -> Iterator[tuple[Budget, ...]]:
    """Yield the subsets of budgets that may bind together, largest first."""
    for size in range(len(budgets), 0, -1):
        yield from combinations(budgets, size)


def _orders(nested: NestedOrder, binding: Sequence[Budget]) -> Iterator[list[int]]:
    """Yield orders, as step numbers, in which these budgets bind at once, or nearly.

    Example: budgets of 50 % of FLOPs and 60 % of parameters. Each order is cut where the FLOPs
    bind; `excess` is then how much of the parameters is used beyond 60 %. The order is reweighted
    until that is about 0.
    """
    if len(binding) == 1:
        yield list(range(len(nested.steps)))
        return
    space = nested.space
    # The first one decides where an order is cut, which asks for the cost of many prefixes: it is
    # not latency if another budget binds.
    first, *others = sorted(binding, key=lambda budget: budget.resource == "latency")
    quick = nested  # interpolating the table takes longer than counting
    if first.resource != "latency":
        quick = replace(nested, space=replace(space, latency=None))
    names = [step[0].axis for step in nested.steps]
    mixes = np.stack([_mix(space, names, first.resource, other.resource) for other in others])

    def excess(numbers: Sequence[int]) -> list[float]:
        cost = nested.cost(_longest(quick, numbers, [first]))
        return [-other.slack(space, cost) for other in others]

    yield from orders_meeting_budgets(mixes, excess, fixed=nested.floors)


def _mix(
    space: Space, names: Sequence[str], first: Resource, other: Resource
) -> Float[np.ndarray, " steps"]:
    """Return the other resource's part in the cost of each step, both as shares of the model.

    A unit with 1 % of the FLOPs and 3 % of the parameters has a mix of 0.75.
    """

    def mix(name: str) -> float:
        a, b = unit_share(space, name, first), unit_share(space, name, other)
        return b / (a + b) if a + b > 0 else 0.5

    of_axis = {name: mix(name) for name in set(names)}
    return np.array([of_axis[name] for name in names])


def _steps_within(
    nested: NestedOrder, numbers: Sequence[int], budgets: Sequence[Budget], *, is_filled: bool
) -> list[int]:
    prefix = _longest(nested, numbers, budgets)
    return _fill(nested, prefix, numbers[len(prefix) :], budgets) if is_filled else prefix


def _fill(
    nested: NestedOrder, chosen: list[int], rest: Sequence[int], budgets: Sequence[Budget]
) -> list[int]:
    """Add steps that fit, best first; if one of an axis does not, no later one of it does."""
    too_large: set[str] = set()
    for number in rest:
        axis = nested.steps[number][0].axis
        if axis in too_large:
            continue
        if _fits(nested, [*chosen, number], budgets):
            chosen = [*chosen, number]
        else:
            too_large.add(axis)
    return chosen


def _longest(nested: NestedOrder, numbers: Sequence[int], budgets: Sequence[Budget]) -> list[int]:
    """Return the longest prefix that fits, by bisection: a longer prefix never costs less."""
    # The first `low` steps fit, as was checked of the floors; more than `high` do not.
    low, high = nested.floors, len(numbers)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _fits(nested, numbers[:middle], budgets)
        low, high = (middle, high) if fits else (low, middle - 1)
    return list(numbers[:low])


def _fits(nested: NestedOrder, numbers: Sequence[int], budgets: Sequence[Budget]) -> bool:
    cost = nested.cost(numbers)
    return all(budget.slack(nested.space, cost) >= -ROUNDING for budget in budgets)
