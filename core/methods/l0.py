"""The method of arXiv 2305.19549, as far as its abstract tells it, built as CoFi was.

Hard-concrete gates on every unit and every module are learned together with the weights, against a
two-multiplier Lagrangian whose target warms up, while the unpruned model teaches by its outputs and
its layers:

    min over weights and gates, max over both lambdas, of
    task + logit + layer + lambda_linear * (t - s) + lambda_quadratic * (t - s)^2
"""

from typing import Any

import torch
from torch import Tensor, nn

from core.conformer.axes import Axis, Mask
from core.conformer.gate import Folded, fold, gated_forward, kept_units, tensors_of
from core.corpora.batches import Batch
from core.pruning.constraint import Lagrangian, warmed_target
from core.pruning.hard_concrete import HardConcrete
from core.pruning.repair import reestimate_statistics, repaired
from core.ranks import part_of_same
from core.report import Report, Stage
from core.training.distillation import Student, ctc_loss
from core.training.method import Found, Method, Workbench
from core.training.optimizers import primal
from core.training.trainer import Trainable, accumulated, autocast, weighted

# Leaving out a handful of closed units makes odd sizes, which matrix products pay for.
NARROW_FROM = 0.125


class GateStage:
    """Weights, gates and multipliers, trained together."""

    stage: Stage = "search"

    def __init__(self, bench: Workbench) -> None:
        config = bench.config.pruning
        self.bench, self.config, self.steps = bench, config, config.steps
        self.model, self.axes = bench.student, bench.space.axes
        start = {axis.name: _start(axis, bench) for axis in bench.space.prunable}
        self.gates = HardConcrete(bench.space.prunable, start=start).to(bench.device)
        self.lagrangian = Lagrangian(quadratic_start=config.lambda_quadratic).to(bench.device)
        projection = bench.distillation.projection
        self.weights = [*self.model.parameters(), *projection.parameters()]
        self.primal = primal(self.weights, learning_rate=config.learning_rate, weight_decay=0.01)
        self.gate_primal = torch.optim.Adam(self.gates.parameters(), lr=config.gate_lr)
        self.dual = torch.optim.Adam(
            self.lagrangian.parameters(), lr=config.lambda_lr, maximize=True
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.model.train()
        optimizers = (self.primal, self.gate_primal, self.dual)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts = self.bench.config.training.micro_batches
        losses = accumulated(
            batch, lambda part: self._losses(part, step), parts=parts, optimizers=optimizers
        )
        nn.utils.clip_grad_norm_(self.weights, self.bench.config.training.clip)
        for optimizer in optimizers:
            optimizer.step()  # the first two descend, on weights and on gates; the dual ascends
        self.gates.clamp()
        return losses

    def _losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        distillation = self.bench.distillation
        mask = self.gates.sample()
        with autocast(batch.features.device, self.bench.config.runtime.precision):
            folded = fold(tensors_of(self.model), self.axes, mask, narrow_from=NARROW_FROM)
            output = gated_forward(self.model, batch.features, batch.num_frames, folded)
            task = ctc_loss(output, batch.tokens, batch.num_tokens)
            student = Student(output=output, width=self._width(mask), alive=self._alive(folded))
            terms = distillation.losses(batch.features, batch.num_frames, student)
        losses = weighted({"task": task, **terms}, distillation)
        expected = self._expected_sparsity()
        warmup = round(self.config.warmup_share * self.steps)
        violation = warmed_target(self.bench.target, step=step, warmup_steps=warmup) - expected
        losses["total"] = losses["total"] + part_of_same(self.lagrangian.penalty(violation))
        alike = {
            "violation": violation,
            # Copies: the step that follows changes the multipliers in place.
            "lambda_linear": self.lagrangian.lambda_linear.clone(),
            "lambda_quadratic": self.lagrangian.lambda_quadratic.clone(),
        }
        return losses | {name: part_of_same(value) for name, value in alike.items()}

    def _expected_sparsity(self) -> Tensor:
        space = self.bench.space
        cost = space.mask_cost(self.gates.open_probability())
        sparsity = space.sparsity(cost, self.config.resource)
        assert isinstance(sparsity, Tensor)
        return sparsity

    def _width(self, mask: Mask) -> Tensor:
        whole = torch.ones(self.model.shape.width, device=self.bench.device)
        return kept_units(mask.get("width", whole))

    def _alive(self, folded: Folded) -> tuple[bool, ...]:
        closed = folded.closed
        return tuple(
            block.name not in closed and any(part.name not in closed for part in block.parts())
            for block in self.model.typed_blocks()
        )

    def found(self) -> Found:
        median = {name: z.cpu() for name, z in self.gates.median().items()}
        scores = {name: a.cpu() for name, a in self.gates.scores().items()}
        return Found(scores=scores, reference=median)

    def judged(self) -> Report:
        """The binary, budget-exact structure, which is what counts, not a draw of the gates."""
        found, bench = self.found(), self.bench
        choice = bench.choose(found.scores, bench.target)
        small = repaired(self.model, found.reference, choice, how="none", speech=())
        reestimate_statistics(small, bench.speech)
        report = bench.judge.report(small, self.stage)
        return Report(
            stage=self.stage,
            step=0,
            total_steps=0,
            wer=report.wer,
            gflops=report.gflops,
            expected_sparsity=float(self._expected_sparsity().detach()),
            realised_sparsity=report.realised_sparsity,
        )

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "projection": self.bench.distillation.projection,
            "gates": self.gates,
            "lagrangian": self.lagrangian,
            "primal": self.primal,
            "gate_primal": self.gate_primal,
            "dual": self.dual,
        }


def _start(axis: Axis, bench: Workbench) -> float:
    """Gates that move many weights at once start more open: they see the larger gradients."""
    config = bench.config.pruning
    return config.module_log_alpha if axis.is_whole or axis.kind == "width" else config.log_alpha


class L0(Method):
    needs = frozenset({"audio", "labels"})
    yields = "point"

    def search(self, bench: Workbench) -> GateStage | None:
        return GateStage(bench) if bench.config.pruning.steps else None

    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        """After no step at all, the gates are as they started: every unit is worth the same."""
        stage = search if isinstance(search, GateStage) else GateStage(bench)
        return stage.found()


METHOD = L0()
