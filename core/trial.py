"""The story of one trial, top to bottom: teacher, search, extraction, tuning, measuring.

`prepare` makes what all trials of a sweep share; `run` is one trial. Both are generators of
reports, both find out by themselves how far they had come, and whoever wants to hear iterates.
"""

import json
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from core.config import ConfigError, TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import MELS, Shape
from core.corpora.batches import Batch, TrainBatches
from core.corpora.prepared import NUM_PARTS, Speech, is_prepared, open_speech, prepare_speech
from core.deploy import bundle
from core.evaluation.judge import Judge
from core.pruning.budget import Budget, Scores, choose
from core.pruning.extraction import as_mask, clone, extract
from core.pruning.repair import Calibration, reestimate_statistics, repaired
from core.pruning.space import Choice, Space
from core.ranks import ALONE, Ranks
from core.report import Outcome, Report
from core.training import checkpoint
from core.training.distillation import Distillation
from core.training.method import Found, Method, Workbench, load_method
from core.training.trainer import DenseStage, Journey, Rates, Taught, fit

CHECKPOINTS = "checkpoints"
OUTCOMES = "outcomes.json"
"""Of a trial's folder: that it is done, and what it found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a trial works; all absolute, as a worker's current folder is nobody's business."""

    teacher: Path
    """Shared by all trials of a sweep: the teacher's bundle and checkpoints."""
    features: Path
    """Shared: the demo's speech, the tokenizer and the cached features."""
    trial: Path
    """This trial's own: checkpoints, the extracted model, outcomes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a trial will cost, before any data is looked at."""

    params: int
    """Of the unpruned model."""
    gflops: float
    """Of the unpruned model, at the stated utterance length."""
    seconds_per_step: float
    """One measured dense training step on this machine, full batch."""


def prepare(config: TrialConfig, place: Place) -> Iterator[Report]:
    """Make what all trials share: corpus, tokenizer, features and teacher. Resumable; done once.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
        BundleError: if a given teacher is no whole bundle.
    """
    if is_prepared(config.corpus, place.features) and bundle.is_whole(place.teacher / "model"):
        return
    given = bundle.load(Path(config.teacher.bundle)) if config.teacher.bundle else None
    if not is_prepared(config.corpus, place.features):
        torch.set_num_threads(_cores())
        tokens = given.tokenizer if given else None
        for part in prepare_speech(config.corpus, place.features, tokenizer=tokens):
            yield Report(stage="speech", step=part, total_steps=NUM_PARTS)
    if bundle.is_whole(place.teacher / "model"):
        return
    if given is not None:
        bundle.save(place.teacher / "model", given.model, given.tokenizer, given.report)
    else:
        yield from _train_teacher(config, place)


def run(
    config: TrialConfig, place: Place, ranks: Ranks = ALONE, *, known: int | None = None
) -> Generator[Report, None, list[Outcome]]:
    """One trial to its end, from wherever it had come to.

    Of several ranks all run it, on their parts of the same batches, and the first alone reports,
    writes and has outcomes. But for rounding, and for dropout, it is the trial that one would run.

    Args:
        config: the trial's.
        place: where it works.
        ranks: who works on it.
        known: reports of an earlier run are said again if they are of later steps than this;
            None says that all are known.

    Raises:
        BundleError, CorpusError: if what `prepare` makes is missing or damaged.
        CheckpointError: if all checkpoints of this trial are damaged.
        ValueError: if the target cannot be met by this model and these axes.
    """
    if known is not None and ranks.is_first:
        yield from _unheard(place, known)
    outcomes = ranks.first(_told(place))
    if not outcomes:
        outcomes = yield from _first_outcomes(config, place, ranks)
    if outcomes[0].steps < _total_steps(config):
        outcomes = yield from _later_outcomes(config, place, ranks, outcomes[0])
    return outcomes if ranks.is_first else []


def _first_outcomes(
    config: TrialConfig, place: Place, ranks: Ranks
) -> Generator[Report, None, list[Outcome]]:
    """Search, extraction and tuning."""
    _set_chance(config, config.runtime.threads, ranks)
    speech, method = open_speech(place.features), load_method(config.pruning.method)
    bench = _open_bench(config, place, speech, method)
    search = method.search(bench)
    search_steps = search.steps if search else 0
    steps = config.pruning.steps + config.tuning.steps
    journey = _journey(config, place.trial, speech, bench.device, _total_steps(config))
    journey.ranks = ranks
    resume = _newest(journey)
    if resume is not None and resume["stage"] == "tune":
        journey.steps_before = search_steps
        choice = resume["model"]["choice"]
        small = extract(bench.student, as_mask(choice))
    else:
        if search is not None:
            yield from fit(search, journey, resume=resume)
        resume = None
        found = ranks.first(method.found(bench, search))
        choice = bench.choose(found.scores)
        small = method.started(_extracted(bench, found, choice), bench)
    stage = _tuning(bench, small, choice, steps=steps - search_steps)
    yield from fit(stage, journey, resume=resume)
    target = method.target(config)
    return ranks.first(
        [_judged(bench, place, stage, target=target, steps=steps, name="model")]
        if ranks.is_first
        else []
    )


def _later_outcomes(
    config: TrialConfig, place: Place, ranks: Ranks, earlier: Outcome
) -> Generator[Report, None, list[Outcome]]:
    """The finished model, tuned on; it stands until a later one is whole."""
    _set_chance(config, config.runtime.threads, ranks)
    speech, method = open_speech(place.features), load_method(config.pruning.method)
    bench = _open_bench(config, place, speech, method)
    found = bundle.load(place.trial / earlier.model) if ranks.is_first else None
    choice = bench.space.choice_of(ranks.first(found.report["kept"] if found else {}))
    small = extract(bench.student, as_mask(choice))
    small.load_state_dict(ranks.first(found.model.state_dict() if found else {}))
    steps = _total_steps(config)
    stage = _tuning(bench, small, choice, steps=steps - earlier.steps)
    again = config.model_copy(update={"seed": config.seed + earlier.steps})  # other batches first
    journey = _journey(again, place.trial, speech, bench.device, steps)
    journey.ranks, journey.steps_before = ranks, earlier.steps
    resume = _newest(journey)
    is_on_its_way = resume is not None and resume["steps_before"] == earlier.steps
    yield from fit(stage, journey, resume=resume if is_on_its_way else None)
    target, name = method.target(config), f"model-{steps}"
    return ranks.first(
        [_judged(bench, place, stage, target=target, steps=steps, name=name)]
        if ranks.is_first
        else []
    )


def _newest(journey: Journey) -> dict[str, Any] | None:
    """The first rank's newest checkpoint: shared folders show the others older ones for a while."""
    ranks = journey.ranks
    newest: dict[str, Any] | None = ranks.first(
        checkpoint.load_newest(journey.checkpoints) if ranks.is_first else None
    )
    journey.reports = _reports(newest)
    return newest


def _unheard(place: Place, known: int) -> Iterator[Report]:
    """What a killed driver, or a lost copy of its ledger, does not know of this trial."""
    try:
        newest = checkpoint.load_newest(place.trial / CHECKPOINTS)
    except checkpoint.CheckpointError:
        return  # whoever must go on from them says so; what is finished needs none
    yield from (report for report in _reports(newest) if report.step > known)


def _reports(state: dict[str, Any] | None) -> list[Report]:
    return [Report(**values) for values in state["reports"]] if state else []


def _judged(
    bench: Workbench, place: Place, stage: DenseStage, *, target: float, steps: int, name: str
) -> Outcome:
    """Measure a tuned model and keep it, and only then say that it is there."""
    small, taught, speech = stage.model, stage.taught, bench.judge.speech
    assert taught is not None, "a small model has a teacher"
    assert speech is not None, "whoever judges has speech"
    reestimate_statistics(small, bench.speech)
    outcome = bench.judge.outcome(small, target=target, steps=steps, folder=name)
    kept = {axis: units.nonzero().flatten().tolist() for axis, units in taught.choice.items()}
    report = {"outcome": asdict(outcome), "config": bench.config.model_dump(), "kept": kept}
    bundle.save(place.trial / name, small, speech.tokenizer, report)
    _write(place.trial / OUTCOMES, json.dumps([asdict(outcome)]))
    return outcome


def _told(place: Place) -> list[Outcome]:
    """What this trial came to in an earlier run."""
    done = place.trial / OUTCOMES
    return [Outcome(**values) for values in json.loads(done.read_text())] if done.is_file() else []


def _total_steps(config: TrialConfig) -> int:
    return config.pruning.steps + config.tuning.steps + config.tuning.more_steps


def price(config: TrialConfig) -> Price:
    """Sizes, and the time of one dense step on noise: what `check` shows before a sweep."""
    _set_chance(config, config.runtime.threads)
    device, vocabulary = device_of(config), config.corpus.vocabulary
    model = Conformer(Shape.of(config.model, vocabulary)).to(device)
    space = Space.of(model, config.pruning.axes, config.pruning.utterance_seconds)
    cost = space.full_cost()
    rates = Rates(peak=1e-4, warmup_share=0.0, weight_decay=0.0, clip=1.0)
    stage = DenseStage(
        model, stage="teacher", steps=2, rates=rates, judge=None, runtime=config.runtime
    )
    batch = _noise(config, vocabulary).to(device)
    stage.step(batch, 0)
    started = time.perf_counter()
    float(stage.step(batch, 1)["total"])
    elapsed = time.perf_counter() - started
    return Price(params=int(cost.params), gflops=float(cost.flops) / 1e9, seconds_per_step=elapsed)


def device_of(config: TrialConfig) -> torch.device:
    """The device that a config asks for.

    Raises:
        ConfigError: if it asks for a GPU that is not there.
    """
    name = config.runtime.device
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`runtime.device` must be a device of this machine, but `cuda` is not.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _train_teacher(config: TrialConfig, place: Place) -> Iterator[Report]:
    _set_chance(config, max(config.runtime.threads, _cores()))
    speech, device = open_speech(place.features), device_of(config)
    model = Conformer(Shape.of(config.model, speech.tokenizer.size))
    mean, deviation = speech.train.statistics()
    model.frontend.mean.copy_(mean)
    model.frontend.deviation.copy_(deviation)
    model.to(device).set_dropout(config.model.dropout)
    space = Space.of(model, config.pruning.axes, config.pruning.utterance_seconds)
    judge = Judge(config, space, speech, device)
    rates = Rates(
        peak=config.teacher.learning_rate,
        warmup_share=config.teacher.warmup_share,
        weight_decay=config.teacher.weight_decay,
        clip=config.training.clip,
    )
    steps = config.teacher.steps
    stage = DenseStage(
        model,
        stage="teacher",
        steps=steps,
        rates=rates,
        judge=judge,
        runtime=config.runtime,
        micro_batches=config.training.micro_batches,
    )
    journey = _journey(config, place.teacher, speech, device, steps)
    yield from fit(stage, journey, resume=checkpoint.load_newest(journey.checkpoints))
    reestimate_statistics(model, calibration_speech(config, speech, device))
    outcome = judge.outcome(model, target=0.0, steps=steps)
    report = {"outcome": asdict(outcome), "config": config.model_dump()}
    bundle.save(place.teacher / "model", model, speech.tokenizer, report)


def _open_bench(config: TrialConfig, place: Place, speech: Speech, method: Method) -> Workbench:
    device, pruning = device_of(config), config.pruning
    teacher = bundle.load(place.teacher / "model").model.to(device)
    space = Space.of(clone(teacher), pruning.axes, pruning.utterance_seconds)
    budget = Budget(keep=1 - method.target(config), resource=pruning.resource)

    def chosen(scores: Scores) -> dict[str, torch.Tensor]:
        return choose(space, scores, budget, is_filled=True) if scores else space.open_choice()

    return Workbench(
        config=config,
        student=clone(teacher).requires_grad_(),
        distillation=Distillation(teacher, config.distillation).to(device),
        space=space,
        speech=calibration_speech(config, speech, device),
        choose=chosen,
        judge=Judge(config, space, speech, device),
        device=device,
    )


def calibration_speech(config: TrialConfig, speech: Speech, device: torch.device) -> Calibration:
    """The first batches of an order of their own: the same ones, whoever asks and whenever."""
    batches = TrainBatches(speech.train, config.training.batch_seconds, config.seed + 1)
    ready = (next(batches).to(device) for _ in range(config.pruning.calibration_batches))
    return [(batch.features, batch.num_frames) for batch in ready]


def _extracted(bench: Workbench, found: Found, choice: Choice) -> Conformer:
    how = bench.config.pruning.repair
    small = repaired(bench.student, found.reference, choice, how=how, speech=bench.speech)
    reestimate_statistics(small, bench.speech)
    return small


def _tuning(bench: Workbench, small: Conformer, choice: Choice, *, steps: int) -> DenseStage:
    config = bench.config
    small.set_dropout(config.tuning.dropout)
    rates = Rates(
        peak=config.tuning.learning_rate,
        warmup_share=config.tuning.warmup_share,
        weight_decay=config.teacher.weight_decay,
        clip=config.training.clip,
    )
    return DenseStage(
        small,
        stage="tune",
        steps=steps,
        rates=rates,
        judge=bench.judge,
        runtime=config.runtime,
        taught=Taught(distillation=bench.distillation, choice=choice),
        micro_batches=config.training.micro_batches,
    )


def _journey(
    config: TrialConfig, folder: Path, speech: Speech, device: torch.device, steps: int
) -> Journey:
    return Journey(
        batches=TrainBatches(speech.train, config.training.batch_seconds, config.seed),
        augment=config.training.augment,
        augment_chance=torch.Generator().manual_seed(config.seed),
        runtime=config.runtime,
        device=device,
        checkpoints=folder / CHECKPOINTS,
        total_steps=steps,
    )


def _set_chance(config: TrialConfig, threads: int, ranks: Ranks = ALONE) -> None:
    """The one door through which chance comes in; the order of the data has its own generator.

    What all ranks must draw alike is the first one's to draw; dropout should differ between them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed + 2**31 * ranks.rank)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _noise(config: TrialConfig, vocabulary: int) -> Batch:
    """A full batch of utterances of 4 s."""
    count = max(1, round(config.training.batch_seconds / 4))
    return Batch(
        features=torch.randn(count, 400, MELS),
        num_frames=torch.full((count,), 400),
        tokens=torch.randint(1, vocabulary, (count, 8)),
        num_tokens=torch.full((count,), 8),
        seconds=4.0 * count,
        ids=("",) * count,
        texts=("",) * count,
        indices=tuple(range(count)),
    )


def _write(file: Path, text: str) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(text)
    beside.replace(file)
