"""Training for depth: what it asks of middle blocks, and what it passes by."""

import pytest
import torch

from core.config.base import ConfigError
from core.config.trial import TeacherConfig, TrialConfig
from core.conformer.masking import fold, gated_forward, named_tensors
from core.decoders.ctc import ctc_loss
from core.pruning.extraction import extract
from core.testing import deeper, noise_with_tokens, ragged_speech, small_model
from core.training.intermediate_ctc import InterCTC, sample_skips
from core.training.loop import DenseStage, Rates


def a_stage(model, interctc=None) -> DenseStage:
    return DenseStage(
        model,
        stage="teacher",
        steps=4,
        rates=Rates(peak=1e-3, warmup_share=0.0, weight_decay=0.01, clip=5.0),
        evaluator=None,
        runtime=TrialConfig().runtime,
        interctc=interctc,
    )


def test_without_weight_loss_steps_and_chance_are_those_of_plain_training():
    plain, asked = small_model(shape=deeper(3)), small_model(shape=deeper(3))
    asked.set_stochastic_depth(0.0)
    interctc = InterCTC.of(TeacherConfig(interctc_weight=0.0, interctc_layers=[1]), 3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = ctc_loss(
        small_model(shape=deeper(3)).train()(
            noise_with_tokens().features, noise_with_tokens().num_frames
        ),
        noise_with_tokens().tokens,
        noise_with_tokens().num_tokens,
    ).detach()
    torch.set_rng_state(state)

    losses = [
        a_stage(asked, interctc).step(noise_with_tokens(), 0),
        a_stage(plain).step(noise_with_tokens(), 0),
    ]

    for found in losses:
        assert found.keys() == {"total", "task"}
        assert torch.equal(found["total"], expected)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(asked.state_dict()[name], tensor)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_middle_block_is_asked_as_the_model_that_ends_there():
    model, batch = small_model(shape=deeper(4)).double(), noise_with_tokens()
    features = batch.features.double()

    def ctc(depth):
        small = extract(model, {f"blocks.{i}": torch.zeros(1) for i in range(depth, 4)})
        return ctc_loss(small(features, batch.num_frames), batch.tokens, batch.num_tokens)

    interctc = InterCTC.of(TeacherConfig(interctc_weight=0.3, interctc_layers=[1, 3]), 4)
    losses = interctc.losses(ctc(4), model, model(features, batch.num_frames), batch)

    torch.testing.assert_close(losses["intermediate"], (ctc(1) + ctc(3)) / 2)
    torch.testing.assert_close(losses["total"], 0.7 * ctc(4) + 0.3 * (ctc(1) + ctc(3)) / 2)
    assert losses["task"] == ctc(4)


@pytest.mark.parametrize(("num_blocks", "middle"), [(2, 1), (6, 3), (17, 8)])
def test_the_middle_block_is_asked_if_none_is_named(num_blocks, middle):
    assert InterCTC.of(TeacherConfig(interctc_weight=0.3), num_blocks).layers == (middle,)


@pytest.mark.parametrize(("layers", "num_blocks"), [([6], 6), ([2, 0], 6), ([], 1)])
def test_a_block_that_is_no_middle_one_is_refused(layers, num_blocks):
    config = TeacherConfig(interctc_weight=0.3, interctc_layers=layers)

    with pytest.raises(ConfigError, match=r"`teacher.interctc_layers` must lie before the last"):
        InterCTC.of(config, num_blocks)


def test_later_blocks_are_passed_by_more_often_in_even_steps():
    model = small_model(shape=deeper(4))
    model.set_stochastic_depth(0.4)
    torch.manual_seed(0)

    draws = [sample_skips(model) for _ in range(2000)]

    probabilities = [block.skip_probability for block in model.typed_blocks()]
    assert probabilities == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for block in model.typed_blocks():
        share = sum(block.name in skips for skips in draws) / len(draws)
        p = block.skip_probability
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(draws)) ** 0.5)


def test_a_block_that_is_there_adds_as_much_more_as_it_is_often_away():
    rare, plain = (small_model(shape=deeper(3)).double().train() for _ in range(2))
    rare.set_stochastic_depth(0.6)
    features, num_frames = ragged_speech(61, 40, dtype=torch.float64)
    gates = {
        f"blocks.{i}": torch.tensor([1 / (1 - p)], dtype=torch.float64)
        for i, p in enumerate((0.2, 0.4, 0.6))
    }

    expected = gated_forward(
        plain, features, num_frames, fold(named_tensors(plain), plain.axes(), gates)
    )

    torch.testing.assert_close(rare(features, num_frames).logits, expected.logits)


def test_evaluation_knows_nothing_of_stochastic_depth():
    rare, plain = small_model(shape=deeper(3)), small_model(shape=deeper(3))
    rare.set_stochastic_depth(0.9)
    features, num_frames = ragged_speech(61, 40)

    first, second = (rare(features, num_frames).logits for _ in range(2))

    assert torch.equal(first, second)
    assert torch.equal(first, plain(features, num_frames).logits)


def test_a_step_leaves_blocks_that_it_passes_by_as_they_were():
    model = small_model(shape=deeper(3))
    model.set_stochastic_depth(0.999)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = a_stage(model, InterCTC.of(TeacherConfig(interctc_weight=0.5), 3))
    torch.manual_seed(1)
    skipped = sample_skips(model)
    torch.manual_seed(1)

    losses = stage.step(noise_with_tokens(), 0)

    assert skipped
    assert len(skipped) < 3
    for name, parameter in model.named_parameters():
        is_inside = name.startswith(tuple(f"{block}." for block in skipped))
        assert torch.equal(parameter, before[name]) == is_inside, name
    assert losses["total"].isfinite()
