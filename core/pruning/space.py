"""Space: all that can be cut from a model, with the cost of any choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from core.config.pruning import AxisKind, Resource
from core.conformer.axes import Axis, Cost, Mask, Number, around
from core.conformer.masking import close_empty_modules
from core.conformer.model import Conformer
from core.pruning.latency_table import LatencyTable

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
    latency: LatencyTable | None = None
    """By which time is a resource, too."""

    @classmethod
    def of(
        cls,
        model: Conformer,
        kinds: Sequence[AxisKind],
        seconds: float,
        *,
        unpruned: Conformer | None = None,
        latency: LatencyTable | None = None,
    ) -> "Space":
        """The space of a model, whose costs are shares of another's if that is given.

        Raises:
            ConfigError: if a table of latencies is given that does not know these models.
        """
        axes = tuple(model.axes())
        prunable = tuple(axis for axis in axes if axis.kind in kinds)
        whole = model if unpruned is None else unpruned
        if latency is not None:
            latency.check_fits(model, seconds)
            latency.check_fits(whole, seconds)
        cost = whole_cost(whole, seconds, latency)
        return cls(
            model=model,
            axes=axes,
            prunable=prunable,
            seconds=seconds,
            unpruned=cost,
            latency=latency,
        )

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
        alive = close_empty_modules(self.axes, whole)
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
        kept = {**whole, **counts}
        cost = self.model.cost(kept, self.seconds)
        ms = self.latency.ms(self.axes, kept) if self.latency else 0.0
        return replace(cost, latency=ms)

    def dense_cost(self, model: Conformer) -> Cost:
        """Exact cost of another model as it is: of an extracted one what its choice cost."""
        return whole_cost(model, self.seconds, self.latency)

    def sparsity(self, cost: Cost, resource: Resource) -> float | Tensor:
        """Share of the unpruned model's resource that this cost does without."""
        return 1 - of_resource(cost, resource) / of_resource(self.unpruned, resource)


def whole_cost(model: Conformer, seconds: float, latency: LatencyTable | None = None) -> Cost:
    """Exact cost of a dense model as it is."""
    axes = model.axes()
    counts = {axis.name: axis.size for axis in axes}
    ms = latency.ms(axes, counts) if latency else 0.0
    return replace(model.cost(counts, seconds), latency=ms)


def of_resource(cost: Cost, resource: Resource) -> Number | float:
    """So many parameters, FLOPs or milliseconds; whole numbers of the first two."""
    costs: dict[Resource, Number | float] = {
        "params": cost.params,
        "flops": cost.flops,
        "latency": cost.latency,
    }
    return costs[resource]


def unit_share(space: Space, name: str, resource: Resource) -> float:
    """The share of the unpruned model's resource that one unit of an axis takes."""
    size = {axis.name: axis.size for axis in space.axes}[name]
    whole, less = space.counted_cost({}), space.counted_cost({name: size - 1})
    saved = of_resource(whole, resource) - of_resource(less, resource)
    return float(saved) / float(of_resource(space.unpruned, resource))
