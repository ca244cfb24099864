"""From scores to a structure that meets a budget exactly.

Units are put into one order, best first; the choice is the longest beginning of that order whose
exact cost fits. So choices are nested in the budget, and the first unit left out would exceed it. A
head of a tiny model is more than 1 % of its FLOPs, so what such a unit leaves free may then be
filled with smaller ones, at the price of being nested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from core.config import Resource
from core.conformer.axes import around
from core.pruning.space import Space, of_resource

Scores = Mapping[str, Float[Tensor, " units"]]
"""How much each unit is worth keeping, by axis; comparable across axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A share of a resource of the unpruned model to keep."""

    keep: float
    resource: Resource


@dataclass(frozen=True, slots=True)
class Unit:
    axis: str
    index: int


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


def choose(
    space: Space, scores: Scores, budget: Budget, *, is_filled: bool = False
) -> dict[str, Tensor]:
    """The longest beginning of the order that fits; exact, and nested in the budget.

    Args:
        space: What can be cut.
        scores: What each unit is worth.
        budget: What may stay.
        is_filled: Go on down the order with every unit that still fits: no removed unit could come
            back, but choices are no longer nested.

    Raises:
        ValueError: if even the units that must stay cost more than the budget.
    """
    units = order(space, scores)
    limit = budget.keep * float(of_resource(space.unpruned, budget.resource)) + 1e-6

    def fits(length: int) -> bool:
        cost = space.choice_cost(beginning(space, units, length))
        return float(of_resource(cost, budget.resource)) <= limit

    floors = sum(axis.floor for axis in space.prunable if axis.name in scores)
    if not fits(floors):
        lowest = space.choice_cost(beginning(space, units, floors))
        share = float(of_resource(lowest, budget.resource)) / limit * budget.keep
        raise ValueError(
            f"`pruning.target_sparsity` must be at most {1 - share:.4f} of {budget.resource} for"
            f" this model and these axes, but is {1 - budget.keep:.4f} instead"
        )
    length = _longest(fits, floors, len(units))
    choice = beginning(space, units, length)
    return _filled(space, choice, units[length:], limit, budget.resource) if is_filled else choice


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


def beginning(space: Space, units: list[Unit], length: int) -> dict[str, Tensor]:
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


def _filled(
    space: Space,
    choice: dict[str, Tensor],
    rest: list[Unit],
    limit: float,
    resource: Resource,
) -> dict[str, Tensor]:
    """Add what fits, best first; once a unit is too much, so are all later ones of its axis."""
    above = around(space.axes)
    too_large: set[str] = set()
    for unit in rest:
        if unit.axis in too_large:
            continue
        more = {unit.axis: choice[unit.axis].clone()}
        more[unit.axis][unit.index] = True
        more |= {name: torch.ones_like(choice[name]) for name in above[unit.axis]}
        if float(of_resource(space.choice_cost({**choice, **more}), resource)) <= limit:
            choice = {**choice, **more}
        else:
            too_large.add(unit.axis)
    return choice


def _longest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest length that fits; lengths that fit come first, as adding never costs less."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
