"""How the target is enforced: the two-multiplier Lagrangian (Wang et al., 2020; Xia et al., 2022).

L = task + lambda_linear * violation + lambda_quadratic * violation ** 2, descending on weights and
gates, ascending on both multipliers. The linear one alone diverges under Adam, and started at 0 the
quadratic one lets short runs swing.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Lagrangian(nn.Module):
    def __init__(self, *, quadratic_start: float) -> None:
        super().__init__()
        self.lambda_linear = nn.Parameter(torch.zeros(()))
        self.lambda_quadratic = nn.Parameter(torch.tensor(quadratic_start))

    def penalty(self, violation: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """`violation` is target minus expected sparsity: positive means not yet pruned enough."""
        return self.lambda_linear * violation + self.lambda_quadratic * violation.square()


def warmed_target(target: float, *, step: int, warmup_steps: int) -> float:
    """The target at a step: linear from 0 to its value over the warm-up."""
    return target * min(1.0, (step + 1) / max(1, warmup_steps))
