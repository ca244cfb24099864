"""Numerical Pruning (arXiv 2412.12441), our reading: one Newton step says what a unit is worth.

Of a consumer W with inputs X, gates z of least |X W - X diag(z) W|^2 / 2 are sought whose sum is
near r: (lambda / 2) (1^T z - r)^2 is added. With A = (W W^T) * (X^T X) the problem is quadratic, so
that a single step from anywhere ends at z = 1 - c A^-1 1, with c = lambda (I - r) / (1 + lambda 1^T
A^-1 1). The order inside an axis hangs on neither lambda nor r; for lambda without bound, neither
does that between axes. What goes is compensated by `repair = "ls"`, which is the paper's update.

Left out is the factor by which a head is worth more than a channel, its cost: a Conformer's heads
cost so much that all would stay, and what is left would starve.

Shapes: I inputs of a consumer, O its outputs, U units.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from core.pruning.scoring import intakes
from core.training.method import Found, Method, Workbench
from core.training.trainer import Trainable

DAMPING = 1e-4
"""Of the mean of A's diagonal: inputs that are never there leave A singular."""


class Numerical(Method):
    needs = frozenset({"audio"})

    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        """Each unit's gate, the mean of its inputs', when the target's share is to be closed."""
        del search
        scores = {}
        for intake in intakes(bench.student, bench.space, bench.speech):
            gates = newton_gates(intake.products(), closed=bench.target)
            scores[intake.axis.name] = gates.view(intake.axis.size, -1).mean(1)
        return Found(scores=scores, reference={})


def newton_gates(
    curvature: Float[Tensor, "inputs inputs"], *, closed: float
) -> Float[Tensor, " inputs"]:
    """The gates of least error, when a share of them in sum is closed and lambda has no bound."""
    size = len(curvature)
    ridge = DAMPING * curvature.diagonal().mean() * torch.eye(size).to(curvature)
    sensitivity = torch.linalg.solve(curvature + ridge, torch.ones(size).to(curvature))
    return 1 - closed * size * sensitivity / sensitivity.sum()


METHOD = Numerical()
