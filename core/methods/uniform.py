"""Baseline: every axis loses the same share, its smallest units first."""

from core.methods.magnitude import magnitudes
from core.training.method import Found, Method, Workbench, ranked_within
from core.training.trainer import Trainable


class Uniform(Method):
    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        del search
        return Found(
            scores=ranked_within(magnitudes(bench.student, bench.space.units)), reference={}
        )


METHOD = Uniform()
