"""What a trial will cost, before any data is looked at: what `check` shows before a sweep."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from core import bundle
from core.config.settings import ConcreteSettings
from core.config.trial import NO_SPEECH, TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.methods.obs import Settings as ObsSettings
from core.pruning.space import Space
from core.pruning.table_cost import (
    estimate_table_bytes,
    estimate_table_seconds,
    measured_passes,
)
from core.runtime import seed_everything, select_device
from core.stages import Announce, be_silent
from core.step_memory import StepMemory, estimate_largest, noise_batch, with_counted_parts
from core.training.intermediate_ctc import InterCTC
from core.training.loop import DenseStage, Rates


@dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """Sizes, and the time of one step."""

    params: int
    """Of the unpruned model."""
    gflops: float
    """Of the unpruned model, at the stated utterance length."""
    seconds_per_step: float
    """One measured dense training step on this machine, full batch; 0 where nothing is trained."""
    table_seconds: float = 0.0
    """To compute the sensitivity tables, once for all trials; 0 where there are none."""
    table_gigabytes: float = 0.0
    """Memory of their sums, beside the model."""
    memory: StepMemory | None = None
    """Of the step that needs most; None where nothing is trained."""
    micro_batches: int = 1
    """Parts of a batch, `auto` counted."""


def estimate_cost(config: TrialConfig, *, announce: Announce = be_silent) -> CostEstimate:
    """Estimates the cost of a trial by two dense steps on noise.

    Args:
        config: of a trial.
        announce: called as each stage begins.

    Raises:
        BundleError: if a given teacher is no whole bundle.
    """
    seed_everything(config, config.runtime.threads)
    device = select_device(config)
    announce("reading the model")
    model = _open_unpruned(config).to(device)
    space = Space.of(model, config.pruning.axes, config.pruning.utterance_seconds)
    cost = space.unpruned
    params, gflops = int(cost.params), float(cost.flops) / 1e9
    if config.corpus.name == NO_SPEECH:  # a step would take four times the memory, for nothing
        return CostEstimate(params=params, gflops=gflops, seconds_per_step=0.0)
    announce("counting the memory of a step")
    config = with_counted_parts(config, model.shape)
    memory, parts = estimate_largest(config, model.shape), config.training.parts
    elapsed = _step_seconds(config, model, announce)
    estimate = CostEstimate(
        params=params,
        gflops=gflops,
        seconds_per_step=elapsed,
        memory=memory,
        micro_batches=parts,
    )
    if "obs" not in (config.pruning.method, _start_of(config)):
        return estimate
    announce("timing an order of units")
    passes = _table_passes(config, space) * config.pruning.calibration_batches * elapsed
    return replace(
        estimate,
        table_seconds=passes + estimate_table_seconds(space),
        table_gigabytes=estimate_table_bytes(space) / 1e9,
    )


def _step_seconds(config: TrialConfig, model: Conformer, announce: Announce) -> float:
    """Return the time of a dense training step on a full batch of noise, after one to warm up."""
    model.set_stochastic_depth(config.teacher.stochastic_depth)
    stage = DenseStage(
        model,
        stage="teacher",
        steps=2,
        rates=Rates(peak=1e-4, warmup_share=0.0, weight_decay=0.0, clip=1.0),
        evaluator=None,
        runtime=config.runtime,
        interctc=InterCTC.of(config.teacher, len(model.blocks)),
        micro_batches=config.training.parts,
    )
    batch = noise_batch(config, model.shape, seconds=4.0).to(model.device)
    announce("taking a step of training to warm up")
    stage.step(batch, 0)
    announce("timing a step of training")
    started = time.perf_counter()
    # As a number: on a GPU this waits until the step is done.
    float(stage.step(batch, 1)["total"])
    return time.perf_counter() - started


def _table_passes(config: TrialConfig, space: Space) -> float:
    """Return how often the tables read the calibration speech, in steps of training.

    A pass forward and backward for the Fisher of consumers and one for that of the width; a third
    for their inputs. A pass forward alone takes a third of a step.
    """
    settings = config.pruning.settings(ObsSettings)
    is_measured = settings.tables == "measured"
    measured = measured_passes(space, settings.levels, consumers_too=is_measured)
    return (2 if is_measured else 3) + measured / 3


def _start_of(config: TrialConfig) -> str:
    """Return the method whose scores gates start from; "" if there is none."""
    return config.pruning.settings(ConcreteSettings).start_from


def _open_unpruned(config: TrialConfig) -> Conformer:
    if config.teacher.bundle:
        return bundle.load(Path(config.teacher.bundle)).model
    return Conformer(Shape.of(config.model, config.corpus.vocabulary))
