"""What scores of units share: what consumers take in, what units cost, how axes are made alike.

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
from core.pruning.reconstruction import Calibration, consumers, input_grams
from core.pruning.space import Space, unit_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What the consumer of an axis makes of its units, in fp64 on the CPU."""

    axis: Axis
    weight: Float[Tensor, "outputs inputs"]
    gram: Float[Tensor, "inputs inputs"]
    """X^T X of its inputs over real frames of some speech."""
    means: Float[Tensor, " inputs"]
    """Of its inputs over those frames."""
    frames: float

    def products(self) -> Float[Tensor, "inputs inputs"]:
        """(X^T X) * (W^T W): how much what two inputs give has in common."""
        return self.gram * (self.weight.T @ self.weight)


def intakes(model: Conformer, space: Space, speech: Calibration) -> Iterator[Intake]:
    """Of each axis whose units may go, by one walk over the speech."""
    able = {axis.name for axis in space.units}
    known = [c for c in consumers(list(space.axes)) if c.axis.name in able]
    grams = input_grams(model, identity_fold(model), known, speech)
    tensors = named_tensors(model)
    for consumer in known:
        gram = grams[consumer.module].cpu()  # its last column is of ones
        weight = tensors[f"{consumer.module}.weight"].detach().double().cpu().flatten(1)
        frames = float(gram[-1, -1])
        yield Intake(
            axis=consumer.axis,
            weight=weight,
            gram=gram[:-1, :-1],
            means=gram[-1, :-1] / frames,
            frames=frames,
        )


def per_cost(
    space: Space, scores: Mapping[str, Float[Tensor, " _"]], resource: Resource
) -> dict[str, Tensor]:
    """Each score a share of what its unit takes of the whole model: worth for money.

    Units of an axis all cost the same, as costs are counted.
    """
    return {name: values / unit_share(space, name, resource) for name, values in scores.items()}


def ranked_within(scores: Mapping[str, Float[Tensor, " _"]]) -> dict[str, Tensor]:
    """Each score's rank as a share of its axis, so that every axis loses the same share."""
    return {
        name: (values.argsort(stable=True).argsort(stable=True).double() + 1) / len(values)
        for name, values in scores.items()
    }


def with_ties_broken(
    scores: Mapping[str, Float[Tensor, " _"]], by: Mapping[str, Float[Tensor, " _"]]
) -> dict[str, Tensor]:
    """Scores in which equal values stand in the order of another score; no others change places.

    The other score moves a value by less than the smallest gap between two that differ.
    """
    everything = torch.cat([values.double() for values in scores.values()]).unique()
    gaps = everything[everything.isfinite()].diff()
    step = float(gaps.min()) / 2 if len(gaps) else 1.0
    shares = ranked_within(by)
    return {name: values.double() + step * shares[name] for name, values in scores.items()}
