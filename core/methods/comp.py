"""COMP (arXiv 2501.15255), our reading: whole blocks first, then units, by forward passes only.

The influence of a block is how far it turns its input, 1 - cos(x, block(x)), as a mean over frames.
The score of a unit is the share of its rank-1 term in the output of its consumer,
|X_j| |W_j| / |X W|. Blocks and units are removed together, lowest score first, so that at any
budget blocks make up `coarse_share` of what is removed. The third step of the paper, tuning the
masks, is `repair = "mask"`.

Shapes: B batch, T frames, D width.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from core.config.settings import MethodSettings
from core.conformer.model import Conformer
from core.pruning.calibration import Calibration
from core.pruning.scoring import ConsumerInputs, consumer_inputs, divide_by_cost
from core.pruning.space import unit_share
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `comp`."""

    coarse_share: float = Field(0.3, ge=0, le=1)
    """Share of what is removed that goes in whole blocks."""


class COMP(Method):
    needs = frozenset({"audio"})

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        taken = consumer_inputs(ctx.student, ctx.space, ctx.speech)
        worth = {intake.axis.name: contributions(intake) for intake in taken}
        fine = divide_by_cost(ctx.space, worth, ctx.config.pruning.resource)
        influence = block_influence(ctx.student, ctx.speech)
        return SearchResult(scores=merge_orders(ctx, fine, influence), reference={})


def contributions(intake: ConsumerInputs) -> Float[Tensor, " _"]:
    """Returns |X_u W_u| of each unit divided by |X W|, in Frobenius norms."""
    # Sums over blocks of units: entry (u, v) is the inner product of X_u W_u and X_v W_v. The
    # diagonal holds |X_u W_u|^2, and all entries add up to |X W|^2. Rounding may leave a diagonal
    # below 0.
    products, size = intake.products(), intake.axis.size
    blocks = products.view(size, len(products) // size, size, -1).sum((1, 3))
    return (blocks.diagonal().clamp(min=0) / blocks.sum().clamp(min=1e-12)).sqrt()


@torch.no_grad()
def block_influence(model: Conformer, speech: Calibration) -> Float[Tensor, " blocks"]:
    """Returns 1 - cos between the input and the output of each block, as a mean over frames."""
    seen: list[list[Tensor]] = [[] for _ in model.blocks]
    model.eval()
    for features, num_frames in speech:
        output = model(features, num_frames)
        # The states before the first block, and after each.
        states = (model.frontend(features, num_frames), *output.hidden)
        for number, (before, after) in enumerate(pairwise(states)):
            seen[number].append(_turn(before, after, output.is_frame))
    return torch.stack([torch.cat(turns).mean() for turns in seen]).double().cpu()


def _turn(
    before: Float[Tensor, "batch time width"],
    after: Float[Tensor, "batch time width"],
    is_frame: Bool[Tensor, "batch time"],
) -> Float[Tensor, " _"]:
    return 1 - torch.cosine_similarity(before, after, dim=-1)[is_frame]


def merge_orders(
    ctx: MethodContext, fine: dict[str, Tensor], influence: Float[Tensor, " blocks"]
) -> dict[str, Tensor]:
    """Returns scores that merge the orders of blocks and of units into one.

    There are two queues. The next removal comes from the blocks while they are behind their share.
    Example with `coarse_share = 0.3`: a block that costs 5 % goes first, then units until they
    cost 11.7 %, because 5 % is 0.3 of 16.7 %; then the next block.
    """
    config = ctx.config.pruning
    share, resource = config.settings(Settings).coarse_share, config.resource
    costs = {name: unit_share(ctx.space, name, resource) for name in fine}
    queue = sorted((float(v), name, i) for name, vs in fine.items() for i, v in enumerate(vs))
    blocks = influence.argsort().tolist()[:-1] if share > 0 else []  # one block must stay
    # -1 stands for a unit that is not yet removed; ranks of removal start at 1.
    scores = {name: torch.full((len(values),), -1.0).double() for name, values in fine.items()}
    removed_shares = {"blocks": 0.0, "units": 0.0}
    rank = 0
    for _, name, i in queue:
        while blocks and removed_shares["blocks"] <= share * sum(removed_shares.values()):
            rank += 1
            prefix = f"blocks.{blocks.pop(0)}."
            for inside in (n for n in fine if n.startswith(prefix)):
                is_open = scores[inside] < 0
                # Units of the block that went earlier, one by one, were counted then.
                removed_shares["blocks"] += costs[inside] * float(is_open.sum())
                scores[inside][is_open] = rank
        if scores[name][i] < 0:
            rank += 1
            scores[name][i] = rank
            removed_shares["units"] += costs[name]
    return scores


METHOD = COMP()
