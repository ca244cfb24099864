"""What scores of units share: what units cost, and how axes are made alike.

Shapes: U units of an axis.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from core.config import Resource
from core.pruning.space import Space, of_resource


def per_cost(
    space: Space, scores: Mapping[str, Float[Tensor, " _"]], resource: Resource
) -> dict[str, Tensor]:
    """Each score a share of what its unit takes of the whole model: worth for money.

    Units of an axis all cost the same, as costs are counted.
    """
    return {name: values / unit_share(space, name, resource) for name, values in scores.items()}


def unit_share(space: Space, name: str, resource: Resource) -> float:
    """The share of the unpruned model's resource that one unit of an axis takes."""
    size = {axis.name: axis.size for axis in space.axes}[name]
    whole, less = space.counted_cost({}), space.counted_cost({name: size - 1})
    saved = of_resource(whole, resource) - of_resource(less, resource)
    return float(saved) / float(of_resource(space.unpruned, resource))


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
