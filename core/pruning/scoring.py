"""Parts of unit scores: consumers' inputs, division by cost, ranks within an axis.

Shapes: U units of an axis, I inputs of a consumer, O its outputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from core.config.pruning import Resource
from core.conformer.axes import Axis
from core.conformer.masking import named_tensors
from core.conformer.model import Conformer
from core.pruning.ablation import identity_fold
from core.pruning.calibration import Calibration, iterate_grams, prunable_consumers
from core.pruning.space import Space, unit_share


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsumerInputs:
    """The consumer of an axis and the statistics of its inputs, in fp64 on the CPU."""

    axis: Axis
    weight: Float[Tensor, "outputs inputs"]
    gram: Float[Tensor, "inputs inputs"]
    """X^T X of its inputs over real frames of the speech."""
    means: Float[Tensor, " inputs"]
    """Means of its inputs over those frames."""
    frames: float

    def products(self) -> Float[Tensor, "inputs inputs"]:
        """Return (X^T X) * (W^T W), the inner products of what each pair of inputs contributes."""
        return self.gram * (self.weight.T @ self.weight)


def consumer_inputs(
    model: Conformer, space: Space, speech: Calibration
) -> Iterator[ConsumerInputs]:
    """Yield the consumer inputs of each prunable axis, from one pass over the speech."""
    tensors, whole = named_tensors(model), identity_fold(model)
    for consumer, sums in iterate_grams(model, whole, prunable_consumers(space), speech):
        gram = sums.cpu()  # the last column is of ones
        weight = tensors[f"{consumer.module}.weight"].detach().double().cpu().flatten(1)
        frames = float(gram[-1, -1])
        yield ConsumerInputs(
            axis=consumer.axis,
            weight=weight,
            gram=gram[:-1, :-1],
            means=gram[-1, :-1] / frames,
            frames=frames,
        )


def divide_by_cost(
    space: Space, scores: Mapping[str, Float[Tensor, " _"]], resource: Resource
) -> dict[str, Tensor]:
    """Divide each score by its unit's share of the unpruned model's cost.

    All units of an axis cost the same.
    """
    return {name: values / unit_share(space, name, resource) for name, values in scores.items()}


def rank_within_axis(scores: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Tensor]:
    """Replace each score by its rank as a share of its axis, so that all axes lose equal shares."""
    return {
        # The second argsort turns an order into ranks: (5, 2, 9) become (2, 1, 3) / 3.
        name: (values.argsort(stable=True).argsort(stable=True).double() + 1) / len(values)
        for name, values in scores.items()
    }


def break_ties(
    scores: Mapping[str, Float[Tensor, " _"]], by: Mapping[str, Float[Tensor, " _"]]
) -> dict[str, Tensor]:
    """Order equal scores by another score; unequal scores keep their order.

    The other score moves a value by less than the smallest gap between two unequal values. For
    example, scores (1, 1, 3) with ties broken by (5, 2, 0) become (2, 1.67, 3.33): the smallest gap
    is 2, half of it is 1, and the shares are ranks 3, 2 and 1 of 3.
    """
    everything = torch.cat([values.double() for values in scores.values()]).unique()
    # Units that must stay score infinity, and infinity has no gap.
    gaps = everything[everything.isfinite()].diff()
    step = float(gaps.min()) / 2 if len(gaps) else 1.0
    shares = rank_within_axis(by)
    return {name: values.double() + step * shares[name] for name, values in scores.items()}
