"""What rounding costs is known from double precision, and is no excuse for a mistake."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.export.onnx.conversion import export_onnx
from core.export.rounding import Errors, log_probabilities_in_double, rounding_errors
from core.export.verify import LENGTHS, TOLERANCE, Expected, agreement, check_graph
from core.inference.graph_interface import ExportError
from core.inference.onnx_session import Graph
from core.testing import (
    TRANSDUCERS,
    deeper,
    ragged_speech,
    small_model,
    with_factors,
    with_frontend,
    with_transducer,
)

pytestmark = pytest.mark.whole

SHAPES = [
    deeper(2),
    with_factors(deeper(2)),
    deeper(2, linear_features=6),
    with_frontend(deeper(2), "striding"),
    with_frontend(deeper(2), "dw_striding 8x"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_block_by_block_in_double_is_the_whole_model_in_double(shape):
    model, (features, num_frames) = small_model(shape=shape), ragged_speech(90, 60)

    found = log_probabilities_in_double(model, features, num_frames)

    whole = small_model(shape=shape).double()
    with torch.no_grad():
        right = whole(features.double(), num_frames)
    expected = right.logits.log_softmax(-1)[right.is_frame]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_a_transducer_in_double_is_the_whole_model_in_double(kind):
    shape = with_transducer(deeper(2), kind)
    model, (features, num_frames) = small_model(shape=shape), ragged_speech(90, 60)
    places = model.eval().best_places(features, num_frames)

    found = log_probabilities_in_double(model, features, num_frames, places)

    whole = small_model(shape=shape).double().eval()
    with torch.no_grad():
        right = whole(features.double(), num_frames, places=places)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, right.log_probs(), atol=1e-12, rtol=0)


def test_single_precision_is_near_and_a_shift_is_measured():
    model, speech = small_model(shape=deeper(2)), ragged_speech(90, 60)
    output = model(*speech)
    right = output.logits.log_softmax(-1)[output.is_frame].detach()

    same = rounding_errors(model, speech, right)
    shifted = rounding_errors(model, speech, right + 0.01)

    assert 0 < same.torch == same.other < 1e-5
    assert shifted.other == pytest.approx(0.01, rel=0.01)
    assert same.is_rounding
    assert not shifted.is_rounding


def test_the_largest_errors_of_two_batches_count():
    both = Errors(torch=1e-6, other=3e-6).combine(Errors(torch=2e-6, other=1e-6))

    assert both == Errors(torch=2e-6, other=3e-6)


def test_a_program_that_gives_no_number_is_infinitely_far_away():
    model, speech = small_model(), ragged_speech(90, 60)
    output = model(*speech)
    nothing = torch.full_like(output.logits[output.is_frame], float("nan")).detach()

    errors = rounding_errors(model, speech, nothing)
    found = agreement(model, NoNumbers(model), [(90, 60)])

    assert errors.other == found.gap == float("inf")
    assert not errors.is_rounding


class NoNumbers(nn.Module):
    """Frames as a model has them, and nothing in them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *speech):
        found = self.model(*speech)
        return replace(found, ctc_logits=torch.full_like(found.logits, float("nan")))


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_beyond_the_tolerance_is_right_if_torch_is_as_far_from_double(tmp_path):
    model = small_model(shape=deeper(2))
    with torch.no_grad():  # logits of a thousand: single precision is 1e-4 coarse there
        model.head.weight.mul_(3000.0)
    export_onnx(model, tmp_path / "model.onnx")
    graph = Graph(tmp_path / "model.onnx")

    found, errors = check_graph(model, graph, "model.onnx")

    assert found.gap > TOLERANCE
    assert errors is not None
    assert errors.is_rounding


@pytest.mark.long
@pytest.mark.slow
def test_a_mistake_of_a_graph_is_refused_however_wide_its_logits_are(tmp_path):
    model = small_model(shape=deeper(2))
    with torch.no_grad():
        model.head.weight.mul_(3000.0)
    export_onnx(model, tmp_path / "model.onnx")
    graph = Graph(tmp_path / "model.onnx")
    with torch.no_grad():
        model.head.weight[1].mul_(1.001)
    expected = [Expected.of(model, lengths) for lengths in LENGTHS[:2]]

    with pytest.raises(ExportError, match=r"within 0\.0001, but they differ by .* from double"):
        check_graph(model, graph, "model.onnx", expected=expected)
