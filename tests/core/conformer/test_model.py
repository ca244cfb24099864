"""Law 4: padding never reaches a real frame; and the parts of a Conformer are what they say."""

import pytest
import torch

from core.config.base import ConfigError
from core.config.trial import ModelConfig
from core.conformer import attention
from core.conformer.attention import LONG, distance_table, relative_shift, softmax_attention
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.features.spec import NATIVE
from core.testing import (
    FRONTEND_SPECS,
    SHAPE,
    deeper,
    ragged_speech,
    small_model,
    with_factors,
    with_frontend,
)

LENGTHS = (90, 64, 63, 31, 12, 7)


@pytest.mark.parametrize("linear_features", [0, 6])
@pytest.mark.parametrize("kind", FRONTEND_SPECS)
@pytest.mark.parametrize("i", range(len(LENGTHS)))
def test_padding_does_not_reach_real_frames(i, kind, linear_features):
    model = small_model(shape=with_frontend(deeper(2, linear_features=linear_features), kind))
    features, num_frames = ragged_speech(*LENGTHS)

    together = model(features, num_frames)
    alone = model(features[i : i + 1, : LENGTHS[i]], num_frames[i : i + 1])

    real = int(alone.num_frames[0])
    assert int(together.num_frames[i]) == real > 0
    torch.testing.assert_close(together.logits[i, :real], alone.logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear_features", [0, 6])
@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_padding_moves_no_batch_norm_statistic(kind, linear_features):
    features, num_frames = ragged_speech(90, 40)
    shape = with_frontend(deeper(2, linear_features=linear_features), kind)
    quiet, loud = (small_model(shape=shape).train() for _ in range(2))

    quiet(features, num_frames)
    loud(
        torch.where(torch.arange(90)[:, None] < num_frames[:, None, None], features, 9.0),
        num_frames,
    )

    for name, buffer in quiet.named_buffers():
        torch.testing.assert_close(dict(loud.named_buffers())[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear_features", [0, 6])
def test_an_utterance_without_a_single_output_frame_disturbs_nobody(linear_features):
    model = small_model(shape=deeper(2, linear_features=linear_features))
    features, num_frames = ragged_speech(90, 3)

    output = model(features, num_frames)

    assert output.num_frames.tolist() == [21, 0]
    assert torch.isfinite(output.logits).all()


def test_a_batch_of_one_output_frame_can_be_trained_on():
    """One frame has no variance: the module gives its bias, and the running variance stays."""
    model = small_model().train()
    norm = model.blocks[0].convolution.batch_norm
    before = norm.running_var.clone()

    output = model(*ragged_speech(7))
    output.logits.square().sum().backward()

    assert output.logits.shape[1] == 1
    assert torch.equal(norm.running_var, before)
    assert not torch.equal(norm.running_mean, torch.zeros_like(before))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_position_score_stands_where_its_distance_says():
    time = 5
    scores = torch.arange(time - 1, -time, -1.0).expand(1, time, -1)

    actual = relative_shift(scores)[0]

    frames = torch.arange(5.0)
    assert torch.equal(actual, frames[:, None] - frames[None])


@pytest.mark.parametrize("rows", [1, 3, 4, 64])
def test_attention_a_few_rows_at_a_time_mixes_the_same(rows):
    heads, batch, time, width = 2, 2, 9, 4
    torch.manual_seed(0)
    queries = {
        name: torch.randn(heads, batch, time, width, dtype=torch.float64, requires_grad=True)
        for name in ("of_content", "of_position", "k", "v")
    }
    p = torch.randn(heads, 2 * time - 1, width, dtype=torch.float64, requires_grad=True)
    given = {**queries, "p": p}
    is_frame = torch.arange(time) < torch.tensor([[time], [5]])

    whole = softmax_attention(**given, is_frame=is_frame, rows=time)
    cut = softmax_attention(**given, is_frame=is_frame, rows=rows)

    torch.testing.assert_close(cut, whole)
    weights = torch.randn_like(whole)
    for y, x in zip(
        torch.autograd.grad((cut * weights).sum(), list(given.values())),
        torch.autograd.grad((whole * weights).sum(), list(given.values())),
        strict=True,
    ):
        torch.testing.assert_close(y, x)


def test_what_is_long_is_heard_as_if_all_rows_of_scores_were_at_hand(monkeypatch):
    model, frames = small_model(), LONG + 90
    features, num_frames = ragged_speech(4 * frames, 4 * LONG + 8)
    met = []
    monkeypatch.setattr(
        attention, "softmax_attention", lambda **told: met.append(told) or softmax_attention(**told)
    )

    with torch.no_grad():
        in_parts = model(features, num_frames)
        monkeypatch.setattr(attention, "LONG", frames)
        at_once = model(features, num_frames)

    assert {told["rows"] for told in met} == {attention.INFERENCE_ROWS, in_parts.logits.shape[1]}
    torch.testing.assert_close(in_parts.logits, at_once.logits, rtol=1e-5, atol=1e-5)


def test_distances_are_encoded_by_their_sines():
    table = distance_table(4, 6, device=torch.device("cpu"), dtype=torch.float64)

    assert table.shape == (7, 6)
    torch.testing.assert_close(table[3], torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=torch.float64))
    torch.testing.assert_close(table[0, 0], torch.tensor(3.0, dtype=torch.float64).sin())


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 1.4), ("small", 11), ("medium", 28), ("large", 116)]
)
def test_named_sizes_are_about_as_large_as_they_say(size, millions):
    with torch.device("meta"):
        model = Conformer(Shape.of(ModelConfig(size=size), vocabulary=1000))

    actual = sum(p.numel() for p in model.parameters()) / 1e6

    assert actual == pytest.approx(millions, rel=0.15)


@pytest.mark.parametrize(
    ("overrule", "message"),
    [
        ({"width": 90}, r"`model.width` must be divisible by `model.heads` = 4, but is 90"),
        ({"kernel": 8}, r"`model.kernel` must be odd, but is 8"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(overrule, message):
    with pytest.raises(ConfigError, match=message):
        Shape.of(ModelConfig(**overrule), vocabulary=10)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"width": 0}, r"`width` must be a whole number from 1 to 65536, but is 0"),
        ({"width": "16"}, r"`width` must be a whole number"),
        ({"widht": 3}, r"must be exactly"),
        ({"blocks": [{"ff1": 1}]}, r"`blocks.0.\*` must be exactly"),
        ({"blocks": 3}, r"`blocks` must be a list"),
        (
            {"ranks": {"blocks.0.ff1.up": 0}},
            r"`ranks.blocks.0.ff1.up` must be a whole number from 1",
        ),
        ({"ranks": {"blocks.0.ff3.up": 2}}, r"`ranks` must name linear layers of the model"),
        ({"ranks": [3]}, r"`ranks` must name linear layers of the model"),
        ({"sub3": 4}, r"`sub3` must be 0 where there is no such convolution"),
        ({"frontend": {}}, r"`frontend.\*` must be exactly"),
        (
            {"frontend": NATIVE.to_plain() | {"features": "mfcc"}},
            r"`frontend.features` must be one of kaldi, nemo, sherpa, .*, but is 'mfcc'",
        ),
        (
            {"frontend": NATIVE.to_plain() | {"preemphasis": 1.0}},
            r"`frontend.preemphasis` must be in \[0, 1\), but is 1.0",
        ),
        (
            {"frontend": NATIVE.to_plain() | {"stages": 3}},
            r"`frontend.stages` of conv4 must be 2, but is 3",
        ),
    ],
)
def test_a_damaged_shape_is_refused(damage, message):
    plain = small_model().shape.to_plain()

    with pytest.raises(ValueError, match=message):
        Shape.from_plain(plain | damage)


@pytest.mark.parametrize(
    "shape",
    [
        *(SHAPE, with_factors(SHAPE), deeper(2, linear_features=6)),
        *(with_frontend(SHAPE, kind) for kind in FRONTEND_SPECS),
    ],
    ids=["dense", "factored", "linear attention", *FRONTEND_SPECS],
)
def test_a_shape_survives_plain_values(shape):
    assert Shape.from_plain(shape.to_plain()) == shape


def test_a_shape_without_factors_is_written_as_it_was_before_there_were_any():
    assert not {"ranks", "sub3", "frontend"} & set(SHAPE.to_plain())


def test_a_shape_from_before_attention_ran_in_linear_time_has_softmax():
    plain = deeper(2).to_plain()
    for block in plain["blocks"]:
        del block["linear_features"]

    assert Shape.from_plain(plain) == deeper(2)
