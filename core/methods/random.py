"""A control: units are removed in a random order."""

import torch

from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult


class Random(Method):
    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        del search
        generator = torch.Generator().manual_seed(ctx.config.seed)
        scores = {axis.name: torch.rand(axis.size, generator=generator) for axis in ctx.space.units}
        return SearchResult(scores=scores, reference={})


METHOD = Random()
