"""MoPE (arXiv 2403.07839), our reading: a unit is worth how much the error grows without it.

First width, then depth: groups of units are closed one at a time, then whole modules. A unit is
worth at most as much as its module. The error is the share of tokens that greedy decoding gets
wrong on training speech with transcripts. Negative differences are noise on a good model, and a
model from which everything is removed that seems to help is destroyed. So the growth of the error
is at least 0. Ties are decided by the rewiring score |w dL/dw| (DynaBERT), which also forms the
groups.
"""

import torch
from pydantic import Field
from torch import Tensor

from core.config.settings import MethodSettings
from core.conformer.axes import Axis
from core.conformer.masking import Folded
from core.evaluation.batch_decoding import gated_tokens
from core.evaluation.token_error_rate import token_error_rate
from core.pruning.ablation import Edit, groups, identity_fold, measure_edits, spread_over_units
from core.pruning.gate_gradients import gate_gradients
from core.pruning.scoring import break_ties, divide_by_cost
from core.training.distillation import gated_loss
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `mope`."""

    groups: int = Field(8, ge=1, le=65_536)
    """Number of groups into which the units of an axis are put, closed one group at a time."""


class MoPE(Method):
    needs = frozenset({"labels"})
    default_repair = "sequential"

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        config, axes = ctx.config.pruning, list(ctx.space.units)
        # A module is one unit, so `count=1` closes each by itself.
        modules = [axis for axis in ctx.space.prunable if axis.kind == "module"]
        rewiring = rewiring_scores(ctx, [*axes, *modules])
        width = error_growth(ctx, groups(axes, rewiring, count=config.settings(Settings).groups))
        depth = error_growth(ctx, groups(modules, rewiring, count=1))
        scores = {**spread_over_units(axes, width), **spread_over_units(modules, depth)}
        dear = divide_by_cost(ctx.space, scores, config.resource)
        return SearchResult(scores=break_ties(dear, rewiring), reference={})


def error_growth(ctx: MethodContext, edits: list[Edit]) -> list[tuple[Edit, float]]:
    """Returns the growth of the error under each edit; 0 where it falls."""
    student = ctx.student.eval()

    def error(folded: Folded) -> Tensor:
        rate = token_error_rate(
            (gated_tokens(student, batch.features, batch.num_frames, folded), batch)
            for batch in ctx.labeled
        )
        return torch.tensor(rate)

    whole = float(error(identity_fold(student)))
    errors = measure_edits(student, edits, error)
    # 0.10 for the whole model, 0.13 and 0.09 under two edits: growths of 0.03 and 0.
    return [(edit, max(0.0, float(value) - whole)) for edit, value in errors]


def rewiring_scores(ctx: MethodContext, axes: list[Axis]) -> dict[str, Tensor]:
    """Returns |gate * dL/dgate|, summed over batches.

    A gate scales weights, so that this is |sum of w dL/dw| over the weights of the unit.
    """
    ctx.student.eval()
    loss = gated_loss(ctx.student, ctx.config.loss)
    sums = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in axes}
    for batch in ctx.labeled:
        for name, gradient in gate_gradients(ctx.student, axes, batch, loss).items():
            sums[name] += gradient.double().abs().cpu()
    return sums


METHOD = MoPE()
