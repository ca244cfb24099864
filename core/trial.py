"""One trial, from top to bottom: search, extraction, tuning, evaluation.

`run` is a generator of reports: it resumes by itself from where it stopped, and advances as its
caller iterates. What all trials share was made before, by core/teacher.py.
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
from core.pruning.extraction import as_mask, clone, extract, without_weights
from core.pruning.reconstruction import extract_and_reconstruct, reestimate_statistics
from core.pruning.selection import Scores, choose_for_target, depth_order
from core.pruning.space import Choice, Space
from core.report import KEPT_UNITS, LONGEST_TRAINED, Outcome, Report
from core.runtime import TrialDirs, seed_everything, select_device
from core.step_memory import with_counted_parts
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
"""File of a trial's folder with its outcomes; the trial is done once it is there."""
SEARCH_STATE = "search_state"
"""Folder of a trial's folder with the state after its search, where it has several outcomes."""


def run(
    config: TrialConfig,
    dirs: TrialDirs,
    ranks: Ranks = ALONE,
    *,
    last_known_step: int | None = None,
) -> Generator[Report, None, list[Outcome]]:
    """Runs one trial to its end, from wherever it stopped.

    All ranks run it, each on its part of the same batches; the first alone reports, writes and
    returns outcomes. Apart from rounding and dropout, the numbers are those of a single rank.

    Args:
        config: the trial's.
        dirs: where it works.
        ranks: who works on it.
        last_known_step: reports of an earlier run that are of later steps than this are yielded
            again; None if all of them are known.

    Raises:
        BundleError, CorpusError: if what `prepare` makes is missing or damaged.
        CheckpointError: if all checkpoints of this trial are damaged.
        ValueError: if a target cannot be met by this model and these axes.
    """
    if last_known_step is not None and ranks.is_first:
        yield from _missed_reports(dirs, last_known_step)
    outcomes = ranks.first(_read_outcomes(dirs))
    if not outcomes:
        outcomes = yield from _search_and_tune(open_trial(config, dirs, ranks))
    if outcomes[0].steps < _num_steps(config) + config.tuning.more_steps:
        outcomes = yield from _tune_further(open_trial(config, dirs, ranks), outcomes)
    return outcomes if ranks.is_first else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The parts of a trial that its stages share."""

    method: Method
    ctx: MethodContext
    speech: Speech
    dirs: TrialDirs
    ranks: Ranks

    @property
    def config(self) -> TrialConfig:
        return self.ctx.config

    @property
    def targets(self) -> tuple[float, ...]:
        return self.method.targets(self.config)

    def train_run(self, config: TrialConfig, steps: int) -> TrainRun:
        """Makes a run of `steps` steps from the beginning of the data, in the order of a config."""
        train_run = make_train_run(
            config,
            self.dirs.trial,
            self.speech,
            self.ctx.device,
            steps,
            clean_steps=count_clean_steps(config, steps // len(self.targets))
            if self.method.is_from_scratch
            else 0,
        )
        train_run.ranks = self.ranks
        return train_run


def _search_and_tune(trial: Trial) -> Generator[Report, None, list[Outcome]]:
    """One search; then extraction and tuning for each share to remove.

    Each outcome is tuned on the same batches in the same order, as if it were the only one.
    """
    config, ctx, targets = trial.config, trial.ctx, trial.targets
    search = trial.method.search(ctx.restricted_to(trial.method.needs))
    search_steps = search.steps if search else 0
    tune_steps = _num_steps(config) - search_steps
    train_run = trial.train_run(config, search_steps + len(targets) * tune_steps)
    resume = _load_newest(train_run)
    is_tuning = resume is not None and resume["stage"] == "tune"
    if search is not None and not is_tuning:
        yield from fit(search, train_run, resume=resume)
    names = [_bundle_name(number) for number in range(len(targets))]
    outcomes = trial.ranks.first(_saved_outcomes(dirs=trial.dirs, names=names))
    start = None
    for number, target in enumerate(targets):
        # 400 steps of search, 300 of tuning and two outcomes: these begin at steps 400 and 700.
        train_run.steps_before = search_steps + number * tune_steps
        if number < len(outcomes):
            continue
        is_here = is_tuning and resume and resume["steps_before"] == train_run.steps_before
        again = resume if is_here else None
        if again is not None:
            # Extracted for its shape alone: `fit` restores the weights.
            cut = ExtractedModel(
                model=extract(ctx.student, as_mask(again["extra_state"]["choice"])),
                **again["extra_state"],
            )
        else:
            start = start or _search_state(trial, search, train_run)
            cut = _extract_for_target(trial, start, train_run, target)
        stage = _make_tuning(trial, cut, steps=tune_steps)
        train_run.extra_state = {"choice": cut.choice, "depth_order": cut.depth_order}
        yield from fit(stage, train_run, resume=again)
        cut = replace(cut, model=stage.model)
        outcomes += _evaluate(
            trial, cut, target=target, steps=_num_steps(config), name=names[number]
        )
    return _write_outcomes(trial, outcomes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractedModel:
    """A small model between extraction and its outcome."""

    model: Conformer
    choice: Choice
    """The units of the student that remain."""
    depth_order: tuple[int, ...]
    """Its blocks, best first, where the search ranked blocks."""


def _extract_for_target(
    trial: Trial, start: "SearchState", train_run: TrainRun, target: float
) -> ExtractedModel:
    """Extracts a model for one target, from the random state that the search left."""
    ctx, result = trial.ctx, start.search_result
    # The same data and random state for each outcome, whichever ran before it.
    train_run.seek(start.position)
    ctx.distillation.projection.load_state_dict(start.projection)
    choice = ctx.choose(result.scores, target)
    how = trial.method.repair(ctx.config)
    small = trial.method.prepare_tuning(_extract_small(ctx, result, choice, how), ctx)
    return ExtractedModel(
        model=small, choice=choice, depth_order=depth_order(ctx.space, result.scores, choice)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchState:
    """The start of every outcome of a trial; the student's weights belong to it, too."""

    search_result: SearchResult
    projection: dict[str, torch.Tensor]
    """Weights of the layer through which hidden states are compared."""
    position: dict[str, Any]
    """Position in the data, and the states of random generators."""


def _search_state(trial: Trial, search: Trainable | None, train_run: TrainRun) -> SearchState:
    """The state after the search.

    Where several outcomes begin with it, it is saved: a kill may come between two of them.
    """
    ranks, student, folder = trial.ranks, trial.ctx.student, trial.dirs.trial / SEARCH_STATE
    is_kept = len(trial.targets) > 1
    saved = ranks.first(checkpoint.load_newest(folder) if is_kept and ranks.is_first else None)
    if saved is not None:
        student.load_state_dict(saved["student"])
        result = SearchResult(scores=saved["scores"], reference=saved["reference"])
        return SearchState(
            search_result=result, projection=saved["projection"], position=saved["position"]
        )
    result = ranks.first(
        trial.method.search_result(trial.ctx.restricted_to(trial.method.needs), search)
    )
    projection = trial.ctx.distillation.projection.state_dict()
    start = SearchState(
        search_result=result, projection=deepcopy(projection), position=train_run.position()
    )
    if is_kept and ranks.is_first:
        state = {
            "student": student.state_dict(),
            "scores": dict(result.scores),
            "reference": dict(result.reference),
            "projection": start.projection,
            "position": start.position,
        }
        checkpoint.save(folder, 0, state)
    return start


def _tune_further(trial: Trial, earlier: list[Outcome]) -> Generator[Report, None, list[Outcome]]:
    """Tunes the finished models further; they stay until the later ones are whole."""
    config, ctx, ranks = trial.config, trial.ctx, trial.ranks
    before = earlier[0].steps
    more = _num_steps(config) + config.tuning.more_steps - before
    again = config.model_copy(update={"seed": config.seed + before})  # other batches first
    names = [f"{_bundle_name(number)}-{before + more}" for number in range(len(earlier))]
    outcomes = ranks.first(_saved_outcomes(dirs=trial.dirs, names=names))
    for number, outcome in enumerate(earlier):
        if number < len(outcomes):
            continue
        seed_everything(again, config.runtime.threads, ranks)
        tuned = bundle.load(trial.dirs.trial / outcome.model) if ranks.is_first else None
        choice = ctx.space.choice_of(ranks.first(tuned.report[KEPT_UNITS] if tuned else {}))
        small = extract(ctx.student, as_mask(choice))
        small.load_state_dict(ranks.first(tuned.model.state_dict() if tuned else {}))
        best = ranks.first(tuple(tuned.report.get(bundle.DEPTH_ORDER, ())) if tuned else ())
        cut = ExtractedModel(model=small, choice=choice, depth_order=best)
        stage = _make_tuning(trial, cut, steps=more)
        train_run = trial.train_run(again, len(earlier) * (before + more))
        train_run.steps_before = len(earlier) * before + number * more
        resume = _load_newest(train_run)
        # The newest checkpoint may be that of another outcome, or of the first tuning.
        is_on_its_way = resume is not None and resume["steps_before"] == train_run.steps_before
        yield from fit(stage, train_run, resume=resume if is_on_its_way else None)
        cut, target = replace(cut, model=stage.model), outcome.target_sparsity
        outcomes += _evaluate(trial, cut, target=target, steps=before + more, name=names[number])
    return _write_outcomes(trial, outcomes)


def _load_newest(train_run: TrainRun) -> dict[str, Any] | None:
    """The first rank's newest checkpoint: shared folders show the others older ones for a while."""
    ranks = train_run.ranks
    newest: dict[str, Any] | None = ranks.first(
        checkpoint.load_newest(train_run.checkpoints) if ranks.is_first else None
    )
    train_run.reports = _reports(newest)
    return newest


def _missed_reports(dirs: TrialDirs, last_known_step: int) -> Iterator[Report]:
    """Yields the reports that a killed driver, or a lost copy of its ledger, does not know."""
    try:
        newest = checkpoint.load_newest(dirs.trial / CHECKPOINTS)
    except checkpoint.CheckpointError:
        return  # resuming from them raises it; a finished trial needs none
    yield from (report for report in _reports(newest) if report.step > last_known_step)


def _reports(state: dict[str, Any] | None) -> list[Report]:
    return [Report(**values) for values in state["reports"]] if state else []


def _evaluate(
    trial: Trial, cut: ExtractedModel, *, target: float, steps: int, name: str
) -> list[Outcome]:
    """Measures and saves a tuned model on the first rank, which sends the outcome to the others."""
    return trial.ranks.first(
        [_evaluate_and_save(trial, cut, target=target, steps=steps, name=name)]
        if trial.ranks.is_first
        else []
    )


def _evaluate_and_save(
    trial: Trial, cut: ExtractedModel, *, target: float, steps: int, name: str
) -> Outcome:
    ctx = trial.ctx
    reestimate_statistics(cut.model, ctx.speech)
    measured = ctx.evaluator.outcome(cut.model, target=target, steps=steps, folder=name)
    outcome = replace(measured, repair=trial.method.repair(ctx.config))
    kept_units = {axis: units.nonzero().flatten().tolist() for axis, units in cut.choice.items()}
    best = {bundle.DEPTH_ORDER: cut.depth_order} if cut.depth_order else {}
    report = {
        "outcome": asdict(outcome),
        "config": trial.config.model_dump(),
        KEPT_UNITS: kept_units,
        LONGEST_TRAINED: trial.speech.train.longest_seconds,
        **best,
    }
    bundle.save(trial.dirs.trial / name, cut.model, trial.speech.tokenizer, report)
    return outcome


def _write_outcomes(trial: Trial, outcomes: list[Outcome]) -> list[Outcome]:
    """Writes the outcomes, which marks the trial as done: every model is saved by then."""
    if trial.ranks.is_first:
        text = json.dumps([asdict(outcome) for outcome in outcomes])
        atomic_write(trial.dirs.trial / OUTCOMES, text)
    return outcomes


def _read_outcomes(dirs: TrialDirs) -> list[Outcome]:
    """Reads the outcomes of an earlier run; an empty list where the trial is not done."""
    done = dirs.trial / OUTCOMES
    return [Outcome(**values) for values in read_json(done)] if done.is_file() else []


def _saved_outcomes(*, dirs: TrialDirs, names: Sequence[str]) -> list[Outcome]:
    """The outcomes that a trial had come to when it was cut short, by their bundles."""
    folders = takewhile(bundle.is_whole, (dirs.trial / name for name in names))
    return [Outcome(**bundle.load(folder).report["outcome"]) for folder in folders]


def _bundle_name(number: int) -> str:
    """The bundle of an outcome."""
    return f"model.{number}" if number else "model"


def _num_steps(config: TrialConfig) -> int:
    """Counts the optimizer steps of the search and of one outcome's tuning.

    Without a search, all of them are for tuning.
    """
    return config.pruning.steps + config.tuning.steps


def open_trial(config: TrialConfig, dirs: TrialDirs, ranks: Ranks = ALONE) -> Trial:
    """Opens what `prepare` made, and builds all that a trial needs before its first step."""
    seed_everything(config, config.runtime.threads, ranks)
    device, pruning = select_device(config), config.pruning
    speech, method = open_speech(dirs.features), load_method(pruning.method)
    teacher = bundle.load(dirs.teacher / "model").model.to(device)
    has_ctc, has_transducer = teacher.head is not None, teacher.transducer is not None
    config.check_decoders(has_ctc=has_ctc, has_transducer=has_transducer)
    config = with_counted_parts(config, teacher.shape)
    batches = calibration_batches(config, speech, device)
    audible = guard_audio(without_words(batches), method.needs)
    student = method.prepare_model(clone(teacher), config, audible).requires_grad_()
    space = Space.of(
        without_weights(student),
        method.axes(config),
        pruning.utterance_seconds,
        unpruned=teacher,
        latency=cache.open_table(config, dirs.teacher),
    )

    def choose(scores: Scores, target: float) -> dict[str, torch.Tensor]:
        return choose_for_target(space, scores, pruning, target) if scores else space.open_choice()

    ctx = MethodContext(
        config=config,
        student=student,
        distillation=Distillation(teacher, config.distillation),
        space=space,
        speech=without_words(batches),
        labeled=batches,
        choose=choose,
        evaluator=Evaluator(config, space, speech, device),
        device=device,
        shared=dirs.teacher,
    )
    return Trial(method=method, ctx=ctx, speech=speech, dirs=dirs, ranks=ranks)


def _extract_small(
    ctx: MethodContext, result: SearchResult, choice: Choice, how: Repair
) -> Conformer:
    student, gates = ctx.student, result.reference
    small = extract_and_reconstruct(student, gates, choice, how=how, speech=ctx.speech)
    if how != "sequential":  # which has moved them with their inputs, before it refitted the rest
        reestimate_statistics(small, ctx.speech)
    return small


def _make_tuning(trial: Trial, cut: ExtractedModel, *, steps: int) -> Tuning:
    cut.model.set_dropout(trial.config.tuning.dropout)
    return trial.method.tuning(cut.model, cut.choice, trial.ctx, steps=steps)
