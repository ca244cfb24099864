"""The training loop of all stages, and the stage that trains a dense model.

A stage takes steps. `fit` runs them, saves checkpoints, and yields a report at each evaluation. The
checkpoint is saved before the report is yielded, and stores it, so a crash cannot lose a report.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from core.config.augmentation import AugmentConfig
from core.config.trial import LossConfig, RuntimeConfig
from core.conformer.model import Conformer
from core.data.batching import Batch, TrainBatches
from core.data.read_ahead import ReadAhead
from core.decoders.task_loss import USUAL, task_loss
from core.distributed import ALONE, Ranks, together
from core.evaluation.evaluator import Evaluator
from core.features.kaldi import spec_augment
from core.pruning.extraction import open_blocks
from core.pruning.space import Choice
from core.report import Report, Stage
from core.training import checkpoint
from core.training.distillation import Distillation, Student
from core.training.intermediate_ctc import InterCTC, has_stochastic_depth, sample_skips
from core.training.optim_step import autocast, optimizer_step, weighted_total
from core.training.optimizers import primal, warmup_cosine


class DivergenceError(RuntimeError):
    """The loss is not finite; the last checkpoint was saved before that."""


@runtime_checkable
class Trainable(Protocol):
    """A stage of a trial: it takes steps, and can be saved and resumed."""

    stage: Stage
    steps: int

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take one optimizer step on an augmented batch; return the losses, detached."""

    def evaluate(self) -> Report:
        """Measure on dev the model that would be extracted now; without step and losses."""

    def state(self) -> dict[str, Any]:
        """Return all state on which later steps depend."""

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Tuning(Trainable, Protocol):
    """A stage that ends with a dense model."""

    model: Conformer


@dataclass(kw_only=True, slots=True)
class RunningMeans:
    """Mean losses and speed since the last report."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    """Added up on the device, in float64."""
    steps: int = 0
    seconds: float = 0.0
    """Seconds of speech trained on."""
    started: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], seconds: float) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.steps += 1
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.steps for name, value in self.sums.items()}

    def speed(self) -> float:
        return self.seconds / (time.perf_counter() - self.started)


@dataclass(kw_only=True, slots=True)
class TrainRun:
    """The state that a trial's stages share: data, random generators, checkpoints, step counts."""

    batches: TrainBatches | ReadAhead
    augment: AugmentConfig
    augment_rng: torch.Generator
    """Its own generator, so that touching the model does not reorder the data."""
    runtime: RuntimeConfig
    device: torch.device
    checkpoints: Path
    total_steps: int
    steps_before: int = 0
    """Steps of earlier stages."""
    ranks: Ranks = ALONE
    """The ranks that train together; each has its own run, and all take the same steps."""
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    """Stored in checkpoints besides the stage's state: what is needed to make the stage again."""
    reports: list[Report] = field(default_factory=list)
    """All reports of the trial so far, those before a resume included; on the first rank only."""

    def save(self, stage: Trainable, step: int, running: RunningMeans) -> None:
        # All ranks take part in gathering, so it comes before the others return.
        position = self.position()
        if not self.ranks.is_first:
            return
        state = {
            "stage": stage.stage,
            "step": step,
            "steps_before": self.steps_before,
            "sums": {name: float(value) for name, value in running.sums.items()},
            "since": running.steps,
            "reports": [asdict(report) for report in self.reports],
            "model": stage.state(),
            "extra_state": dict(self.extra_state),
            **position,
        }
        checkpoint.save(self.checkpoints, self.steps_before + step, state)

    def position(self) -> dict[str, Any]:
        """Return the state of the data and of the random generators, of all ranks."""
        first, *others = self.ranks.gather(self._rng_states())
        return {
            "batches": self.batches.state_dict(),
            "augment_rng_state": self.augment_rng.get_state(),
            **first,
            "other_ranks": others,
        }

    def _rng_states(self) -> dict[str, Tensor]:
        states = {"rng_state": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["device_rng_state"] = torch.cuda.get_rng_state()
        return states

    def restore(self, stage: Trainable, state: dict[str, Any]) -> RunningMeans:
        stage.restore(state["model"])
        self.seek(state)
        return RunningMeans(sums=dict(state["sums"]), steps=state["since"])

    def seek(self, state: Mapping[str, Any]) -> None:
        """Set the data and the random generators to a state from `position`."""
        self.batches.load_state_dict(state["batches"])
        self.augment_rng.set_state(state["augment_rng_state"])
        # The first rank's states lie in `state` itself, as where a single process trained.
        by_rank = [state, *state["other_ranks"]]
        if self.ranks.rank < len(by_rank):  # there may be more ranks than before the resume
            own = by_rank[self.ranks.rank]
            torch.set_rng_state(own["rng_state"])
            if "device_rng_state" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["device_rng_state"])


def fit(
    stage: Trainable, run: TrainRun, *, resume: dict[str, Any] | None = None
) -> Iterator[Report]:
    """Train a stage to its end, and yield its reports.

    Only the first rank evaluates and yields; the others wait for it at their next step.

    Args:
        stage: to be trained.
        run: the trial's state, which is updated.
        resume: a checkpoint of this stage to resume from.

    Raises:
        DivergenceError: if the mean loss is not finite.
    """
    running = run.restore(stage, resume) if resume else RunningMeans()
    first = resume["step"] if resume else 0
    runtime, ranks = run.runtime, run.ranks
    ranks.align(stage.state())
    # The range comes first: at its end, `zip` stops before it draws a batch that nothing trains on.
    for step, batch in zip(range(first, stage.steps), run.batches, strict=False):
        # Outside `together`: every rank augments the whole batch alike, then takes its part.
        ready = augment_batch(batch.to(run.device), run)
        with together(ranks):
            losses = stage.step(ready, step)
        running.add(losses, batch.seconds)
        done = step + 1
        is_due = done % runtime.report_steps == 0 or done == stage.steps
        # A checkpoint between two reports holds the running sums, so a resumed run reports the same
        # means.
        if not is_due and done % runtime.checkpoint_steps:
            continue
        means, speed = running.means(), running.speed()
        if not math.isfinite(means["total"]):
            raise DivergenceError(
                f"The mean loss must be a number, but is {means['total']} at step {done} of"
                f" `{stage.stage}` instead; try lower learning rates"
            )
        if is_due:
            # Before the checkpoint is saved: a resumed run must not count these steps again.
            running = RunningMeans()
            if ranks.is_first:
                run.reports.append(_complete_report(stage.evaluate(), run, done, means, speed))
        run.save(stage, done, running)
        if is_due and ranks.is_first:
            yield run.reports[-1]
            # What the caller does with the report is no time of training.
            running.started = time.perf_counter()
    run.steps_before += stage.steps


def augment_batch(batch: Batch, run: TrainRun) -> Batch:
    features = spec_augment(batch.features, batch.num_frames, run.augment, run.augment_rng)
    return replace(batch, features=features)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The schedule of the learning rate, weight decay and gradient clipping."""

    peak: float
    warmup_share: float
    weight_decay: float
    clip: float

    def at(self, step: int, *, steps: int) -> float:
        """Return the rate at a step: linear warm-up, then a cosine."""
        return self.peak * warmup_cosine(step, steps=steps, warmup_share=self.warmup_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachingTask:
    """A teacher, and the choice of its units that the small model keeps."""

    distillation: Distillation
    choice: Choice

    @property
    def width(self) -> Tensor:
        return self.choice["width"].nonzero().squeeze(1)

    @property
    def blocks(self) -> tuple[int, ...]:
        return open_blocks(self.distillation.teacher.shape, self.choice)


class DenseStage:
    """Trains a model without gates: the teacher alone, or a small model with its teacher."""

    def __init__(
        self,
        model: Conformer,
        *,
        stage: Stage,
        steps: int,
        rates: Rates,
        evaluator: Evaluator | None,
        runtime: RuntimeConfig,
        taught: TeachingTask | None = None,
        interctc: InterCTC | None = None,
        micro_batches: int = 1,
        loss: LossConfig = USUAL,
    ) -> None:
        self.model, self.stage, self.steps, self.loss = model, stage, steps, loss
        model.repeats_blocks = runtime.checkpointing
        self.rates, self.evaluator, self.taught = rates, evaluator, taught
        self.interctc = interctc or InterCTC()
        self.precision, self.micro_batches = runtime.precision, micro_batches
        parameters = list(model.parameters())
        if taught is not None:
            parameters += list(taught.distillation.projection.parameters())
        self.primal = primal(parameters, learning_rate=rates.peak, weight_decay=rates.weight_decay)
        self.forward: Callable[..., Any] = (
            torch.compile(model, dynamic=True)
            # Every set of skipped blocks would be another graph.
            if runtime.compile and not has_stochastic_depth(model)
            else model
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        self.model.train()
        rate = self.rates.at(step, steps=self.steps)
        return optimizer_step(
            batch,
            self._losses,
            parts=self.micro_batches,
            optimizer=self.primal,
            rate=rate,
            clip=self.rates.clip,
        )

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(batch.features.device, self.precision):
            skipped = sample_skips(self.model)
            output = self.forward(batch.features, batch.num_frames, skipped, batch.tokens)
            task = task_loss(output, batch.tokens, batch.num_tokens, self.loss)
            if self.taught is None:
                return self.interctc.losses(task, self.model, output, batch)
            distillation = self.taught.distillation
            width = self.taught.width.to(batch.features.device, non_blocking=True)
            is_active = torch.tensor([bool(block.parts()) for block in self.model.typed_blocks()])
            is_active = is_active.bool().to(batch.features.device, non_blocking=True)
            blocks = self.taught.blocks
            student = Student(output=output, width=width, is_active=is_active, blocks=blocks)
            terms = distillation.losses(
                batch.features,
                batch.num_frames,
                student,
                transcripts=(batch.tokens, batch.num_tokens),
            )
        return weighted_total({"task": task, **terms}, distillation)

    def evaluate(self) -> Report:
        assert self.evaluator is not None, "a stage without an evaluator cannot be evaluated"
        return self.evaluator.report(self.model, self.stage)

    def state(self) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "primal": self.primal.state_dict()}
        if self.taught is not None:
            state["projection"] = self.taught.distillation.projection.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.primal.load_state_dict(state["primal"])
        if self.taught is not None:
            self.taught.distillation.projection.load_state_dict(state["projection"])


def _complete_report(
    report: Report, run: TrainRun, done: int, means: dict[str, float], speed: float
) -> Report:
    return replace(
        report,
        step=run.steps_before + done,
        total_steps=run.total_steps,
        losses=means,
        audio_seconds_per_second=speed,
    )
