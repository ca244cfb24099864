"""One adaptation: a recognizer learns new words, and keeps the old ones and its shape.

`adapt` is a generator of reports: it resumes by itself from where it stopped, and advances as its
caller iterates. Its folder holds features and checkpoints until the adapted bundle is whole.
"""

import hashlib
import json
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from core import bundle
from core.bundle import Bundle
from core.config.base import Config, ConfigError
from core.config.trial import CorpusConfig, TrialConfig
from core.conformer.model import Conformer
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus, with_memory
from core.data.feature_cache import FeatureStore, open_or_build
from core.data.prepare import Speech
from core.data.tokenizer import transcript
from core.evaluation.evaluator import Evaluator
from core.evaluation.wer import WerReport
from core.files import atomic_write
from core.outside_files import read_json
from core.pruning.reconstruction import reestimate_statistics
from core.pruning.space import Space
from core.report import LONGEST_TRAINED, Report
from core.runtime import seed_everything, select_device
from core.step_memory import with_counted_parts
from core.training import checkpoint
from core.training.foster_stage import FosterStage, make_foster_stage
from core.training.loop import fit
from core.training.method import tuning_rates
from core.training.setup import calibration_batches, make_train_run, without_words

NUM_PARTS = 3
"""Parts of the speech to prepare: new to train on, new to evaluate on, old."""
_ORDER = "adaptation.json"


class AdaptationConfig(Config):
    """Settings of an adaptation: the new speech, and how much of the old is trained on again."""

    trial: TrialConfig = TrialConfig()
    """The new speech (`corpus`), steps and rates (`tuning`), `boosting`, `training`, `runtime`."""
    memory: CorpusConfig | None = None
    """The old speech, some of which is trained on again; without it, old words are not measured."""
    memory_share: float = Field(0.05, gt=0, le=1)
    """Share of the old training utterances that are mixed with the new ones."""
    memory_balance: float = Field(1.0, ge=0, le=100)
    """Fewest old utterances for each new one: memory is repeated until there are as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WerChange:
    """Word errors on one kind of speech, before and after."""

    before: WerReport
    after: WerReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """Word errors before and after an adaptation, on test, or on dev where there is no test."""

    new: WerChange
    old: WerChange | None
    """None where no old speech was given."""
    new_tokens: int
    """Rows that the head has in addition."""
    params: int
    """Of the adapted model."""


def adapt(
    config: AdaptationConfig, source: Path, out: Path
) -> Generator[Report, None, dict[str, Any]]:
    """Adapt a bundle and write another, from wherever it had come to; returns `Adapted`, plain.

    Raises:
        BundleError: if the source is no whole bundle.
        ConfigError: if `out` is taken, or another adaptation to it was begun.
        CorpusError: naming what of a corpus cannot be used.
    """
    source_bundle = bundle.load(source)
    # Phase 1: refuse a folder of something else, before any work. Phase 2: features, in a folder
    # next to `out`. Phase 3: training, then the bundle, and only then the folder of the work goes.
    request = _request(config, source_bundle)
    if out.exists():
        return _read_summary(out, request)
    work = out.with_name(f"{out.name}.work")
    _check_or_write_request(work, request)
    try:
        speech = yield from _prepare(config, source_bundle, work)
    except CorpusError:  # what was not begun may be begun otherwise
        if not (work / "checkpoints").exists():
            shutil.rmtree(work)
        raise
    model, adapted = yield from _train(config, source_bundle, speech, work)
    summary, longest_seconds = _plain(adapted), speech.new.train.longest_seconds
    report = {"adaptation": summary, "order": request, LONGEST_TRAINED: longest_seconds}
    bundle.save(out, model, speech.new.tokenizer, report)
    shutil.rmtree(work)
    return summary


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speeches:
    new: Speech
    """Its training speech holds the memory, too."""
    old: FeatureStore | None
    """Old speech to evaluate on during training."""
    old_test: FeatureStore | None

    @property
    def new_test(self) -> FeatureStore:
        return self.new.test if len(self.new.test) else self.new.dev


def _request(config: AdaptationConfig, source_bundle: Bundle) -> dict[str, Any]:
    """Returns the adaptation that was asked for, and of which model, as plain values."""
    # Of the weights, not of the file: a bundle that was copied or written again is the same source.
    digest = hashlib.sha256(source_bundle.tokenizer.model)
    for name, tensor in sorted(source_bundle.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    values = config.model_dump()
    del values["trial"]["runtime"]  # it may go on elsewhere
    return {"config": values, "source": digest.hexdigest()}


def _read_summary(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Reads the results of an earlier run of the same adaptation."""
    report = bundle.load(out).report if bundle.is_whole(out) else {}
    if report.get("order") != request:
        raise ConfigError(f"`out` must be a new folder, but `{out}` holds something else.")
    summary: dict[str, Any] = report["adaptation"]
    return summary


def _check_or_write_request(work: Path, request: dict[str, Any]) -> None:
    """Writes down what is done here, or checks that it is the same as before."""
    file = work / _ORDER
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(request))
    elif read_json(file) != request:
        raise ConfigError(
            f"`out` must be a new folder, but `{work}` holds another adaptation that was begun;"
            " delete it, or go on with what it was begun with."
        )


def _prepare(
    config: AdaptationConfig, source_bundle: Bundle, work: Path
) -> Generator[Report, None, _Speeches]:
    new = open_corpus(config.trial.corpus, work / "new")
    old = open_corpus(config.memory, work / "old") if config.memory else None
    # Old tokens come first and keep their numbers, so the old head's rows stay where they are.
    tokens = source_bundle.tokenizer.with_words(map(transcript, new.train))
    both = new
    if old is not None:
        both = with_memory(
            new,
            old,
            share=config.memory_share,
            seed=config.trial.seed,
            balance=config.memory_balance,
        )
    corpus = config.trial.corpus
    keep = partial(
        open_or_build,
        tokenizer=tokens,
        folder=work,
        frontend_spec=source_bundle.model.shape.frontend_spec,
    )
    train = keep(both, "train", config=corpus)
    yield _prepared_report(1)
    dev, test = (keep(both, split, config=corpus) for split in ("dev", "test"))
    yield _prepared_report(2)
    old_stores: tuple[FeatureStore | None, FeatureStore | None] = (None, None)
    if old is not None and config.memory is not None:
        dev_old, test_old = (keep(old, split, config=config.memory) for split in ("dev", "test"))
        # Without a test split, the dev split serves for both.
        old_stores = dev_old, test_old if len(test_old) else dev_old
    yield _prepared_report(NUM_PARTS)
    speech = Speech(tokenizer=tokens, train=train, dev=dev, test=test)
    return _Speeches(new=speech, old=old_stores[0], old_test=old_stores[1])


def _prepared_report(part: int) -> Report:
    return Report(stage="speech", step=part, total_steps=NUM_PARTS)


def _train(
    config: AdaptationConfig, source_bundle: Bundle, speech: _Speeches, work: Path
) -> Generator[Report, None, tuple[Conformer, Adapted]]:
    trial = config.trial
    seed_everything(trial, trial.runtime.threads)
    device = select_device(trial)
    old = source_bundle.model.to(device).requires_grad_()
    old.set_dropout(trial.tuning.dropout)
    space = Space.of(old, trial.pruning.axes, trial.pruning.utterance_seconds)
    judge = Evaluator(trial, space, speech.new, device)
    stage = _make_stage(config, source_bundle, speech, judge)
    train_run = make_train_run(trial, work, speech.new, device, stage.steps)
    yield from fit(stage, train_run, resume=checkpoint.load_newest(train_run.checkpoints))
    batches = calibration_batches(trial, speech.new, device)
    reestimate_statistics(stage.model, without_words(batches))
    return stage.model, _measure(source_bundle, stage, speech, judge)


def _make_stage(
    config: AdaptationConfig, source_bundle: Bundle, speech: _Speeches, judge: Evaluator
) -> FosterStage:
    size = speech.new.tokenizer.size
    trial = with_counted_parts(config.trial, source_bundle.model.shape)

    def evaluate(model: nn.Module) -> Report:
        new = judge.wer(model, speech.new.dev)
        old = judge.wer(model, speech.old) if speech.old is not None else None
        return Report(
            stage="tune",
            step=0,
            total_steps=0,
            wer=new.wer if new else None,
            old_wer=old.wer if old else None,
        )

    return make_foster_stage(
        source_bundle.model,
        vocabulary=size,
        steps=trial.tuning.steps,
        rates=tuning_rates(trial),
        config=trial.boosting,
        runtime=trial.runtime,
        counts=speech.new.train.token_counts(size),
        evaluate=evaluate,
        micro_batches=trial.training.parts,
    )


def _measure(
    source_bundle: Bundle, stage: FosterStage, speech: _Speeches, judge: Evaluator
) -> Adapted:
    def compare(store: FeatureStore) -> WerChange:
        # The old model's ids mean the same in the grown tokenizer.
        before, after = (judge.wer(model, store) for model in (source_bundle.model, stage.model))
        assert before is not None
        assert after is not None
        return WerChange(before=before, after=after)

    return Adapted(
        new=compare(speech.new_test),
        old=compare(speech.old_test) if speech.old_test is not None else None,
        new_tokens=speech.new.tokenizer.size - source_bundle.tokenizer.size,
        params=sum(parameter.numel() for parameter in stage.model.parameters()),
    )


def _plain(adapted: Adapted) -> dict[str, Any]:
    """Rates with their intervals, without the errors of each utterance."""
    kinds = {"new": adapted.new, "old": adapted.old}
    rates = {
        f"{kind}_{when}": {
            "wer": report.wer,
            "wer_low": report.low,
            "wer_high": report.high,
            "utterances": report.num_utterances,
            "words": sum(report.words),
        }
        for kind, change in kinds.items()
        if change is not None
        for when, report in (("before", change.before), ("after", change.after))
    }
    return {**rates, "new_tokens": adapted.new_tokens, "params": adapted.params}
