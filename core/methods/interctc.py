"""Layer Pruning on Demand with Intermediate CTC (arXiv 2106.09216), our reading: removes blocks.

A teacher that was trained with intermediate CTC and stochastic depth (`teacher.interctc_weight`,
`teacher.stochastic_depth`) can lose whole blocks without fine-tuning: the steps of search and
fine-tuning may both be 0. We know only the abstract of the paper. There are two orders. The greedy
one removes, again and again, the block whose removal costs least; elsewhere it is called iterative
layer pruning. Truncation removes the last blocks, which fits what intermediate CTC trains. A greedy
choice looks only one block ahead, so neither order is always better.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from core.config.pruning import AxisKind
from core.config.settings import MethodSettings
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.decoders.ctc import ctc_loss
from core.evaluation.batch_decoding import best_tokens
from core.evaluation.token_error_rate import token_error_rate
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Settings(MethodSettings):
    """Settings of `interctc`."""

    ignores = ("pruning.axes",)

    depth_order: Literal["greedy", "truncate"] = "greedy"
    """Blocks that are removed first: those whose removal costs least on some training speech, one
    after the other, or the last ones."""


class InterCTC(Method):
    needs = frozenset({"labels"})

    def axes(self, config: TrialConfig) -> Sequence[AxisKind]:
        """Returns blocks alone, whatever `pruning.axes` says."""
        del config
        return ("block",)

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        names = [block.name for block in ctx.student.typed_blocks()]
        is_truncated = ctx.config.pruning.settings(Settings).depth_order == "truncate"
        best = names if is_truncated else order_by_error(ctx.student, names, ctx.labeled)
        # Four blocks, best first: scores 4, 3, 2 and 1.
        worth = range(len(best), 0, -1)
        scores = {name: torch.tensor([float(w)]) for name, w in zip(best, worth, strict=True)}
        return SearchResult(scores=scores, reference={})


def order_by_error(model: Conformer, names: Sequence[str], labeled: Iterable[Batch]) -> list[str]:
    """Returns the blocks in the order of their worth, the best first.

    Again and again the block is removed without which the error is smallest; of equal blocks the
    last one. Example: if of three blocks `b` costs least and then `a`, the order is c, a, b.
    """
    remaining, removed = list(names), list[str]()
    while len(remaining) > 1:
        # `min` returns the first of equal values: reversed, the last block.
        least = min(reversed(remaining), key=lambda name: error(model, {*removed, name}, labeled))
        remaining.remove(least)
        removed.append(least)
    return [*remaining, *reversed(removed)]


@torch.inference_mode()
def error(model: Conformer, closed: set[str], labeled: Iterable[Batch]) -> tuple[float, float]:
    """Returns the token error rate without these blocks, and the CTC loss, which decides ties."""
    model.eval()
    outputs = [(model(batch.features, batch.num_frames, closed), batch) for batch in labeled]
    losses = [float(ctc_loss(o, batch.tokens, batch.num_tokens)) for o, batch in outputs]
    decoded = ((best_tokens(model, output), batch) for output, batch in outputs)
    return token_error_rate(decoded), sum(losses) / len(losses)


METHOD = InterCTC()
