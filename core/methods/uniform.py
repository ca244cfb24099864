"""A control: every axis loses the same share, its smallest units first."""

from core.methods.magnitude import magnitudes
from core.pruning.scoring import rank_within_axis
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Uniform(Method):
    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        scores = magnitudes(ctx.student, ctx.space.units)
        return SearchResult(scores=rank_within_axis(scores), reference={})


METHOD = Uniform()
