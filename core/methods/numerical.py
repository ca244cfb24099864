"""Numerical Pruning (arXiv 2412.12441), our reading: one Newton step gives the score of a unit.

For a consumer W with inputs X we look for gates z that minimize |X W - X diag(z) W|^2 / 2 and whose
sum is near r: (lambda / 2) (1^T z - r)^2 is added. With A = (W W^T) * (X^T X) the problem is
quadratic, so that one Newton step from anywhere ends at z = 1 - c A^-1 1, with c = lambda (I - r) /
(1 + lambda 1^T A^-1 1). The order inside an axis depends on neither lambda nor r. For lambda to
infinity, the order between axes does not depend on them either. The paper's update of the remaining
weights is `repair = "ls"`.

We leave out the factor that makes a head worth more than a channel, its cost: heads of a Conformer
cost so much that all of them would stay, and too little would be left of everything else.

Shapes: I inputs of a consumer, O its outputs, U units.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from core.pruning.scoring import consumer_inputs
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult

DAMPING = 1e-4
"""Of the mean of A's diagonal: inputs that are never there leave A singular."""


class Numerical(Method):
    needs = frozenset({"audio"})
    default_repair = "sequential"

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Each unit's gate, the mean of its inputs', when the target's share is to be closed."""
        del search
        scores = {}
        for intake in consumer_inputs(ctx.student, ctx.space, ctx.speech):
            gates = newton_gates(intake.products(), closed=ctx.target)
            # Gates of a head's 64 inputs become one score.
            scores[intake.axis.name] = gates.view(intake.axis.size, -1).mean(1)
        return SearchResult(scores=scores, reference={})


def newton_gates(
    curvature: Float[Tensor, "inputs inputs"], *, closed: float
) -> Float[Tensor, " inputs"]:
    """Returns the gates of least error for lambda to infinity.

    Args:
        curvature: A, the matrix (W W^T) * (X^T X).
        closed: share of the sum of the gates that is to be closed.
    """
    size = len(curvature)
    ridge = DAMPING * curvature.diagonal().mean() * torch.eye(size).to(curvature)
    # z = 1 - c A^-1 1 with c = (I - r) / (1^T A^-1 1) for lambda to infinity; I - r = closed * I.
    # With A = diag(1, 4) and a half closed, z = (0.2, 0.8).
    sensitivity = torch.linalg.solve(curvature + ridge, torch.ones(size).to(curvature))
    return 1 - closed * size * sensitivity / sensitivity.sum()


METHOD = Numerical()
