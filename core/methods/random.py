"""A control: units are removed in a random order."""

import torch

from core.training.method import Found, Method, Workbench
from core.training.trainer import Trainable


class Random(Method):
    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        del search
        chance = torch.Generator().manual_seed(bench.config.seed)
        scores = {axis.name: torch.rand(axis.size, generator=chance) for axis in bench.space.units}
        return Found(scores=scores, reference={})


METHOD = Random()
