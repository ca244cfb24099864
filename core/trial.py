"""The story of one trial, top to bottom: search, extraction, tuning, measuring.

`run` is a generator of reports: it finds out by itself how far it had come, and whoever wants to
hear iterates. What all trials share, core/teacher.py made before.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import torch

from core import bundle
from core.config.pruning import Repair
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.prepare import Speech, open_speech
from core.distributed import ALONE, Ranks
from core.evaluation.evaluator import Evaluator
from core.files import atomic_write
from core.latency import cache
from core.outside_files import read_json
from core.pruning.extraction import as_mask, clone, extract
from core.pruning.reconstruction import extract_and_reconstruct, reestimate_statistics
from core.pruning.selection import Scores, choose_for_target, depth_order
from core.pruning.space import Choice, Space
from core.report import KEPT_UNITS, LONGEST_TRAINED, Outcome, Report
from core.runtime import TrialDirs, seed_everything, select_device
from core.training import checkpoint
from core.training.distillation import Distillation
from core.training.loop import Trainable, TrainRun, Tuning, fit
from core.training.method import Method, MethodContext, SearchResult, guard_audio, load_method
from core.training.setup import (
    CHECKPOINTS,
    calibration_batches,
    count_clean_steps,
    make_train_run,
    without_words,
)

OUTCOMES = "outcomes.json"
"""Of a trial's folder: that it is done, and what it found."""
FOUND = "found"
"""Of a trial's folder: what a search left that several outcomes begin with."""


def run(
    config: TrialConfig, place: TrialDirs, ranks: Ranks = ALONE, *, known: int | None = None
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
        ValueError: if a target cannot be met by this model and these axes.
    """
    if known is not None and ranks.is_first:
        yield from _unheard(place, known)
    outcomes = ranks.first(_told(place))
    if not outcomes:
        outcomes = yield from _first_outcomes(open_trial(config, place, ranks))
    if outcomes[0].steps < _steps(config) + config.tuning.more_steps:
        outcomes = yield from _later_outcomes(open_trial(config, place, ranks), outcomes)
    return outcomes if ranks.is_first else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """All that a trial's stages hand on."""

    method: Method
    ctx: MethodContext
    speech: Speech
    place: TrialDirs
    ranks: Ranks

    @property
    def config(self) -> TrialConfig:
        return self.ctx.config

    @property
    def targets(self) -> tuple[float, ...]:
        return self.method.targets(self.config)

    def journey(self, config: TrialConfig, steps: int) -> TrainRun:
        """From the beginning of the data, as a config orders it, for so many steps in all."""
        journey = make_train_run(
            config,
            self.place.trial,
            self.speech,
            self.ctx.device,
            steps,
            clean_steps=count_clean_steps(config, steps // len(self.targets))
            if self.method.is_from_scratch
            else 0,
        )
        journey.ranks = self.ranks
        return journey


def _first_outcomes(trial: Trial) -> Generator[Report, None, list[Outcome]]:
    """One search; then extraction and tuning for each share to remove.

    Each outcome is tuned on the same batches in the same order, as if it were the only one.
    """
    config, ctx, targets = trial.config, trial.ctx, trial.targets
    search = trial.method.search(ctx.restricted_to(trial.method.needs))
    search_steps = search.steps if search else 0
    tune_steps = _steps(config) - search_steps
    journey = trial.journey(config, search_steps + len(targets) * tune_steps)
    resume = _newest(journey)
    is_tuning = resume is not None and resume["stage"] == "tune"
    if search is not None and not is_tuning:
        yield from fit(search, journey, resume=resume)
    names = [_name(number) for number in range(len(targets))]
    outcomes = trial.ranks.first(_kept(place=trial.place, names=names))
    start = None
    for number, target in enumerate(targets):
        journey.steps_before = search_steps + number * tune_steps
        if number < len(outcomes):
            continue
        is_here = is_tuning and resume and resume["steps_before"] == journey.steps_before
        again = resume if is_here else None
        if again is not None:
            cut = ExtractedModel(
                model=extract(ctx.student, as_mask(again["extra_state"]["choice"])),
                **again["extra_state"],
            )
        else:
            start = start or _start(trial, search, journey)
            cut = _cut(trial, start, journey, target)
        stage = _tuning(trial, cut, steps=tune_steps)
        journey.extra_state = {"choice": cut.choice, "depth_order": cut.depth_order}
        yield from fit(stage, journey, resume=again)
        cut = replace(cut, model=stage.model)
        outcomes += _judged(trial, cut, target=target, steps=_steps(config), name=names[number])
    return _ended(trial, outcomes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedModel:
    """A small model on its way to an outcome."""

    model: Conformer
    choice: Choice
    """What of the student it kept."""
    depth_order: tuple[int, ...]
    """Its blocks, best first, where the search ranked blocks."""


def _cut(trial: Trial, start: "SearchState", journey: TrainRun, target: float) -> ExtractedModel:
    """Extract for one share to remove, with chance, data and projection as the search left them."""
    ctx, found = trial.ctx, start.search_result
    journey.seek(start.place)
    ctx.distillation.projection.load_state_dict(start.projection)
    choice = ctx.choose(found.scores, target)
    how = trial.method.repair(ctx.config)
    small = trial.method.prepare_tuning(_extracted(ctx, found, choice, how), ctx)
    return ExtractedModel(
        model=small, choice=choice, depth_order=depth_order(ctx.space, found.scores, choice)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchState:
    """What every outcome of a trial begins with; the student's weights go with it."""

    search_result: SearchResult
    projection: dict[str, torch.Tensor]
    """Through which hidden states are compared."""
    place: dict[str, Any]
    """Of data and chance."""


def _start(trial: Trial, search: Trainable | None, journey: TrainRun) -> SearchState:
    """What the search left; kept where several outcomes need it, which a kill may come between."""
    ranks, student, folder = trial.ranks, trial.ctx.student, trial.place.trial / FOUND
    is_kept = len(trial.targets) > 1
    kept = ranks.first(checkpoint.load_newest(folder) if is_kept and ranks.is_first else None)
    if kept is not None:
        student.load_state_dict(kept["student"])
        found = SearchResult(scores=kept["scores"], reference=kept["reference"])
        return SearchState(
            search_result=found, projection=kept["projection"], place=kept["position"]
        )
    found = ranks.first(
        trial.method.search_result(trial.ctx.restricted_to(trial.method.needs), search)
    )
    projection = trial.ctx.distillation.projection.state_dict()
    start = SearchState(search_result=found, projection=deepcopy(projection), place=journey.place())
    if is_kept and ranks.is_first:
        state = {
            "student": student.state_dict(),
            "scores": dict(found.scores),
            "reference": dict(found.reference),
            "projection": start.projection,
            "position": start.place,
        }
        checkpoint.save(folder, 0, state)
    return start


def _later_outcomes(trial: Trial, earlier: list[Outcome]) -> Generator[Report, None, list[Outcome]]:
    """The finished models, tuned on; they stand until the later ones are whole."""
    config, ctx, ranks = trial.config, trial.ctx, trial.ranks
    before = earlier[0].steps
    more = _steps(config) + config.tuning.more_steps - before
    again = config.model_copy(update={"seed": config.seed + before})  # other batches first
    names = [f"{_name(number)}-{before + more}" for number in range(len(earlier))]
    outcomes = ranks.first(_kept(place=trial.place, names=names))
    for number, outcome in enumerate(earlier):
        if number < len(outcomes):
            continue
        seed_everything(again, config.runtime.threads, ranks)
        found = bundle.load(trial.place.trial / outcome.model) if ranks.is_first else None
        choice = ctx.space.choice_of(ranks.first(found.report[KEPT_UNITS] if found else {}))
        small = extract(ctx.student, as_mask(choice))
        small.load_state_dict(ranks.first(found.model.state_dict() if found else {}))
        best = ranks.first(tuple(found.report.get(bundle.DEPTH_ORDER, ())) if found else ())
        cut = ExtractedModel(model=small, choice=choice, depth_order=best)
        stage = _tuning(trial, cut, steps=more)
        journey = trial.journey(again, len(earlier) * (before + more))
        journey.steps_before = len(earlier) * before + number * more
        resume = _newest(journey)
        is_on_its_way = resume is not None and resume["steps_before"] == journey.steps_before
        yield from fit(stage, journey, resume=resume if is_on_its_way else None)
        cut, target = replace(cut, model=stage.model), outcome.target_sparsity
        outcomes += _judged(trial, cut, target=target, steps=before + more, name=names[number])
    return _ended(trial, outcomes)


def _newest(journey: TrainRun) -> dict[str, Any] | None:
    """The first rank's newest checkpoint: shared folders show the others older ones for a while."""
    ranks = journey.ranks
    newest: dict[str, Any] | None = ranks.first(
        checkpoint.load_newest(journey.checkpoints) if ranks.is_first else None
    )
    journey.reports = _reports(newest)
    return newest


def _unheard(place: TrialDirs, known: int) -> Iterator[Report]:
    """What a killed driver, or a lost copy of its ledger, does not know of this trial."""
    try:
        newest = checkpoint.load_newest(place.trial / CHECKPOINTS)
    except checkpoint.CheckpointError:
        return  # whoever must go on from them says so; what is finished needs none
    yield from (report for report in _reports(newest) if report.step > known)


def _reports(state: dict[str, Any] | None) -> list[Report]:
    return [Report(**values) for values in state["reports"]] if state else []


def _judged(
    trial: Trial, cut: ExtractedModel, *, target: float, steps: int, name: str
) -> list[Outcome]:
    """Measure a tuned model and keep it: the first rank does, and tells the others."""
    ranks = trial.ranks
    return ranks.first(
        [_measured(trial, cut, target=target, steps=steps, name=name)] if ranks.is_first else []
    )


def _measured(
    trial: Trial, cut: ExtractedModel, *, target: float, steps: int, name: str
) -> Outcome:
    ctx = trial.ctx
    reestimate_statistics(cut.model, ctx.speech)
    outcome = ctx.evaluator.outcome(cut.model, target=target, steps=steps, folder=name)
    kept = {axis: units.nonzero().flatten().tolist() for axis, units in cut.choice.items()}
    best = {bundle.DEPTH_ORDER: cut.depth_order} if cut.depth_order else {}
    report = {
        "outcome": asdict(outcome),
        "config": trial.config.model_dump(),
        KEPT_UNITS: kept,
        LONGEST_TRAINED: trial.speech.train.longest_seconds,
        **best,
    }
    bundle.save(trial.place.trial / name, cut.model, trial.speech.tokenizer, report)
    return outcome


def _ended(trial: Trial, outcomes: list[Outcome]) -> list[Outcome]:
    """Only once every model is kept is it said that the trial is done."""
    if trial.ranks.is_first:
        text = json.dumps([asdict(outcome) for outcome in outcomes])
        atomic_write(trial.place.trial / OUTCOMES, text)
    return outcomes


def _told(place: TrialDirs) -> list[Outcome]:
    """What this trial came to in an earlier run."""
    done = place.trial / OUTCOMES
    return [Outcome(**values) for values in read_json(done)] if done.is_file() else []


def _kept(*, place: TrialDirs, names: Sequence[str]) -> list[Outcome]:
    """The outcomes that a trial had come to when it was cut short, by their bundles."""
    folders = takewhile(bundle.is_whole, (place.trial / name for name in names))
    return [Outcome(**bundle.load(folder).report["outcome"]) for folder in folders]


def _name(number: int) -> str:
    """The bundle of an outcome."""
    return f"model.{number}" if number else "model"


def _steps(config: TrialConfig) -> int:
    """Of the search and of one outcome's tuning; without a search, all are for tuning."""
    return config.pruning.steps + config.tuning.steps


def open_trial(config: TrialConfig, place: TrialDirs, ranks: Ranks = ALONE) -> Trial:
    """All that a trial works with, from what `prepare` made, before its first step."""
    seed_everything(config, config.runtime.threads, ranks)
    device, pruning = select_device(config), config.pruning
    speech, method = open_speech(place.features), load_method(pruning.method)
    teacher = bundle.load(place.teacher / "model").model.to(device)
    batches = calibration_batches(config, speech, device)
    audible = guard_audio(without_words(batches), method.needs)
    student = method.prepare_model(clone(teacher), config, audible).requires_grad_()
    axes = method.axes(config)
    space = Space.of(
        clone(student),
        axes,
        pruning.utterance_seconds,
        unpruned=teacher,
        latency=cache.open_table(config, place.teacher),
    )

    def choose(scores: Scores, target: float) -> dict[str, torch.Tensor]:
        return choose_for_target(space, scores, pruning, target) if scores else space.open_choice()

    ctx = MethodContext(
        config=config,
        student=student,
        distillation=Distillation(teacher, config.distillation).to(device),
        space=space,
        speech=without_words(batches),
        labeled=batches,
        choose=choose,
        evaluator=Evaluator(config, space, speech, device),
        device=device,
    )
    return Trial(method=method, ctx=ctx, speech=speech, place=place, ranks=ranks)


def _extracted(ctx: MethodContext, found: SearchResult, choice: Choice, how: Repair) -> Conformer:
    small = extract_and_reconstruct(
        ctx.student, found.reference, choice, how=how, speech=ctx.speech
    )
    reestimate_statistics(small, ctx.speech)
    return small


def _tuning(trial: Trial, cut: ExtractedModel, *, steps: int) -> Tuning:
    cut.model.set_dropout(trial.config.tuning.dropout)
    return trial.method.tuning(cut.model, cut.choice, trial.ctx, steps=steps)
