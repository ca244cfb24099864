"""What all trials of a sweep share: corpus, tokenizer, features and the unpruned model."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from core import latency
from core.config import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.corpora.labels import Hearer
from core.corpora.prepared import NUM_PARTS, is_prepared, open_speech, prepare_speech
from core.deploy import bundle
from core.deploy.recognise import hearer_of
from core.evaluation.judge import Judge
from core.hearing import NATIVE
from core.lineage import bundle_digest
from core.pruning.repair import reestimate_statistics
from core.pruning.space import Space
from core.report import Report
from core.setting import (
    Place,
    cores,
    device_of,
    set_chance,
)
from core.training import checkpoint
from core.training.depth import InterCTC
from core.training.setup import (
    calibration_batches,
    count_clean_steps,
    journey_of,
    without_words,
)
from core.training.trainer import DenseStage, Rates, fit


def prepare(config: TrialConfig, place: Place) -> Iterator[Report]:
    """Make what all trials share, while reporting. Resumable; done once.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
        BundleError: if a given teacher is no whole bundle.
    """
    is_there = is_prepared(config.corpus, place.features) and latency.is_ready(
        config, place.teacher
    )
    if is_there and bundle.is_whole(place.teacher / "model"):
        return
    given = bundle.load(Path(config.teacher.bundle)) if config.teacher.bundle else None
    hearer = _hearer(config, given) if given else None
    if hearer is not None or not is_prepared(config.corpus, place.features):
        torch.set_num_threads(cores())
        tokens = given.tokenizer if given else None
        heard = given.model.shape.hearing if given else NATIVE
        speech = prepare_speech(
            config.corpus, place.features, tokenizer=tokens, hearing=heard, hearer=hearer
        )
        for part in speech:
            yield Report(stage="speech", step=part, total_steps=NUM_PARTS)
    if bundle.is_whole(place.teacher / "model"):
        latency.measure(config, place.teacher, bundle.load(place.teacher / "model").model.shape)
    elif given is not None:
        latency.measure(config, place.teacher, given.model.shape)
        bundle.save(place.teacher / "model", given.model, given.tokenizer, given.report)
    else:
        yield from _trained(config, place)


def _hearer(config: TrialConfig, given: bundle.Bundle) -> Hearer | None:
    if config.corpus.labels != "teacher":
        return None
    digest = bundle_digest(Path(config.teacher.bundle))
    assert digest is not None, "what was loaded has its checksums"
    return hearer_of(given, digest)


def _trained(config: TrialConfig, place: Place) -> Iterator[Report]:
    set_chance(config, max(config.runtime.threads, cores()))
    speech, device = open_speech(place.features), device_of(config)
    model = Conformer(Shape.of(config.model, speech.tokenizer.size))
    mean, deviation = speech.train.statistics()
    model.frontend.mean.copy_(mean)
    model.frontend.deviation.copy_(deviation)
    model.to(device).set_dropout(config.model.dropout)
    model.set_stochastic_depth(config.teacher.stochastic_depth)
    latency.measure(config, place.teacher, model.shape)
    space = Space.of(
        model,
        config.pruning.axes,
        config.pruning.utterance_seconds,
        latency=latency.opened(config, place.teacher),
    )
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
        interctc=InterCTC.of(config.teacher, len(model.blocks)),
        micro_batches=config.training.micro_batches,
    )
    journey = journey_of(
        config,
        place.teacher,
        speech,
        device,
        steps,
        clean_steps=count_clean_steps(config, steps),
    )
    yield from fit(stage, journey, resume=checkpoint.load_newest(journey.checkpoints))
    reestimate_statistics(model, without_words(calibration_batches(config, speech, device)))
    outcome = judge.outcome(model, target=0.0, steps=steps)
    report = {
        "outcome": asdict(outcome),
        "config": config.model_dump(),
        bundle.LONGEST_HEARD: speech.train.longest_seconds,
    }
    bundle.save(place.teacher / "model", model, speech.tokenizer, report)
