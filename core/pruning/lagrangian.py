"""How a target is enforced: by multipliers that climb for as long as it is missed.

`Lagrangian` wants equality (Wang et al., 2020; Xia et al., 2022): L = task + lambda_linear *
violation + lambda_quadratic * violation ** 2, descending on weights and gates, ascending on both
multipliers. The linear one alone diverges under Adam, and started at 0 the quadratic one lets short
runs swing. `MinMax` wants inequalities and no more (Gallego-Posada et al., 2022), by Cooper.
"""

from typing import Any

import torch
from cooper import ConstraintType
from cooper.multipliers import DenseMultiplier
from cooper.optim.torch_optimizers import nuPI
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


def staged_target(
    target: float, *, step: int, steps: int, rounds: int, warmup_share: float
) -> float:
    """The target at a step of a search in rounds, each of which removes the same share of the rest.

    It warms up within each round, from what the one before removed.
    """
    rounds = min(rounds, steps)
    number = step * rounds // steps
    first, after = (-(-n * steps // rounds) for n in (number, number + 1))
    before, wanted = (1 - (1 - target) ** (n / rounds) for n in (number, number + 1))
    warmup_steps = round(warmup_share * (after - first))
    return before + warmed_target(wanted - before, step=step - first, warmup_steps=warmup_steps)


class MinMax:
    """One multiplier, at least 0, for each of several constraints g <= 0: L = task + lambda * g.

    Ascent is nuPI (Sohrabi et al., 2024): it climbs with the violation and with its rise, so that
    it turns round before the constraint is overshot. A dual restart forgets what a multiplier has
    gathered as soon as its constraint holds: the debt of the past is no reason to prune on.
    """

    def __init__(
        self, count: int, *, rate: float, gain: float, is_restarted: bool, device: torch.device
    ) -> None:
        """`gain` weighs the rise of the violation against the violation itself."""
        self._multiplier = DenseMultiplier(num_constraints=count, device=device)
        self._multiplier.set_constraint_type(ConstraintType.INEQUALITY)
        self._violations = torch.zeros(count, device=device)
        self._is_restarted = is_restarted
        self.dual = nuPI(
            self._multiplier.parameters(),
            lr=rate,
            Kp=torch.tensor(gain),
            Ki=torch.tensor(1.0),
            maximize=True,
        )

    @property
    def values(self) -> Float[Tensor, " constraints"]:
        return self._multiplier.weight.detach().clone()

    def penalty(self, violations: Float[Tensor, " constraints"]) -> Float[Tensor, ""]:
        """`violations` are the g: positive where a constraint does not hold."""
        self._violations = violations.detach()
        return (self._multiplier.weight * violations).sum()

    @torch.no_grad()
    def post_step(self) -> None:
        """After each ascent."""
        self._multiplier.post_step_()
        if self._is_restarted:
            self._multiplier.weight[self._violations <= 0] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Tensors alone: what else the optimizer has is how it was made."""
        state = self.dual.state_dict()["state"]
        return {"multiplier": self._multiplier.state_dict(), "dual": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._multiplier.load_state_dict(state["multiplier"])
        self.dual.load_state_dict({**self.dual.state_dict(), "state": state["dual"]})
