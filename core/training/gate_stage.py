"""The stage that trains weights and gates together, whatever the gates and their restraint.

Methods that learn what to remove differ in their gates and in how a budget is enforced; folding,
teaching, judging and resuming are the same.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.config.pruning import PruningConfig, Resource
from core.config.settings import GateSettings, SearchSettings
from core.conformer.axes import Mask
from core.conformer.masking import Folded, fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.model import Conformer, Output
from core.data.batching import Batch
from core.distributed import part_of_same
from core.pruning.reconstruction import extract_and_reconstruct, reestimate_statistics
from core.report import Report, Stage
from core.training.distillation import Student, ctc_loss
from core.training.loop import Losses, Trainable, accumulate_gradients, autocast, weighted_total
from core.training.method import Method, MethodContext, SearchResult
from core.training.optimizers import primal

# Leaving out a handful of closed units makes odd sizes, which matrix products pay for.
NARROW_FROM = 0.125


@runtime_checkable
class Gates(Protocol):
    """One gate a unit, with parameters that are learned; an `nn.Module`."""

    def sample(self) -> dict[str, Tensor]:
        """The gates' values of one step; differentiable."""

    def median(self) -> dict[str, Tensor]:
        """The values at which the student computes what extraction should keep."""

    def open_probability(self) -> dict[str, Tensor]:
        """How open each gate is on average; what the expected cost is counted from."""

    def scores(self) -> dict[str, Tensor]:
        """How much each unit is worth keeping."""

    def clamp(self) -> None:
        """After each step."""


@runtime_checkable
class Control(Protocol):
    """How a budget is enforced."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Of what it learns itself, multipliers most often."""

    def penalty(self, expected: Mask, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What is added to the loss, and what is told of it, given how open each gate is."""

    def post_step(self) -> None:
        """After each step of its optimizers."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GateStage:
    """Weights, gates and multipliers, trained together."""

    stage: Stage = "search"
    narrow_from = NARROW_FROM
    """Closed units of an axis are left out of a step from this share of it on."""

    def __init__(
        self,
        bench: MethodContext,
        gates: Gates,
        control: Control,
        *,
        gate_betas: tuple[float, float] = (0.9, 0.999),
        settling: float = 0.0,
    ) -> None:
        """Make a stage from its beginning.

        Args:
            bench: what it may touch.
            gates: what is learned beside the weights.
            control: how the budget is enforced.
            gate_betas: of Adam on the gates: how long they remember.
            settling: share of the steps, the last ones, in which the gates' rate falls to 0.
        """
        assert isinstance(gates, nn.Module)
        config = bench.config.pruning
        self.bench, self.config, self.steps = bench, config, config.steps
        self.model = bench.student
        self.gates, self.control = gates, control
        projection = bench.distillation.projection
        self._settling = round(settling * self.steps)
        learned = list(gates.parameters())  # some gates learn nothing, and have no rate
        self._rate = gate_rate(config, settling_steps=self._settling) if learned else 0.0
        self.weights = [*self.model.parameters(), *projection.parameters()]
        rate = config.settings(SearchSettings).learning_rate
        self.primal = primal(self.weights, learning_rate=rate, weight_decay=0.01)
        self.gate_primal = [
            torch.optim.Adam([part], lr=self._rate, betas=gate_betas) for part in learned
        ]

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.model.train()
        optimizers = (self.primal, *self.gate_primal, *self.control.optimizers)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        parts = self.bench.config.training.micro_batches
        losses = accumulate_gradients(
            batch, lambda part: self._losses(part, step), parts=parts, optimizers=optimizers
        )
        nn.utils.clip_grad_norm_(self.weights, self.bench.config.training.clip)
        for each in self.gate_primal:
            for group in each.param_groups:
                group["lr"] = self._rate * self._gate_rate(step)
        for optimizer in optimizers:
            optimizer.step()  # those of weights and gates descend, a control's ascend
        self.control.post_step()
        self.gates.clamp()
        return losses

    def _gate_rate(self, step: int) -> float:
        """The gates' rate at a step, as a share of what it is at first."""
        return min(1.0, (self.steps - step) / (self._settling + 1))

    def _losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        mask, narrow_from = self.gates.sample(), self.narrow_from
        losses = masked_losses(self.bench, mask, batch, narrow_from=narrow_from)
        penalty, told = self.control.penalty(self.gates.open_probability(), step)
        losses["total"] = losses["total"] + part_of_same(penalty)
        return losses | {name: part_of_same(value) for name, value in told.items()}

    def search_result(self) -> SearchResult:
        median = {name: z.cpu() for name, z in self.gates.median().items()}
        scores = {name: a.cpu() for name, a in self.gates.scores().items()}
        return SearchResult(scores=scores, reference=median)

    def evaluate(self) -> Report:
        """The binary, budget-exact structure, which is what counts, not a draw of the gates."""
        report = evaluate_extracted(self.bench, self.search_result(), self.stage)
        expected = expected_sparsity(self.bench, self.gates.open_probability()).detach()
        return replace(report, expected_sparsity=float(expected))

    def state(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        return state | {"gate_primal": [each.state_dict() for each in self.gate_primal]}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for each, values in zip(self.gate_primal, state["gate_primal"], strict=True):
            each.load_state_dict(values)

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "projection": self.bench.distillation.projection,
            "gates": self.gates,
            "control": self.control,
            "primal": self.primal,
        }


class GateMethod(Method):
    """A method that trains gates: what its stage leaves is what it found."""

    needs = frozenset({"audio", "labels"})
    yields: Literal["curve", "point"] = "point"

    @abstractmethod
    def stage(self, bench: MethodContext) -> GateStage:
        """From its beginning."""

    def search(self, bench: MethodContext) -> GateStage | None:
        return self.stage(bench) if bench.config.pruning.steps else None

    def search_result(self, bench: MethodContext, search: Trainable | None) -> SearchResult:
        """After no step at all, the gates are as they started: every unit is worth the same."""
        return (search if isinstance(search, GateStage) else self.stage(bench)).search_result()


def masked_losses(
    bench: MethodContext,
    mask: Mask,
    batch: Batch,
    *,
    taught: Output | None = None,
    narrow_from: float = NARROW_FROM,
) -> Losses:
    """Of the student under a mask: what its tasks and the teacher ask, and `total`, their sum.

    Args:
        bench: whose student and teacher.
        mask: values of gates, drawn or given; differentiable.
        batch: of speech, with its words.
        taught: what the teacher says of it, if that is known already.
        narrow_from: closed units of an axis are left out from this share of it on.
    """
    model, distillation = bench.student, bench.distillation
    with autocast(batch.features.device, bench.config.runtime.precision):
        folded = fold(named_tensors(model), bench.space.axes, mask, narrow_from=narrow_from)
        output = gated_forward(model, batch.features, batch.num_frames, folded)
        task = ctc_loss(output, batch.tokens, batch.num_tokens)
        whole = torch.ones(model.shape.width, device=bench.device)
        width = kept_unit_indices(mask.get("width", whole))
        student = Student(output=output, width=width, alive=alive_blocks(model, folded))
        terms = distillation.losses(batch.features, batch.num_frames, student, taught=taught)
    return weighted_total({"task": task, **terms}, distillation)


def alive_blocks(model: Conformer, folded: Folded) -> tuple[bool, ...]:
    """Which blocks still hold a module."""
    closed = folded.closed
    return tuple(
        block.name not in closed and any(part.name not in closed for part in block.parts())
        for block in model.typed_blocks()
    )


def evaluate_extracted(bench: MethodContext, found: SearchResult, stage: Stage) -> Report:
    """What is extracted of the student as it is, for the target, neither repaired nor tuned."""
    choice = bench.choose(found.scores, bench.target)
    small = extract_and_reconstruct(bench.student, found.reference, choice, how="none", speech=())
    reestimate_statistics(small, bench.speech)
    return bench.judge.report(small, stage)


def gate_rate(config: PruningConfig, *, settling_steps: int = 0) -> float:
    """Adam's rate on the gates; a step of Adam is at most about as long as its rate.

    Steps in which the rate falls to 0 reach half as far as others, so that a travel is the same
    with them and without.
    """
    reach = max(1.0, config.steps - settling_steps / 2)
    settings = config.settings(GateSettings)
    return settings.gate_travel / reach if settings.gate_travel else settings.gate_lr


def expected_sparsity(bench: MethodContext, expected: Mask) -> Tensor:
    """Share of the resource that gates remove which are open with these probabilities."""
    return expected_sparsities(bench, expected)[bench.config.pruning.resource]


def expected_sparsities(bench: MethodContext, expected: Mask) -> dict[Resource, Tensor]:
    """The same of each resource that has a target."""
    cost = bench.space.mask_cost(expected)
    found: dict[Resource, Tensor] = {}
    for resource in bench.config.pruning.targets:
        sparsity = bench.space.sparsity(cost, resource)
        assert isinstance(sparsity, Tensor)
        found[resource] = sparsity
    return found
