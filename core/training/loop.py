"""The loop that all training shares, and the stage that trains a dense model.

A stage takes steps; `fit` walks it from checkpoint to checkpoint and yields a report at each
evaluation, after the checkpoint that would bring a killed run back to this very point, and that
holds the report itself, lest nobody hears it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.config.trial import AugmentConfig, RuntimeConfig
from core.conformer.model import Conformer
from core.data.batching import Batch, TrainBatches
from core.distributed import ALONE, Ranks, current, together
from core.evaluation.evaluator import Evaluator
from core.features.kaldi import spec_augment
from core.pruning.extraction import open_blocks
from core.pruning.space import Choice
from core.report import Report, Stage
from core.training import checkpoint
from core.training.distillation import Distillation, Student, ctc_loss
from core.training.intermediate_ctc import InterCTC, drawn_skips, has_stochastic_depth
from core.training.optimizers import primal, set_rate, warmed_cosine


class DivergenceError(RuntimeError):
    """The loss is no number any more; the last checkpoint is from before."""


@runtime_checkable
class Trainable(Protocol):
    """A stage of a trial: it takes steps, and can be put away and taken up again."""

    stage: Stage
    steps: int

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimizer step on an augmented batch; returns the losses, detached."""

    def evaluate(self) -> Report:
        """The model as it would be extracted now, measured on dev, without step or losses."""

    def state(self) -> dict[str, Any]:
        """All that decides the steps to come."""

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Tuning(Trainable, Protocol):
    """A stage that ends with a dense model."""

    model: Conformer


@dataclass(kw_only=True, slots=True)
class RunningMeans:
    """What happened since the last report."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    """Speech trained on."""
    started: float = field(default_factory=time.perf_counter)

    def add(self, losses: dict[str, Tensor], seconds: float) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.steps += 1
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        return {name: value / self.steps for name, value in self.sums.items()}

    def speed(self) -> float:
        return self.seconds / (time.perf_counter() - self.started)


@dataclass(kw_only=True, slots=True)
class TrainRun:
    """Where a trial's stages meet: its data, its chance, its checkpoints, its count of steps."""

    batches: TrainBatches
    augment: AugmentConfig
    augment_chance: torch.Generator
    """Its own generator, so that touching the model does not reorder the data."""
    runtime: RuntimeConfig
    device: torch.device
    checkpoints: Path
    total_steps: int
    steps_before: int = 0
    """Steps of the stages that are done."""
    ranks: Ranks = ALONE
    """Who walks together; each has a journey of its own, and all come by the same places."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What checkpoints hold besides the stage's state: what it takes to make the stage again."""
    reports: list[Report] = field(default_factory=list)
    """Of the first rank: all so far, also those of earlier runs."""

    def save(self, stage: Trainable, step: int, tally: RunningMeans) -> None:
        place = self.place()
        if not self.ranks.is_first:
            return
        state = {
            "stage": stage.stage,
            "step": step,
            "steps_before": self.steps_before,
            "sums": tally.sums,
            "since": tally.steps,
            "reports": [asdict(report) for report in self.reports],
            "model": stage.state(),
            "extra_state": dict(self.beside),
            **place,
        }
        checkpoint.save(self.checkpoints, self.steps_before + step, state)

    def place(self) -> dict[str, Any]:
        """Where data and chance stand, of all ranks."""
        first, *others = self.ranks.gather(self._chance())
        return {
            "batches": self.batches.state_dict(),
            "augment_rng_state": self.augment_chance.get_state(),
            **first,
            "other_ranks": others,
        }

    def _chance(self) -> dict[str, Tensor]:
        chance = {"rng_state": torch.get_rng_state()}
        if self.device.type == "cuda":
            chance["device_rng_state"] = torch.cuda.get_rng_state()
        return chance

    def restore(self, stage: Trainable, state: dict[str, Any]) -> RunningMeans:
        stage.restore(state["model"])
        self.go_to(state)
        return RunningMeans(sums=dict(state["sums"]), steps=state["since"])

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Put data and chance where `place` found them."""
        self.batches.load_state_dict(state["batches"])
        self.augment_chance.set_state(state["augment_rng_state"])
        chances = [state, *state["other_ranks"]]
        if self.ranks.rank < len(chances):  # there may be more ranks now than there were
            chance = chances[self.ranks.rank]
            torch.set_rng_state(chance["rng_state"])
            if "device_rng_state" in chance and self.device.type == "cuda":
                torch.cuda.set_rng_state(chance["device_rng_state"])


def fit(
    stage: Trainable, journey: TrainRun, *, resume: dict[str, Any] | None = None
) -> Iterator[Report]:
    """Walk a stage to its end, from a checkpoint of it if one is given.

    Only the first rank evaluates and yields; the others wait for it at their next step.
    """
    tally = journey.restore(stage, resume) if resume else RunningMeans()
    first = resume["step"] if resume else 0
    runtime, ranks = journey.runtime, journey.ranks
    ranks.align(stage.state())
    for step, batch in zip(range(first, stage.steps), journey.batches, strict=False):
        ready = augment_batch(batch.to(journey.device), journey)
        with together(ranks):
            losses = stage.step(ready, step)
        tally.add(losses, batch.seconds)
        done = step + 1
        is_due = done % runtime.report_steps == 0 or done == stage.steps
        if not is_due and done % runtime.checkpoint_steps:
            continue
        means, speed = tally.means(), tally.speed()
        if not math.isfinite(means["total"]):
            raise DivergenceError(
                f"The mean loss must be a number, but is {means['total']} at step {done} of"
                f" `{stage.stage}` instead; lower rates, perhaps."
            )
        if is_due:
            tally = RunningMeans()
            if ranks.is_first:
                journey.reports.append(_completed(stage.evaluate(), journey, done, means, speed))
        journey.save(stage, done, tally)
        if is_due and ranks.is_first:
            yield journey.reports[-1]
            tally.started = time.perf_counter()
    journey.steps_before += stage.steps


def augment_batch(batch: Batch, journey: TrainRun) -> Batch:
    features = spec_augment(
        batch.features, batch.num_frames, journey.augment, journey.augment_chance
    )
    return replace(batch, features=features)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How fast weights move."""

    peak: float
    warmup_share: float
    weight_decay: float
    clip: float

    def at(self, step: int, *, steps: int) -> float:
        """Up over the warm-up, then down as a cosine."""
        return self.peak * warmed_cosine(step, steps=steps, warmup_share=self.warmup_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachingTask:
    """A teacher, and what of it a small model kept."""

    distillation: Distillation
    choice: Choice

    @property
    def width(self) -> Tensor:
        return self.choice["width"].nonzero().squeeze(1)

    @property
    def blocks(self) -> tuple[int, ...]:
        return open_blocks(self.distillation.teacher.shape, self.choice)


class DenseStage:
    """Training of a model without gates: the teacher alone, or a small model from its teacher."""

    def __init__(
        self,
        model: Conformer,
        *,
        stage: Stage,
        steps: int,
        rates: Rates,
        judge: Evaluator | None,
        runtime: RuntimeConfig,
        taught: TeachingTask | None = None,
        interctc: InterCTC | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.model, self.stage, self.steps = model, stage, steps
        self.rates, self.judge, self.taught = rates, judge, taught
        self.interctc = interctc or InterCTC()
        self.precision, self.micro_batches = runtime.precision, micro_batches
        parameters = list(model.parameters())
        if taught is not None:
            parameters += list(taught.distillation.projection.parameters())
        self.primal = primal(parameters, learning_rate=rates.peak, weight_decay=rates.weight_decay)
        self.forward: Callable[..., Any] = (
            torch.compile(model, dynamic=True)
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
            skipped = drawn_skips(self.model)
            output = self.forward(batch.features, batch.num_frames, skipped)
            task = ctc_loss(output, batch.tokens, batch.num_tokens)
            if self.taught is None:
                return self.interctc.losses(task, self.model, output, batch)
            distillation = self.taught.distillation
            width = self.taught.width.to(batch.features.device)
            alive = tuple(bool(block.parts()) for block in self.model.typed_blocks())
            blocks = self.taught.blocks
            student = Student(output=output, width=width, alive=alive, blocks=blocks)
            terms = distillation.losses(batch.features, batch.num_frames, student)
        return weighted_total({"task": task, **terms}, distillation)

    def evaluate(self) -> Report:
        assert self.judge is not None, "only a stage that is fitted is judged"
        return self.judge.report(self.model, self.stage)

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


Losses = dict[str, Tensor]
"""By name; of `total` the gradients are taken."""


def optimizer_step(
    batch: Batch,
    losses: Callable[[Batch], Losses | Iterator[Losses]],
    *,
    parts: int,
    optimizer: torch.optim.Optimizer,
    rate: float,
    clip: float,
) -> dict[str, Tensor]:
    """One step of an optimizer down a batch's losses; returns them, detached."""
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    found = accumulate_gradients(batch, losses, parts=parts, optimizers=[optimizer])
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    optimizer.step()
    return found


def accumulate_gradients(
    batch: Batch,
    losses: Callable[[Batch], Losses | Iterator[Losses]],
    *,
    parts: int,
    optimizers: Iterable[torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Leave the gradients of a batch's losses, taken part by part; return the losses, detached.

    Losses that come one after the other add up; each lets its activations go before the next.
    Of each part every rank takes its share; the sums over ranks are what one would have found.
    """
    ranks = current()
    sums: dict[str, Tensor] = {}
    for part in batch.parts(parts):
        share = len(part.ids) / len(batch.ids)
        own = part.share(ranks.rank, ranks.size)
        # Who gets nothing goes the same way with what counts nothing: the others wait for it.
        with together(replace(ranks, is_idle=own is None)):
            found = losses(own or part.parts(len(part.ids))[0])
            for each in [found] if isinstance(found, dict) else found:
                (share * each["total"]).backward()
                for name, loss in each.items():
                    sums[name] = sums.get(name, 0.0) + share * loss.detach()
    held = [p.grad for o in optimizers for group in o.param_groups for p in group["params"]]
    ranks.add_up([*(grad for grad in held if grad is not None), *sums.values()])
    return sums


def weighted_total(terms: dict[str, Tensor], distillation: Distillation) -> dict[str, Tensor]:
    """The terms, and their weighted sum as `total`."""
    config = distillation.config
    weights = {
        "task": config.task_weight,
        "logit": config.logit_weight,
        "layer": config.layer_weight,
    }
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return {"total": total, **terms}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    is_half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half)


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 have instructions of their own; elsewhere they are slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for it that the oldest version we allow answers, too.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001


def _completed(
    report: Report, journey: TrainRun, done: int, means: dict[str, float], speed: float
) -> Report:
    return replace(
        report,
        step=journey.steps_before + done,
        total_steps=journey.total_steps,
        losses=means,
        audio_seconds_per_second=speed,
    )
