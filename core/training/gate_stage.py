"""The stage that trains weights and gates together, for any gates and any control of the budget.

Methods that learn what to remove differ in their gates and in how a budget is enforced; folding,
distillation, evaluation and resuming are shared.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from core.config.pruning import PruningConfig, Resource
from core.config.settings import GateSettings, SearchSettings
from core.conformer.axes import Mask
from core.conformer.block import Block
from core.conformer.masking import Folded, fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.model import Conformer
from core.conformer.output import Output
from core.data.batching import Batch
from core.decoders.task_loss import task_loss
from core.distributed import part_of_same
from core.pruning.reconstruction import extract_and_reconstruct, reestimate_statistics
from core.report import Report, Stage
from core.training.distillation import Student
from core.training.loop import Trainable
from core.training.method import Method, MethodContext, SearchResult
from core.training.optim_step import Losses, accumulate_gradients, autocast, weighted_total
from core.training.optimizers import primal

# Without a few closed units, matrices would have odd sizes, whose products are slower.
NARROW_FROM = 0.125


@runtime_checkable
class Gates(Protocol):
    """One gate per unit, an `nn.Module` with parameters that are learned."""

    def sample(self) -> dict[str, Tensor]:
        """Return the gates' values of one step; differentiable."""

    def median(self) -> dict[str, Tensor]:
        """Return the values at which the student computes what extraction should preserve."""

    def open_probability(self) -> dict[str, Tensor]:
        """Return the probability that each gate is open, from which the expected cost follows."""

    def scores(self) -> dict[str, Tensor]:
        """Return a score for each unit; higher stays longer."""

    def clamp(self) -> None:
        """Bound parameters after each step."""


@runtime_checkable
class Control(Protocol):
    """Enforces a budget."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Optimizers of its own parameters, such as multipliers."""

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the penalty on the loss and values to report, for these open probabilities."""

    def post_step(self) -> None:
        """Update its state after each step of its optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GateStage:
    """Weights, gates and multipliers, trained together."""

    stage: Stage = "search"
    narrow_from: float | None = NARROW_FROM
    """Share of an axis from which on closed units are left out of a step; None: gates are not read,
    as those on a device are not."""

    def __init__(
        self,
        ctx: MethodContext,
        gates: Gates,
        control: Control,
        *,
        gate_betas: tuple[float, float] = (0.9, 0.999),
        settling: float = 0.0,
    ) -> None:
        """Make a stage at its first step.

        Args:
            ctx: the trial's student, data and settings.
            gates: trained together with the weights.
            control: enforces the budget.
            gate_betas: betas of Adam on the gates.
            settling: share of the steps, the last ones, in which the gates' rate falls to 0.
        """
        assert isinstance(gates, nn.Module)
        config = ctx.config.pruning
        self.ctx, self.config, self.steps = ctx, config, config.steps
        self.model = ctx.student
        self.model.repeats_blocks = ctx.config.runtime.checkpointing
        self.gates, self.control = gates, control
        projection = ctx.distillation.projection
        self._settling = round(settling * self.steps)
        learned = list(gates.parameters())  # gates without parameters have no rate
        self._rate = gate_rate(config, settling_steps=self._settling) if learned else 0.0
        self.weights = [*self.model.parameters(), *projection.parameters()]
        rate = config.settings(SearchSettings).learning_rate
        self.primal = primal(self.weights, learning_rate=rate, weight_decay=0.01)
        tensors = [*gates.parameters(), *gates.buffers()]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            self.narrow_from = None
        self.gate_primal = [
            # Fused: its count of steps stays on the device.
            torch.optim.Adam([part], lr=self._rate, betas=gate_betas, fused=True)
            for part in learned
        ]

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.model.train()
        optimizers = (self.primal, *self.gate_primal, *self.control.optimizers)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts = self.ctx.config.training.parts
        losses = accumulate_gradients(
            batch, lambda part: self._losses(part, step), parts=parts, optimizers=optimizers
        )
        # Weights alone: their norm must not depend on gates or multipliers.
        nn.utils.clip_grad_norm_(self.weights, self.ctx.config.training.clip)
        for gate_optimizer in self.gate_primal:
            for group in gate_optimizer.param_groups:
                group["lr"] = self._rate * self._gate_rate(step)
        for optimizer in optimizers:
            optimizer.step()  # those of weights and gates descend, a control's ascend
        self.control.post_step()
        self.gates.clamp()
        return losses

    def _gate_rate(self, step: int) -> float:
        """Return the gates' rate at a step, as a share of the initial one."""
        # 10 steps of which 3 settle: 1 up to step 6, then 0.75, 0.5 and 0.25. The last step still
        # moves.
        return min(1.0, (self.steps - step) / (self._settling + 1))

    def _losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        mask, narrow_from = self.gates.sample(), self.narrow_from
        losses = masked_losses(self.ctx, mask, batch, narrow_from=narrow_from)
        penalty, penalty_terms = self.control.penalty(self.gates.open_probability(), step)
        # Every rank computes the whole penalty, so each adds its share of it.
        losses["total"] = losses["total"] + part_of_same(penalty)
        return losses | {name: part_of_same(value) for name, value in penalty_terms.items()}

    def search_result(self) -> SearchResult:
        median = {name: z.cpu() for name, z in self.gates.median().items()}
        scores = {name: a.cpu() for name, a in self.gates.scores().items()}
        return SearchResult(scores=scores, reference=median)

    def evaluate(self) -> Report:
        """Report on the extracted structure that meets the budget, not on a sample of the gates."""
        report = evaluate_extracted(self.ctx, self.search_result(), self.stage)
        expected = expected_sparsity(self.ctx, self.gates.open_probability()).detach()
        return replace(report, expected_sparsity=float(expected))

    def state(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        return state | {"gate_primal": [optimizer.state_dict() for optimizer in self.gate_primal]}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for optimizer, values in zip(self.gate_primal, state["gate_primal"], strict=True):
            optimizer.load_state_dict(values)

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "projection": self.ctx.distillation.projection,
            "gates": self.gates,
            "control": self.control,
            "primal": self.primal,
        }


class GateMethod(Method):
    """A method that trains gates; its result is that of its stage."""

    needs = frozenset({"audio", "labels"})
    yields: Literal["curve", "point"] = "point"

    @abstractmethod
    def stage(self, ctx: MethodContext) -> GateStage:
        """Return the stage at its first step."""

    def search(self, ctx: MethodContext) -> GateStage | None:
        return self.stage(ctx) if ctx.config.pruning.steps else None

    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Return the stage's result; without any step all units of equal start score the same."""
        return (search if isinstance(search, GateStage) else self.stage(ctx)).search_result()


def masked_losses(
    ctx: MethodContext,
    mask: Mask,
    batch: Batch,
    *,
    targets: Output | None = None,
    narrow_from: float | None = NARROW_FROM,
) -> Losses:
    """Return the student's losses under a mask, and `total`, their weighted sum.

    Args:
        ctx: has the student and the teacher.
        mask: values of the gates; differentiable.
        batch: speech with its words.
        targets: the teacher's output on this batch; computed if None.
        narrow_from: share of an axis from which on closed units are left out; None: gates are not
            read.
    """
    model, distillation = ctx.student, ctx.distillation
    with autocast(batch.features.device, ctx.config.runtime.precision):
        folded = fold(named_tensors(model), ctx.space.axes, mask, narrow_from=narrow_from)
        output = gated_forward(model, batch.features, batch.num_frames, folded, tokens=batch.tokens)
        task = task_loss(output, batch.tokens, batch.num_tokens, ctx.config.loss)
        # Where gates are read, the residual width is narrowed: hidden states have open units alone.
        is_narrow = narrow_from is not None and "width" in mask
        student = Student(
            output=output,
            width=kept_unit_indices(mask["width"]).to(ctx.device, non_blocking=True)
            if is_narrow
            else None,
            is_active=active_blocks(model, folded),
        )
        terms = distillation.losses(
            batch.features,
            batch.num_frames,
            student,
            targets=targets,
            transcripts=(batch.tokens, batch.num_tokens),
        )
    return weighted_total({"task": task, **terms}, distillation)


def active_blocks(model: Conformer, folded: Folded) -> Bool[Tensor, " blocks"]:
    """Return whether each block still holds an open module; of unread gates on their device."""
    device = next(iter(folded.unread.values())).device if folded.unread else None

    def is_active(block: Block) -> Tensor:
        if not block.parts():
            return torch.zeros((), dtype=torch.bool, device=device)
        names = (block.name, *(part.name for part in block.parts()))
        own, *parts = (folded.has_open(name).to(device, non_blocking=True) for name in names)
        return own & torch.stack(parts).any()

    flags = [is_active(block) for block in model.typed_blocks()]
    return torch.stack(flags) if flags else torch.zeros(0, dtype=torch.bool)


def evaluate_extracted(ctx: MethodContext, result: SearchResult, stage: Stage) -> Report:
    """Extract the student for the target, without repair or tuning, and report on it."""
    # Sampled gates leave batch-norm statistics that fit no structure: they are measured again.
    choice = ctx.choose(result.scores, ctx.target)
    small = extract_and_reconstruct(ctx.student, result.reference, choice, how="none", speech=())
    reestimate_statistics(small, ctx.speech)
    return ctx.evaluator.report(small, stage)


def gate_rate(config: PruningConfig, *, settling_steps: int = 0) -> float:
    """Return Adam's rate on the gates, as a step of Adam is at most about as long as its rate.

    Steps in which the rate falls to 0 count half, so that `gate_travel` means the same distance
    with and without them. For example, a travel of 10 in 1,000 steps is a rate of 0.01.
    """
    reach = max(1.0, config.steps - settling_steps / 2)
    settings = config.settings(GateSettings)
    return settings.gate_travel / reach if settings.gate_travel else settings.gate_lr


def expected_sparsity(ctx: MethodContext, expected: Mask) -> Tensor:
    """Return the share of the resource that gates with these open probabilities remove."""
    return expected_sparsities(ctx, expected)[ctx.config.pruning.resource]


def expected_sparsities(ctx: MethodContext, expected: Mask) -> dict[Resource, Tensor]:
    """Return the share of each resource with a target that these gates remove."""
    cost = ctx.space.mask_cost(expected)
    sparsities: dict[Resource, Tensor] = {}
    for resource in ctx.config.pruning.targets:
        sparsity = ctx.space.sparsity(cost, resource)
        assert isinstance(sparsity, Tensor)
        sparsities[resource] = sparsity
    return sparsities
