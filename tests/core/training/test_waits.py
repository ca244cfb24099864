"""No training step waits for a GPU: every kind of step runs to its end on one that is not there."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.lib.fake_device import GPU, fake_gpu, gradients
from core.config.methods import method_names
from core.config.trial import DistillationConfig, RuntimeConfig, TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.data.batching import Batch
from core.decoders.task_loss import task_loss
from core.evaluation.evaluator import Evaluator
from core.features.kaldi import spec_augment
from core.pruning.extraction import as_mask, clone, extract
from core.pruning.space import Space
from core.testing import (
    FRONTEND_SPECS,
    SHAPE,
    TRANSDUCERS,
    deeper,
    make_patterned_speech,
    with_frontend,
    with_transducer,
)
from core.training.distillation import Distillation
from core.training.intermediate_ctc import InterCTC
from core.training.loop import DenseStage, Rates, RunningMeans
from core.training.method import MethodContext, load_method
from tests.core.methods.conftest import small_search

RATES = Rates(peak=1e-3, warmup_share=0.1, weight_decay=0.01, clip=5.0)
SHAPES = {
    "ctc": SHAPE,
    **{kind: with_transducer(SHAPE, kind) for kind in TRANSDUCERS},
    "hybrid": with_transducer(SHAPE, "lstm tdt", has_ctc=True),
    "linear attention": deeper(3, linear_features=6),
    **{kind: with_frontend(SHAPE, kind) for kind in FRONTEND_SPECS},
}
SEARCHES = [
    name for name in method_names() if name in ("acip", "constrained", "cpd", "family", "l0")
]
"""The methods that train gates or sizes before they are asked for scores."""


@pytest.fixture
def batch():
    return make_patterned_speech(3, seed=0, tokens=range(1, SHAPE.vocabulary))


def on_gpu(shape: Shape) -> Conformer:
    return Conformer(shape).to(GPU)


def take_steps(stage: Any, batch: Batch, steps: Iterable[int]) -> None:
    """Augment a batch and train on it, as a trial does between two reports."""
    running, generator = RunningMeans(), torch.Generator().manual_seed(0)
    augment = TrialConfig().training.augment
    for step in steps:
        features = spec_augment(batch.features, batch.num_frames, augment, generator)
        running.add(stage.step(replace(batch, features=features), step), batch.seconds)


def dense_stage(model: Conformer, **how: Any) -> DenseStage:
    """Make a stage that trains a model without a teacher, or with the one in `taught`."""
    return DenseStage(
        model,
        stage="tune",
        steps=4,
        rates=RATES,
        evaluator=None,
        runtime=RuntimeConfig(),
        **how,
    )


def context_on_gpu(method: str, shape: Shape, batch: Batch, **pruning: Any) -> MethodContext:
    """Make what a method works with, on a GPU that is not there; its batches stay on the host."""
    config = TrialConfig.parse({"pruning": small_search(method, **pruning)})
    plugin, whole = load_method(method), on_gpu(shape)
    student = plugin.prepare_model(clone(whole), config, ()).requires_grad_()
    space = Space.of(clone(student), plugin.axes(config), 4.0, unpruned=whole)
    return MethodContext(
        config=config,
        student=student,
        distillation=Distillation(clone(whole), config.distillation),
        space=space,
        speech=[(batch.features, batch.num_frames)],
        labeled=[batch],
        choose=lambda scores, target: half_of(space) if scores or target else {},
        evaluator=Evaluator(config, space, None, GPU),
        device=GPU,
    )


def half_of(space: Space) -> dict[str, torch.Tensor]:
    """Choose the first half of each axis; modules and blocks stay."""
    return {a.name: torch.arange(a.size) < max(1, a.floor, a.size // 2) for a in space.axes}


def extracted_on_gpu(shape: Shape, choice: dict[str, torch.Tensor]) -> Conformer:
    return on_gpu(extract(Conformer(shape), as_mask(choice)).shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_dense_step_waits_for_nothing(shape, batch):
    with fake_gpu() as counter:
        stage, ready = dense_stage(on_gpu(shape)), batch.to(GPU)
        counter.places.clear()
        take_steps(stage, ready, range(2))

    assert not counter.places


def test_nor_does_one_with_losses_of_middle_blocks_skips_and_dropout(batch):
    with fake_gpu() as counter:
        model = on_gpu(SHAPE)
        model.set_dropout(0.1)
        model.set_stochastic_depth(0.5)
        stage = dense_stage(model, interctc=InterCTC(weight=0.3, layers=(1,)), micro_batches=2)
        ready = batch.to(GPU)
        counter.places.clear()
        take_steps(stage, ready, range(3))

    assert not counter.places


@pytest.mark.parametrize("decoder", ["ctc", "stateless rnnt", "lstm tdt", "hybrid"])
@pytest.mark.parametrize("method", SEARCHES)
def test_a_step_of_a_search_waits_for_nothing(method, decoder, batch):
    with fake_gpu() as counter:
        ctx, ready = context_on_gpu(method, SHAPES[decoder], batch), batch.to(GPU)
        stage = load_method(method).search(ctx)
        # The first step of `cpd` removes units by gradients of each utterance, which is no
        # training; it is due again at step 8.
        first = 1 if method == "cpd" else 0
        counter.places.clear()
        take_steps(stage, ready, range(first, first + 2))

    assert not counter.places


@pytest.mark.parametrize("gates", ["straight_through", "annealed"])
@pytest.mark.parametrize("matching", ["ordered", "fixed"])
def test_nor_do_other_gates_and_another_matching(gates, matching, batch):
    with fake_gpu() as counter:
        ctx = context_on_gpu("l0", SHAPE, batch, gates=gates)
        ctx.distillation.config = DistillationConfig(matching=matching)
        stage, ready = load_method("l0").search(ctx), batch.to(GPU)
        counter.places.clear()
        take_steps(stage, ready, range(2))

    assert not counter.places


OF_CTC = [("foster", "ctc"), ("interctc", "ctc")]


@pytest.mark.parametrize(
    ("method", "decoder"),
    [*OF_CTC, *(("l0", d) for d in ("ctc", "stateless rnnt", "lstm tdt", "hybrid"))],
)
def test_a_step_of_tuning_waits_for_nothing(method, decoder, batch):
    with fake_gpu() as counter:
        plugin, ctx = load_method(method), context_on_gpu(method, SHAPES[decoder], batch)
        choice = half_of(ctx.space)
        small = plugin.prepare_tuning(extracted_on_gpu(ctx.student.shape, choice), ctx)
        stage, ready = plugin.tuning(small, choice, ctx, steps=4), batch.to(GPU)
        counter.places.clear()
        take_steps(stage, ready, range(4))  # of `foster` two of each half

    assert not counter.places


def test_what_waits_is_counted_at_its_line_and_devices_do_not_mix(batch):
    with fake_gpu() as counter:
        x = torch.zeros(3).to(GPU, non_blocking=True)
        ready = batch.to(GPU)
        counter.places.clear()
        RunningMeans(sums={"total": x.sum()}, steps=1).means()
        assert [place.partition(":")[0] for place in counter.places] == ["core/training/loop.py"]
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert ready.num_frames.device.type == "cpu"


def test_gradients_without_a_gpu_are_those_of_torch(batch):
    for shape in SHAPES.values():
        torch.manual_seed(0)
        model = Conformer(shape).train()
        output = model(batch.features, batch.num_frames, tokens=batch.tokens)
        loss = task_loss(output, batch.tokens, batch.num_tokens)
        expected = torch.autograd.grad(
            loss, list(model.parameters()), retain_graph=True, allow_unused=True
        )

        found = gradients([loss], [None])

        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            if gradient is not None:
                torch.testing.assert_close(found[parameter], gradient)
