"""Lagrange multipliers that rise for as long as a target is missed.

`Lagrangian` wants equality (Wang et al., 2020; Xia et al., 2022): L = task + lambda_linear *
violation + lambda_quadratic * violation ** 2, descending on weights and gates, ascending on both
multipliers. The linear one alone diverges under Adam, and started at 0 the quadratic one lets short
runs oscillate. `MinMax` wants inequalities (Gallego-Posada et al., 2022), by Cooper.
"""

from typing import Any

import torch
from cooper import ConstraintType
from cooper.multipliers import DenseMultiplier
from cooper.optim.torch_optimizers import nuPI
from jaxtyping import Float
from torch import Tensor, nn


class Lagrangian(nn.Module):
    """The penalty of one equality constraint, with a linear and a quadratic multiplier."""

    def __init__(self, *, quadratic_start: float) -> None:
        super().__init__()
        # Ascent raises the linear one while too little is removed and lowers it while too much is;
        # below 0 it opens gates again. The gradient of the quadratic one is a square: it only
        # grows.
        self.lambda_linear = nn.Parameter(torch.zeros(()))
        self.lambda_quadratic = nn.Parameter(torch.tensor(quadratic_start))

    def penalty(self, violation: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the penalty of target minus expected sparsity, which is positive if too dense."""
        # 0.1 short of the target with multipliers 2 and 50: 2 * 0.1 + 50 * 0.1^2 = 0.7.
        return self.lambda_linear * violation + self.lambda_quadratic * violation.square()


def warmed_target(target: float, *, step: int, warmup_steps: int) -> float:
    """Return the target at a step: linear from 0 to its value over the warm-up."""
    # A target of 0.5 over 4 steps: 0.125, 0.25, 0.375, 0.5, and then 0.5.
    return target * min(1.0, (step + 1) / max(1, warmup_steps))


def staged_target(
    target: float, *, step: int, steps: int, rounds: int, warmup_share: float
) -> float:
    """Return the target at a step of a search in rounds that remove equal shares of the rest.

    It warms up within each round, from the target of the round before. For example, a target of
    0.75 in 2 rounds is 0.5 at the end of the first: each round removes half of what remains.

    Args:
        target: the share to remove in the end, in [0, 1).
        step: from 0.
        steps: of the whole search.
        rounds: at most as many as steps.
        warmup_share: the share of each round over which its target rises.
    """
    rounds = min(rounds, steps)
    # 10 steps in 3 rounds: rounds begin at steps 0, 4 and 7.
    number = step * rounds // steps
    first, after = (-(-n * steps // rounds) for n in (number, number + 1))
    before, reached = (1 - (1 - target) ** (n / rounds) for n in (number, number + 1))
    warmup_steps = round(warmup_share * (after - first))
    return before + warmed_target(reached - before, step=step - first, warmup_steps=warmup_steps)


class MinMax:
    """One multiplier, at least 0, for each of several constraints g <= 0: L = task + lambda * g.

    Ascent is nuPI (Sohrabi et al., 2024): a multiplier rises with the violation and with the
    violation's increase, so that it turns before the constraint is overshot. A dual restart sets a
    multiplier to 0 as soon as its constraint holds: past violations are no reason to prune on.
    """

    def __init__(
        self, count: int, *, rate: float, gain: float, is_restarted: bool, device: torch.device
    ) -> None:
        """Make one multiplier for each constraint.

        Args:
            count: of constraints.
            rate: of ascent.
            gain: weight of the violation's increase relative to the violation itself.
            is_restarted: whether a multiplier becomes 0 once its constraint holds.
            device: of the multipliers.
        """
        self._multiplier = DenseMultiplier(num_constraints=count, device=device)
        self._multiplier.set_constraint_type(ConstraintType.INEQUALITY)
        self._violations = torch.zeros(count, device=device)
        self._is_restarted = is_restarted
        # A step of the dual adds lr * (Ki * g + Kp * (the increase of g)).
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
        """Return the penalty of `violations`, the g: positive where a constraint does not hold."""
        self._violations = violations.detach()
        return (self._multiplier.weight * violations).sum()

    @torch.no_grad()
    def post_step(self) -> None:
        """Keep multipliers at least 0, and restart them; called after each ascent."""
        self._multiplier.post_step_()
        if self._is_restarted:
            # `_violations` are those of the penalty of this step: g before the weights moved.
            self._multiplier.weight.masked_fill_(self._violations <= 0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors alone: all else in the optimizer follows from its arguments."""
        state = self.dual.state_dict()["state"]
        return {"multiplier": self._multiplier.state_dict(), "dual": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._multiplier.load_state_dict(state["multiplier"])
        self.dual.load_state_dict({**self.dual.state_dict(), "state": state["dual"]})
