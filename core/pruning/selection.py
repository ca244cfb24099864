"""From scores to a structure that meets a budget exactly, or several at once.

Units are put into one order, best first; the choice is the longest beginning of that order whose
exact cost fits. So choices are nested in the budget, and the first unit left out would exceed it. A
head of a tiny model is more than 1 % of its FLOPs, so what such a unit leaves free may then be
filled with smaller ones, at the price of being nested.

One order meets one budget tightly. For several it is tilted by what units cost of each resource, as
core/pruning/multi_budget.py says; choices are then no longer nested.
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
from core.conformer.axes import Cost, around
from core.pruning.multi_budget import orders_meeting_budgets
from core.pruning.space import Space, of_resource, unit_share

# Shares that are equal but for rounding.
ROUNDING = 1e-12
# A budget binds if no more is left: a unit of a tiny model may be more than 1 % of it.
TIGHT = 0.02
ROUNDED: tuple[AxisKind, ...] = ("width", "inner", "channel", "frontend")
"""Kinds whose kept numbers are sizes of matrices."""

Scores = Mapping[str, Float[Tensor, " units"]]
"""How much each unit is worth keeping, by axis; comparable across axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A share of a resource of the unpruned model to keep."""

    keep: float
    resource: Resource

    def left(self, space: Space, cost: Cost) -> float:
        """The share of the unpruned model that such a cost leaves free; less than 0 is too much."""
        whole = float(of_resource(space.unpruned, self.resource))
        return self.keep - float(of_resource(cost, self.resource)) / whole


@dataclass(frozen=True, slots=True)
class Unit:
    axis: str
    index: int


Step = tuple[Unit, ...]
"""Units of one axis that come and go together."""


def order(space: Space, scores: Scores) -> list[Unit]:
    """All units that may go, best first, those that must stay before all others.

    A unit is worth no more than its module, nor that than its block, so a module opens with its
    best unit and grows one unit at a time: the order never has to add a whole module at once.
    """
    ranked: list[tuple[float, float, int, Unit]] = []
    scored = [axis for axis in space.prunable if axis.name in scores]
    above = around(space.axes)
    holders = {name for axis in scored for name in above[axis.name]}
    for axis in scored:
        if axis.name in holders:
            continue  # it closes with its last unit, and opens with its first
        best = own = scores[axis.name].double()
        for name in above[axis.name]:
            best = torch.minimum(best, scores[name].double()) if name in scores else best
        must_stay = set(own.argsort(descending=True, stable=True)[: axis.floor].tolist())
        for i, (value, tie) in enumerate(zip(best.tolist(), own.tolist(), strict=True)):
            first = float("inf") if i in must_stay else value
            ranked.append((-first, -tie, len(ranked), Unit(axis.name, i)))
    return [unit for *_, unit in sorted(ranked, key=lambda entry: entry[:3])]


@dataclass(frozen=True, kw_only=True)  # slots leave no room for what is cached
class NestedOrder:
    """An order of steps, and what the model costs that keeps some of them."""

    space: Space
    steps: Sequence[Step]
    """Best first."""
    floors: int
    """So many of the first must stay."""

    @classmethod
    def of(cls, space: Space, scores: Scores, multiple_of: int = 1) -> "NestedOrder":
        """Units in steps of `multiple_of`, each where the middle one of its units stands.

        A head is a step of its own, as is a module or a block.
        """
        by_axis: dict[str, list[tuple[int, Unit]]] = {}
        for place, unit in enumerate(order(space, scores)):
            by_axis.setdefault(unit.axis, []).append((place, unit))
        placed: list[tuple[bool, int, Step]] = []
        for axis in (axis for axis in space.axes if axis.name in by_axis):
            size = multiple_of if axis.kind in ROUNDED else 1
            places, units = zip(*by_axis[axis.name], strict=True)
            for i in range(0, len(units), size):
                step = units[i : i + size]
                placed.append((i >= axis.floor, places[i + (len(step) - 1) // 2], step))
        placed.sort(key=lambda entry: entry[:2])
        floors = sum(not may_go for may_go, _, _ in placed)
        return cls(space=space, steps=[step for *_, step in placed], floors=floors)

    @cached_property
    def places(self) -> tuple[list[str], Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """Names of the axes, and of each step the number of its axis and of its units."""
        names = list(dict.fromkeys(step[0].axis for step in self.steps))
        number = {name: i for i, name in enumerate(names)}
        axes = np.array([number[step[0].axis] for step in self.steps], dtype=int)
        return names, axes, np.array([len(step) for step in self.steps], dtype=int)

    def cost(self, kept: Sequence[int]) -> Cost:
        """Exact cost of the model that keeps the steps of these numbers."""
        names, axes, sizes = self.places
        numbers = np.array(kept, dtype=int)
        counts = np.bincount(axes[numbers], weights=sizes[numbers], minlength=len(names))
        found = dict(zip(names, counts.astype(int).tolist(), strict=True))
        return self.space.counted_cost(close_empty(self.space, found))

    def choice(self, kept: Sequence[int]) -> dict[str, Tensor]:
        rest = set(range(len(self.steps))) - set(kept)
        units = [unit for number in (*kept, *rest) for unit in self.steps[number]]
        return prefix_choice(self.space, units, sum(len(self.steps[number]) for number in kept))


def choose(
    space: Space,
    scores: Scores,
    budget: Budget,
    also: Sequence[Budget] = (),
    *,
    is_filled: bool = False,
    multiple_of: int = 1,
) -> dict[str, Tensor]:
    """The longest beginning of the order that fits; exact, and nested in the budget.

    Args:
        space: What can be cut.
        scores: What each unit is worth.
        budget: What may stay.
        also: What may stay of other resources. All are met, and each tightly if any order of the
            units' mixes of resources does that; where some cannot be met tightly, more than was
            asked for is removed of them.
        is_filled: Go on down the order with every unit that still fits: no removed unit could come
            back, but choices are no longer nested.
        multiple_of: Units of an axis come and go so many at a time, heads excepted, unless even
            those that must stay would then exceed a budget.

    Raises:
        ValueError: if even the units that must stay cost more than a budget.
    """
    budgets = (budget, *also)
    ladder = NestedOrder.of(space, scores, multiple_of)
    if multiple_of > 1 and not _fits(ladder, range(ladder.floors), budgets):
        ladder = NestedOrder.of(space, scores)
    _check_floors(ladder, budgets)
    best: list[int] = []
    for binding in _subsets(budgets):
        found = [
            _kept(ladder, numbers, budgets, is_filled=is_filled)
            for numbers in _orders(ladder, binding)
        ]
        left = [max(b.left(space, ladder.cost(kept)) for b in binding) for kept in found]
        best = found[left.index(min(left))]
        if min(left) <= TIGHT:
            break
    return ladder.choice(best)


def choose_for_target(
    space: Space, scores: Scores, pruning: PruningConfig, target: float
) -> dict[str, Tensor]:
    """The choice that a trial makes when such a share of its resource is to be removed."""
    budget, *also = budgets_of(pruning, target)
    return choose(space, scores, budget, also, is_filled=True, multiple_of=pruning.multiple_of)


def budgets_of(pruning: PruningConfig, target: float) -> list[Budget]:
    """What may stay of each resource; where another target than the config's is meant, all move.

    Below it the shares removed shrink alike, above it the shares kept.
    """
    first = pruning.target_sparsity
    if target < first:
        shares = {name: share * target / first for name, share in pruning.targets.items()}
    else:
        less = (1 - target) / (1 - first)
        shares = {name: 1 - (1 - share) * less for name, share in pruning.targets.items()}
    return [Budget(keep=1 - share, resource=name) for name, share in shares.items()]


def uniform_share(space: Space, target: float, resource: Resource) -> float:
    """The share of its units that every axis keeps, all alike, when such a share is removed."""

    def removed(share: float) -> float:
        mask = {axis.name: torch.full((axis.size,), share).double() for axis in space.units}
        return float(space.sparsity(space.mask_cost(mask), resource))

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) > target else (low, middle)
    return high


def prefix_choice(space: Space, units: list[Unit], length: int) -> dict[str, Tensor]:
    """The choice that keeps the first units of an order, and of the axes it orders nothing else.

    A block that may go closes, too, when nothing is left in it.
    """
    choice = space.open_choice()
    for name in {unit.axis for unit in units}:
        choice[name] = torch.zeros_like(choice[name])
    for unit in units[:length]:
        choice[unit.axis][unit.index] = True
    inside: dict[str | None, list[str]] = {}
    for axis in space.axes:
        inside.setdefault(axis.parent, []).append(axis.name)
    for axis in reversed(space.axes):  # a block stands before its modules, they before their units
        names = inside.get(axis.name)
        is_empty = names and not any(choice[name].any() for name in names)
        if is_empty and (axis.kind != "block" or axis in space.prunable):
            choice[axis.name] = torch.zeros_like(choice[axis.name])
    return choice


def depth_order(space: Space, scores: Scores, choice: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The blocks that a choice keeps, by their new numbers, best first; none without scores."""
    blocks = [axis.name for axis in space.axes if axis.kind == "block" and choice[axis.name].any()]
    if not all(name in scores for name in blocks):
        return ()
    return tuple(sorted(range(len(blocks)), key=lambda i: -float(scores[blocks[i]])))


def close_empty(space: Space, counts: Mapping[str, int]) -> dict[str, int]:
    """Units that stay, by axis, where modules and blocks close in which nothing is left."""
    kept = {axis.name: axis.size for axis in space.axes} | dict(counts)
    inside: dict[str | None, list[str]] = {}
    for axis in space.axes:
        inside.setdefault(axis.parent, []).append(axis.name)
    for axis in reversed(space.axes):
        is_empty = axis.name in inside and not any(kept[name] for name in inside[axis.name])
        if is_empty and (axis.kind != "block" or axis in space.prunable):
            kept[axis.name] = 0
    return kept


def _check_floors(ladder: NestedOrder, budgets: Sequence[Budget]) -> None:
    lowest = ladder.cost(range(ladder.floors))
    for budget, is_first in zip(budgets, (True, *[False] * len(budgets)), strict=False):
        left = budget.left(ladder.space, lowest)
        if left < -ROUNDING:
            name = "target_sparsity" if is_first else f"also.{budget.resource}"
            raise ValueError(
                f"`pruning.{name}` must be at most {1 - budget.keep + left:.4f} of"
                f" {budget.resource} for this model and these axes, but is"
                f" {1 - budget.keep:.4f} instead"
            )


def _subsets(budgets: Sequence[Budget]) -> Iterator[tuple[Budget, ...]]:
    """Those that may bind together, as many as can first."""
    for size in range(len(budgets), 0, -1):
        yield from combinations(budgets, size)


def _orders(ladder: NestedOrder, binding: Sequence[Budget]) -> Iterator[list[int]]:
    """Numbers of the steps in orders by which these budgets bind at once, or nearly."""
    if len(binding) == 1:
        yield list(range(len(ladder.steps)))
        return
    space = ladder.space
    first, *others = sorted(binding, key=lambda budget: budget.resource == "latency")
    quick = ladder  # reading the table takes longer than all else that is counted
    if first.resource != "latency":
        quick = replace(ladder, space=replace(space, latency=None))
    names = [step[0].axis for step in ladder.steps]
    mixes = np.stack([_mix(space, names, first.resource, other.resource) for other in others])

    def exceeded(numbers: Sequence[int]) -> list[float]:
        cost = ladder.cost(_longest(quick, numbers, [first]))
        return [-other.left(space, cost) for other in others]

    yield from orders_meeting_budgets(mixes, exceeded, fixed=ladder.floors)


def _mix(
    space: Space, names: Sequence[str], first: Resource, other: Resource
) -> Float[np.ndarray, " steps"]:
    """Of what units cost, as shares of the model, how much is of the other resource."""

    def mix(name: str) -> float:
        a, b = unit_share(space, name, first), unit_share(space, name, other)
        return b / (a + b) if a + b > 0 else 0.5

    of_axis = {name: mix(name) for name in set(names)}
    return np.array([of_axis[name] for name in names])


def _kept(
    ladder: NestedOrder, numbers: Sequence[int], budgets: Sequence[Budget], *, is_filled: bool
) -> list[int]:
    kept = _longest(ladder, numbers, budgets)
    return _filled(ladder, kept, numbers[len(kept) :], budgets) if is_filled else kept


def _filled(
    ladder: NestedOrder, kept: list[int], rest: Sequence[int], budgets: Sequence[Budget]
) -> list[int]:
    """Add what fits, best first; once a unit is too much, so are all later ones of its axis."""
    too_large: set[str] = set()
    for number in rest:
        axis = ladder.steps[number][0].axis
        if axis in too_large:
            continue
        if _fits(ladder, [*kept, number], budgets):
            kept = [*kept, number]
        else:
            too_large.add(axis)
    return kept


def _longest(ladder: NestedOrder, numbers: Sequence[int], budgets: Sequence[Budget]) -> list[int]:
    """The longest beginning that fits; those that fit come first, as adding never costs less."""
    low, high = ladder.floors, len(numbers)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _fits(ladder, numbers[:middle], budgets)
        low, high = (middle, high) if fits else (low, middle - 1)
    return list(numbers[:low])


def _fits(ladder: NestedOrder, kept: Sequence[int], budgets: Sequence[Budget]) -> bool:
    cost = ladder.cost(kept)
    return all(budget.left(ladder.space, cost) >= -ROUNDING for budget in budgets)
