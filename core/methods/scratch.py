"""A control: a uniformly smaller model, trained from random weights by the same teacher and steps.

It shows what the weights of the teacher are worth in addition to its outputs.
"""

import torch

from core.conformer.model import Conformer
from core.methods.uniform import Uniform
from core.training.method import MethodContext


class Scratch(Uniform):
    lives_by_tuning = True
    is_from_scratch = True

    def prepare_tuning(self, model: Conformer, ctx: MethodContext) -> Conformer:
        """The same sizes, new weights; only the features' statistics are kept."""
        # A fork, so that what the trial draws afterwards is what other methods draw.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.config.seed)
            new = Conformer(model.shape)
        new.frontend.mean.copy_(model.frontend.mean)
        new.frontend.deviation.copy_(model.frontend.deviation)
        return new.to(ctx.device)


METHOD = Scratch()
