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
from core.training import checkpoint
from core.training.intermediate_ctc import InterCTC
from core.training.loop import DenseStage, Rates, fit
from core.training.setup import (
    calibration_batches,
    count_clean_steps,
    make_train_run,
    without_words,
)


def prepare(config: TrialConfig, place: TrialDirs) -> Iterator[Report]:
    """Make what all trials share, while reporting. Resumable; done once.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
        BundleError: if a given teacher is no whole bundle.
    """
    is_there = is_prepared(config.corpus, place.features) and cache.is_ready(config, place.teacher)
    if is_there and bundle.is_whole(place.teacher / "model"):
        return
    given = bundle.load(Path(config.teacher.bundle)) if config.teacher.bundle else None
    hearer = _hearer(config, given) if given else None
    if hearer is not None or not is_prepared(config.corpus, place.features):
        torch.set_num_threads(num_cores())
        tokens = given.tokenizer if given else None
        heard = given.model.shape.frontend_spec if given else NATIVE
        speech = prepare_speech(
            config.corpus, place.features, tokenizer=tokens, frontend_spec=heard, hearer=hearer
        )
        for part in speech:
            yield Report(stage="speech", step=part, total_steps=NUM_PARTS)
    if bundle.is_whole(place.teacher / "model"):
        cache.measure(config, place.teacher, bundle.load(place.teacher / "model").model.shape)
    elif given is not None:
        cache.measure(config, place.teacher, given.model.shape)
        bundle.save(place.teacher / "model", given.model, given.tokenizer, given.report)
    else:
        yield from _trained(config, place)


def _hearer(config: TrialConfig, given: bundle.Bundle) -> PseudoLabeler | None:
    if config.corpus.labels != "teacher":
        return None
    digest = bundle_digest(Path(config.teacher.bundle))
    assert digest is not None, "what was loaded has its checksums"
    return make_labeler(given, digest)


def _trained(config: TrialConfig, place: TrialDirs) -> Iterator[Report]:
    seed_everything(config, max(config.runtime.threads, num_cores()))
    speech, device = open_speech(place.features), select_device(config)
    model = Conformer(Shape.of(config.model, speech.tokenizer.size))
    mean, deviation = speech.train.statistics()
    model.frontend.mean.copy_(mean)
    model.frontend.deviation.copy_(deviation)
    model.to(device).set_dropout(config.model.dropout)
    model.set_stochastic_depth(config.teacher.stochastic_depth)
    cache.measure(config, place.teacher, model.shape)
    space = Space.of(
        model,
        config.pruning.axes,
        config.pruning.utterance_seconds,
        latency=cache.open_table(config, place.teacher),
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
        micro_batches=config.training.micro_batches,
    )
    journey = make_train_run(
        config,
        place.teacher,
        speech,
        device,
        steps,
        clean_steps=count_clean_steps(config, steps),
    )
    yield from fit(stage, journey, resume=checkpoint.load_newest(journey.checkpoints))
    reestimate_statistics(model, without_words(calibration_batches(config, speech, device)))
    outcome = evaluator.outcome(model, target=0.0, steps=steps)
    report = {
        "outcome": asdict(outcome),
        "config": config.model_dump(),
        LONGEST_TRAINED: speech.train.longest_seconds,
    }
    bundle.save(place.teacher / "model", model, speech.tokenizer, report)
