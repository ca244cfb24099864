"""A graph in 8-bit integers hears what the graph in floats does."""

import onnx
import pytest

from core.deploy.onnx import GraphError, export_onnx
from core.deploy.quantise import quantise_dynamic, quantise_static
from core.deploy.runtime import Graph
from core.evaluation.decoding import greedy
from core.testing import deeper, hearing, patterned, small_model, taught_toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A model that has learned its task, and its graph."""
    file = tmp_path_factory.mktemp("toy") / "model.onnx"
    model = taught_toy()
    export_onnx(model, file)
    return model, file


def calibration():
    return [(batch.features, batch.num_frames) for batch in (patterned(8, seed=5),)]


def dynamic(graph, file):
    quantise_dynamic(graph, file)


def static(graph, file):
    quantise_static(graph, file, calibration())


@pytest.mark.parametrize("quantise", [dynamic, static])
def test_a_taught_model_in_integers_says_nearly_what_it_said(toy, quantise, tmp_path):
    model, graph = toy
    quantise(graph, tmp_path / "small.onnx")
    batch = patterned(24, seed=9)

    expected = model(batch.features, batch.num_frames)
    found = Graph(tmp_path / "small.onnx")(batch.features, batch.num_frames)

    texts = greedy(expected.logits.log_softmax(-1), expected.num_frames)
    heard = greedy(found.logits, found.num_frames)
    gap = (found.logits.exp() - expected.logits.softmax(-1))[expected.is_frame].abs()
    assert 0 < gap.mean() < 0.01
    assert sum(a == b for a, b in zip(texts, heard, strict=True)) >= 22


@pytest.mark.parametrize("quantise", [dynamic, static])
def test_it_is_smaller_and_alone_in_its_folder(toy, quantise, tmp_path):
    _, graph = toy

    quantise(graph, tmp_path / "small.onnx")

    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    assert (tmp_path / "small.onnx").stat().st_size < 0.85 * graph.stat().st_size


@pytest.mark.parametrize(
    ("quantise", "is_nemo"),
    [
        (dynamic, False),
        pytest.param(dynamic, True, marks=pytest.mark.long),
        pytest.param(static, False, marks=pytest.mark.long),
    ],
)
def test_the_front_end_stays_in_floats_and_the_blocks_do_not(quantise, is_nemo, tmp_path):
    model = small_model(shape=hearing(deeper(2), "dw_striding"))
    export_onnx(model, tmp_path / "model.onnx", is_nemo=is_nemo)

    quantise(tmp_path / "model.onnx", tmp_path / "small.onnx")

    weights = onnx.load(tmp_path / "small.onnx").graph.initializer
    in_integers = [w.name for w in weights if w.data_type == onnx.TensorProto.INT8]
    assert any("blocks.1." in name for name in in_integers)
    assert any("head." in name for name in in_integers)
    assert not any("frontend" in name for name in in_integers)


@pytest.mark.parametrize("quantise", [dynamic, static])
@pytest.mark.parametrize("content", [None, b"no graph at all"])
def test_a_file_that_is_no_graph_is_named(quantise, content, tmp_path):
    if content is not None:
        (tmp_path / "broken.onnx").write_bytes(content)

    with pytest.raises(GraphError, match=r"broken\.onnx` must be an ONNX graph, but"):
        quantise(tmp_path / "broken.onnx", tmp_path / "small.onnx")


def test_ranges_are_measured_on_speech_or_not_at_all(toy, tmp_path):
    with pytest.raises(ValueError, match=r"`speech` must hold a batch or more .* but is empty"):
        quantise_static(toy[1], tmp_path / "small.onnx", [])
