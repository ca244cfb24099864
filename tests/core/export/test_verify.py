"""Law 6 for what leaves: 0.1 to 60 s, ragged, without padding, and with nothing in it."""

import pytest
import torch

from core.config.trial import CorpusConfig
from core.data.audio import read_file
from core.data.tokenizer import Tokenizer
from core.export.onnx.conversion import export_onnx
from core.export.onnx.model import Inference
from core.export.verify import LENGTHS, TOLERANCE, agreement, check_graph, make_test_sounds
from core.inference.graph_interface import ExportError
from core.inference.onnx_session import Graph
from core.pruning.extraction import extract
from core.testing import deeper, random_mask, small_model, with_factors, with_frontend

pytestmark = pytest.mark.whole


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        # Graphs of all kinds are compared with their models in onnx/test_conversion.py.
        ("empty_blocks", deeper(3)),
        ("binary", with_factors(deeper(2))),
    ],
)
def test_a_graph_is_its_model_at_any_length(kind, shape, tmp_path):
    model = small_model(shape=shape)
    small = extract(model, random_mask(model.axes(), kind))
    export_onnx(small, tmp_path / "model.onnx")

    found = agreement(small, Graph(tmp_path / "model.onnx"))

    assert found.gap <= TOLERANCE
    assert found.same_best > 0.99
    assert max(map(max, LENGTHS)) == 6000


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("front_end", ["striding", "dw_striding 8x"])
def test_a_graph_read_as_nemo_s_says_each_frame_for_all_its_features(front_end, tmp_path):
    model = small_model(shape=with_frontend(deeper(2), front_end))
    export_onnx(model, tmp_path / "model.onnx", is_nemo=True)

    found = agreement(model, Graph(tmp_path / "model.onnx"), is_nemo=True)

    assert found.gap <= TOLERANCE
    assert agreement(model, Graph(tmp_path / "model.onnx")).gap == float("inf")


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_of_another_model_is_refused(tmp_path):
    model = small_model()
    export_onnx(model, tmp_path / "model.onnx")
    graph = Graph(tmp_path / "model.onnx")
    with torch.no_grad():
        model.head.bias[1] += 0.01

    with pytest.raises(ExportError, match=r"`model\.onnx` .* within 0\.0001, but they differ by"):
        check_graph(model, graph, "model.onnx")


@pytest.mark.parametrize("num_frames", [0, 1, 6, 7])
def test_what_is_too_short_for_a_frame_is_heard_as_nothing(num_frames):
    features = torch.zeros(1, num_frames, 80)

    log_probabilities, lengths = Inference(small_model())(features, torch.tensor([num_frames]))

    assert lengths.tolist() == [num_frames // 7]
    assert log_probabilities.isfinite().all()


def test_made_sounds_can_be_heard_and_one_is_a_click(tmp_path):
    config = CorpusConfig(tokens="word", vocabulary=8)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, tmp_path)

    lengths = [len(read_file(file)) for file in make_test_sounds(tokenizer, tmp_path)]

    assert min(lengths) < 1040 < max(lengths)
