"""Space: all that can be cut from a model, with the cost of any choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from core.config import AxisKind, Resource
from core.conformer.axes import Axis, Cost, Mask, Number, around
from core.conformer.gate import resolved
from core.conformer.model import Conformer

Choice = Mapping[str, Bool[Tensor, " units"]]
"""Which units stay, by axis: one entry for every axis of the space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The axes of a model, those that may be cut among them, and what choices cost."""

    model: Conformer
    """Asked for costs only: its weights play no part."""
    axes: tuple[Axis, ...]
    prunable: tuple[Axis, ...]
    seconds: float
    """The utterance length at which FLOPs are stated."""
    unpruned: Cost
    """Of the model that was brought: what is removed is a share of it."""

    @classmethod
    def of(
        cls,
        model: Conformer,
        kinds: Sequence[AxisKind],
        seconds: float,
        *,
        unpruned: Conformer | None = None,
    ) -> "Space":
        """The space of a model, whose costs are shares of another's if that is given."""
        axes = tuple(model.axes())
        prunable = tuple(axis for axis in axes if axis.kind in kinds)
        cost = whole_cost(model if unpruned is None else unpruned, seconds)
        return cls(model=model, axes=axes, prunable=prunable, seconds=seconds, unpruned=cost)

    @property
    def units(self) -> tuple[Axis, ...]:
        """Of the prunable axes those in which no other prunable one lies: what an order ranks."""
        above = around(self.axes)
        holders = {name for axis in self.prunable for name in above[axis.name]}
        return tuple(axis for axis in self.prunable if axis.name not in holders)

    def open_choice(self) -> dict[str, Tensor]:
        return {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in self.axes}

    def choice_of(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """The choice that keeps the units of these numbers; axes that are not named stay whole."""
        choice = self.open_choice()
        for name, numbers in kept.items():
            choice[name].zero_()[list(numbers)] = True
        return choice

    def choice_cost(self, choice: Choice) -> Cost:
        """Exact cost of the model that this choice extracts."""
        whole = self.open_choice() | {name: units.float() for name, units in choice.items()}
        alive = resolved(self.axes, whole)
        return self.counted_cost({name: int((z != 0).sum()) for name, z in alive.items()})

    def mask_cost(self, mask: Mask) -> Cost:
        """Expected cost of independent gates that are open with these probabilities.

        Costs are multilinear in the gates, so the expectation of a product is the product of
        expectations.
        """
        return self.counted_cost({name: p.sum() for name, p in mask.items()})

    def counted_cost(self, counts: Mapping[str, Number]) -> Cost:
        """Cost of so many units an axis; axes that are not named are whole."""
        whole: dict[str, Number] = {axis.name: axis.size for axis in self.axes}
        return self.model.cost({**whole, **counts}, self.seconds)

    def sparsity(self, cost: Cost, resource: Resource) -> float | Tensor:
        """Share of the unpruned model's resource that this cost does without."""
        return 1 - of_resource(cost, resource) / of_resource(self.unpruned, resource)


def whole_cost(model: Conformer, seconds: float) -> Cost:
    """Exact cost of a dense model as it is."""
    return model.cost({axis.name: axis.size for axis in model.axes()}, seconds)


def of_resource(cost: Cost, resource: Resource) -> Number:
    return cost.flops if resource == "flops" else cost.params
