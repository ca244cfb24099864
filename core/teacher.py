"""What all trials of a sweep share: corpus, tokenizer, features and the unpruned model."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from core import bundle
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.data.prepare import NUM_PARTS, is_prepared, open_speech, prepare_speech
from core.data.pseudo_labels import PseudoLabeler
from core.digests import bundle_digest
from core.evaluation.evaluator import Evaluator
from core.features.spec import NATIVE
from core.inference.recognizer import make_labeler
from core.latency import cache
from core.pruning.reconstruction import reestimate_statistics
from core.pruning.space import Space
from core.report import LONGEST_TRAINED, Report
from core.runtime import TrialDirs, num_cores, seed_everything, select_device
from core.step_memory import with_counted_parts
from core.training import checkpoint
from core.training.intermediate_ctc import InterCTC
from core.training.loop import DenseStage, Rates, fit
from core.training.setup import (
    calibration_batches,
    count_clean_steps,
    make_train_run,
    without_words,
)


def prepare(config: TrialConfig, dirs: TrialDirs) -> Iterator[Report]:
    """Make what all trials share, while reporting. Resumable; done once.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
        BundleError: if a given teacher is no whole bundle.
    """
    is_there = is_prepared(config.corpus, dirs.features) and cache.is_ready(config, dirs.teacher)
    if is_there and bundle.is_whole(dirs.teacher / "model"):
        return
    source = bundle.load(Path(config.teacher.bundle)) if config.teacher.bundle else None
    labeler = _make_labeler(config, source) if source else None
    if labeler is not None or not is_prepared(config.corpus, dirs.features):
        # Trials of the sweep start afterwards, so preparation may use all cores.
        torch.set_num_threads(num_cores())
        tokens = source.tokenizer if source else None
        frontend_spec = source.model.shape.frontend_spec if source else NATIVE
        speech = prepare_speech(
            config.corpus,
            dirs.features,
            tokenizer=tokens,
            frontend_spec=frontend_spec,
            labeler=labeler,
        )
        for part in speech:
            yield Report(stage="speech", step=part, total_steps=NUM_PARTS)
    if bundle.is_whole(dirs.teacher / "model"):
        cache.measure(config, dirs.teacher, bundle.load(dirs.teacher / "model").model.shape)
    elif source is not None:
        cache.measure(config, dirs.teacher, source.model.shape)
        bundle.save(dirs.teacher / "model", source.model, source.tokenizer, source.report)
    else:
        yield from _train(config, dirs)


def _make_labeler(config: TrialConfig, source: bundle.Bundle) -> PseudoLabeler | None:
    if config.corpus.labels != "teacher":
        return None
    digest = bundle_digest(Path(config.teacher.bundle))
    assert digest is not None, "what was loaded has its checksums"
    return make_labeler(source, digest)


def _train(config: TrialConfig, dirs: TrialDirs) -> Iterator[Report]:
    seed_everything(config, max(config.runtime.threads, num_cores()))
    speech, device = open_speech(dirs.features), select_device(config)
    model = Conformer(Shape.of(config.model, speech.tokenizer.size))
    config = with_counted_parts(config, model.shape)
    mean, deviation = speech.train.statistics()
    # Statistics of the training features are buffers of the model and travel with it.
    model.frontend.mean.copy_(mean)
    model.frontend.deviation.copy_(deviation)
    model.to(device).set_dropout(config.model.dropout)
    model.set_stochastic_depth(config.teacher.stochastic_depth)
    # Before training: its reports already state the share of the latency.
    cache.measure(config, dirs.teacher, model.shape)
    space = Space.of(
        model,
        config.pruning.axes,
        config.pruning.utterance_seconds,
        latency=cache.open_table(config, dirs.teacher),
    )
    evaluator = Evaluator(config, space, speech, device)
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
        evaluator=evaluator,
        runtime=config.runtime,
        interctc=InterCTC.of(config.teacher, len(model.blocks)),
        micro_batches=config.training.parts,
        loss=config.loss,
    )
    train_run = make_train_run(
        config,
        dirs.teacher,
        speech,
        device,
        steps,
        clean_steps=count_clean_steps(config, steps),
    )
    yield from fit(stage, train_run, resume=checkpoint.load_newest(train_run.checkpoints))
    reestimate_statistics(model, without_words(calibration_batches(config, speech, device)))
    outcome = evaluator.outcome(model, target=0.0, steps=steps)
    report = {
        "outcome": asdict(outcome),
        "config": config.model_dump(),
        LONGEST_TRAINED: speech.train.longest_seconds,
    }
    bundle.save(dirs.teacher / "model", model, speech.tokenizer, report)
