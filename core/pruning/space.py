"""Space: all axes of a model, with the cost of any choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from core.config.pruning import AxisKind, Resource
from core.conformer.axes import Axis, Cost, Mask, Number, enclosing_axes, square_name
from core.conformer.masking import close_empty_modules
from core.conformer.model import Conformer
from core.pruning.latency_table import LatencyTable

Choice = Mapping[str, Bool[Tensor, " units"]]
"""Which units stay, by axis: one entry for every axis of the space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The axes of a model, those that may be cut among them, and what choices cost."""

    model: Conformer
    """Used for its costs alone; its weights are never read."""
    axes: tuple[Axis, ...]
    prunable: tuple[Axis, ...]
    seconds: float
    """The utterance length at which FLOPs are stated."""
    unpruned: Cost
    """The cost of the unpruned model, of which sparsity is a share."""
    latency: LatencyTable | None = None
    """Makes latency a resource."""

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
        """Make the space of a model.

        Args:
            model: to be pruned.
            kinds: the kinds of units that may be removed.
            seconds: the utterance length at which FLOPs are stated.
            unpruned: the model that sparsity refers to; `model` by default.
            latency: makes latency a resource.

        Raises:
            ConfigError: if the latency table does not hold the components of these models.
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
        """Return the prunable axes that hold no other prunable axis: those that an order ranks."""
        above = enclosing_axes(self.axes)
        holders = {name for axis in self.prunable for name in above[axis.name]}
        return tuple(axis for axis in self.prunable if axis.name not in holders)

    def open_choice(self) -> dict[str, Tensor]:
        return {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in self.axes}

    def choice_of(self, numbers_by_axis: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Return the choice that keeps the units of these numbers; axes not named stay whole."""
        choice = self.open_choice()
        for name, numbers in numbers_by_axis.items():
            choice[name].zero_()[list(numbers)] = True
        return choice

    def choice_cost(self, choice: Choice) -> Cost:
        """Return the exact cost of the model that this choice extracts."""
        whole = self.open_choice() | {name: units.float() for name, units in choice.items()}
        # A module without open units costs nothing, not even its norm: extraction drops it.
        active = close_empty_modules(self.axes, whole)
        return self.counted_cost({name: int((z != 0).sum()) for name, z in active.items()})

    def mask_cost(self, mask: Mask) -> Cost:
        """Return the expected cost of independent gates that are open with these probabilities.

        Costs are multilinear in the gates, so the expectation of a product is the product of
        expectations. Units of an LSTM read themselves: their expected square is stated, too.
        """
        # Three inner units at 0.5 in a module at 0.8: 0.8 * 1.5 d expected weights of `up`, as
        # gates are independent.
        numbers = {name: p.sum() for name, p in mask.items()}
        squares = {
            square_name(axis.name): numbers[axis.name].square()
            + (mask[axis.name] * (1 - mask[axis.name])).sum()
            for axis in self.axes
            if axis.kind == "unit" and axis.name in mask
        }
        return self.counted_cost(numbers | squares)

    def counted_cost(self, counts: Mapping[str, Number]) -> Cost:
        """Return the cost of these numbers of units by axis; axes not named are whole."""
        whole: dict[str, Number] = {axis.name: axis.size for axis in self.axes}
        numbers = {**whole, **counts}
        cost = self.model.cost(numbers, self.seconds)
        ms = self.latency.ms(self.axes, numbers) if self.latency else 0.0
        return replace(cost, latency=ms)

    def dense_cost(self, model: Conformer) -> Cost:
        """Return the exact cost of a dense model: for an extracted one, that of its choice."""
        return whole_cost(model, self.seconds, self.latency)

    def sparsity(self, cost: Cost, resource: Resource) -> float | Tensor:
        """Return the share of the unpruned model's resource that this cost lacks."""
        return 1 - resource_cost(cost, resource) / resource_cost(self.unpruned, resource)


def whole_cost(model: Conformer, seconds: float, latency: LatencyTable | None = None) -> Cost:
    """Return the exact cost of a dense model."""
    axes = model.axes()
    counts = {axis.name: axis.size for axis in axes}
    ms = latency.ms(axes, counts) if latency else 0.0
    return replace(model.cost(counts, seconds), latency=ms)


def resource_cost(cost: Cost, resource: Resource) -> Number | float:
    """Return the parameters, FLOPs or milliseconds of a cost."""
    costs: dict[Resource, Number | float] = {
        "params": cost.params,
        "flops": cost.flops,
        "latency": cost.latency,
    }
    return costs[resource]


def unit_share(space: Space, name: str, resource: Resource) -> float:
    """Return the share of the unpruned model's resource that one unit of an axis takes."""
    # Parameters and FLOPs are linear in a count: every unit of an axis saves what the last one
    # saves. A latency table may be flat there, so all that may go stand for each.
    axis = {axis.name: axis for axis in space.axes}[name]
    removed = axis.size - axis.floor if resource == "latency" else 1
    whole, less = space.counted_cost({}), space.counted_cost({name: axis.size - removed})
    saved = resource_cost(whole, resource) - resource_cost(less, resource)
    return float(saved) / removed / float(resource_cost(space.unpruned, resource))
