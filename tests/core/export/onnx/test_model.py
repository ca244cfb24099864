"""A model rewritten for inference gives the log-probabilities of the model it was made of."""

from dataclasses import replace

import pytest
import torch

from core.conformer.attention import distance_table
from core.export.onnx.model import COARSE, FINE, Inference, Positions
from core.pruning.extraction import extract
from core.testing import (
    MASK_KINDS,
    SHAPE,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
)


def gap(model, *lengths, seed=0):
    """Of log-probabilities of real frames, at most."""
    features, num_frames = ragged_speech(*lengths, seed=seed)
    output = model(features, num_frames)
    expected = output.logits.log_softmax(-1)
    log_probabilities, num_output_frames = Inference(model)(features, num_frames)
    assert torch.equal(num_output_frames, output.num_frames)
    return (log_probabilities - expected)[output.is_frame].abs().max()


@pytest.mark.parametrize("lengths", [(61, 40), (7,), (9, 8, 7), (400, 399, 12, 7, 100)])
@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize(
    "shape", [deeper(2), with_factors(deeper(2)), deeper(2, linear_features=6)]
)
def test_it_computes_what_the_extracted_model_does(shape, kind, lengths):
    model = small_model(shape=shape)
    small = extract(model, random_mask(model.axes(), kind))

    assert gap(small, *lengths) < 1e-5


@pytest.mark.parametrize("change", [{"position_width": 15}, {"kernel": 1}, {"sub1": 1, "sub2": 17}])
def test_it_computes_what_models_of_odd_sizes_do(change):
    model = small_model(shape=replace(SHAPE, **change))

    assert gap(model, 120, 33) < 1e-5


def test_an_utterance_without_a_single_output_frame_disturbs_nobody():
    features, num_frames = ragged_speech(90, 3)

    log_probabilities, num_output_frames = Inference(small_model())(features, num_frames)

    assert num_output_frames.tolist() == [21, 0]
    assert torch.isfinite(log_probabilities).all()


@pytest.mark.parametrize("time", [1, 2, FINE - 1, FINE, FINE + 1, 3000])
@pytest.mark.parametrize("width", [6, 7])
def test_positions_are_the_models_own_table_and_one_distance_more(time, width):
    expected = distance_table(time, width, device=torch.device("cpu"), dtype=torch.float32)

    found = Positions(width)(time)
    sine, cosine = found.chunk(2)
    interleaved = torch.stack((sine, cosine), dim=1).flatten(0, 1)[:width].T

    assert interleaved.shape == (2 * time, width)
    torch.testing.assert_close(interleaved[1:], expected, rtol=0, atol=1e-6)


def test_positions_reach_as_far_as_they_say():
    time = FINE * COARSE

    assert Positions(2)(time).shape == (2, 2 * time)


def test_the_model_itself_is_left_as_it_was():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    Inference(model)

    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
