"""The method of arXiv 2305.19549, as far as its abstract tells it, built as CoFi was.

Hard-concrete gates on every unit and every module are learned together with the weights, against a
two-multiplier Lagrangian whose target warms up, while the unpruned model teaches by its outputs and
its layers:

    min over weights and gates, max over both lambdas, of
    task + logit + layer + lambda_linear * (t - s) + lambda_quadratic * (t - s)^2
"""

from typing import Any

import torch
from torch import Tensor

from core.conformer.axes import Mask
from core.pruning.constraint import Lagrangian, warmed_target
from core.training.concrete import ConcreteStage
from core.training.gating import GateMethod, GateStage, expected_sparsity
from core.training.method import Workbench


class WarmedTarget:
    """Two multipliers that climb while expected sparsity is not the target, which warms up."""

    def __init__(self, bench: Workbench) -> None:
        config = bench.config.pruning
        self._bench = bench
        self._warmup_steps = round(config.warmup_share * config.steps)
        self._lagrangian = Lagrangian(quadratic_start=config.lambda_quadratic).to(bench.device)
        parameters = self._lagrangian.parameters()
        self._dual = torch.optim.Adam(parameters, lr=config.lambda_lr, maximize=True)
        self.optimizers = [self._dual]

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        target = warmed_target(self._bench.target, step=step, warmup_steps=self._warmup_steps)
        violation = target - expected_sparsity(self._bench, expected)
        told = {
            "violation": violation,
            # Copies: the step that follows changes the multipliers in place.
            "lambda_linear": self._lagrangian.lambda_linear.clone(),
            "lambda_quadratic": self._lagrangian.lambda_quadratic.clone(),
        }
        return self._lagrangian.penalty(violation), told

    def stepped(self) -> None:
        """Equality is wanted: multipliers may have either sign."""

    def state_dict(self) -> dict[str, Any]:
        return {"lagrangian": self._lagrangian.state_dict(), "dual": self._dual.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._lagrangian.load_state_dict(state["lagrangian"])
        self._dual.load_state_dict(state["dual"])


class L0(GateMethod):
    def stage(self, bench: Workbench) -> GateStage:
        return ConcreteStage(bench, WarmedTarget(bench))


METHOD = L0()
