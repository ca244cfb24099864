"""A control: every axis loses the same share, its smallest units first."""

from core.methods.magnitude import magnitudes
from core.pruning.scoring import ranked_within
from core.training.method import Found, Method, Workbench
from core.training.trainer import Trainable


class Uniform(Method):
    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        del search
        scores = magnitudes(bench.student, bench.space.units)
        return Found(scores=ranked_within(scores), reference={})


METHOD = Uniform()
