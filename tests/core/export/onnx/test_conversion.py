"""Law 6, ONNX's part: the graph gives the model's log-probabilities within 1e-4."""

import gc
import sys

import pytest
import torch

from core.export.onnx.conversion import export_onnx
from core.inference.graph_interface import ExportError, GraphError
from core.inference.onnx_session import Graph
from core.pruning.extraction import extract
from core.testing import (
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_factors,
    with_frontend,
)

pytestmark = pytest.mark.whole

LENGTHS = [(61, 40), (203,), (9, 8, 7), (400, 399, 12, 7, 100), (7,), (90, 3)]
OFTEN = [
    ("binary", with_frontend(deeper(2), "dw_striding 8x")),
]
SELDOM = [
    ("binary", deeper(2)),
    ("empty_blocks", deeper(2)),
    ("open", deeper(2)),
    ("empty_modules", deeper(2)),
    ("all_modules_empty", deeper(2)),
    ("binary", with_factors(deeper(2))),
    ("binary", deeper(2, linear_features=6)),
    ("binary", with_frontend(deeper(2), "striding")),
    ("binary", with_frontend(deeper(2), "linear")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape"),
    [*OFTEN, *(pytest.param(*each, marks=pytest.mark.long) for each in SELDOM)],
)
def test_the_graph_gives_the_models_log_probabilities(kind, shape, tmp_path):
    model = small_model(shape=shape)
    small = extract(model, random_mask(model.axes(), kind))
    export_onnx(small, tmp_path / "model.onnx")
    graph = Graph(tmp_path / "model.onnx")

    for lengths in LENGTHS:
        features, num_frames = ragged_speech(*lengths)
        expected, found = small(features, num_frames), graph(features, num_frames)

        assert torch.equal(found.num_frames, expected.num_frames)
        logits = found.logits[:, : expected.logits.shape[1]]  # a graph's shortest time is longer
        gap = (logits - expected.logits.log_softmax(-1))[expected.is_frame].abs()
        assert gap.max() < 1e-4


@pytest.mark.long
@pytest.mark.slow
def test_an_export_leaves_nothing_half_written_and_chance_as_it_was(tmp_path):
    model = small_model()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    export_onnx(model, tmp_path / "model.onnx")

    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert torch.equal(torch.rand(3), expected)
    assert torch.is_grad_enabled()


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_with_its_weights_beside_it_computes_the_same_in_any_folder(tmp_path):
    model = small_model()
    speech = ragged_speech(90, 60)
    export_onnx(model, tmp_path / "model.onnx")
    inside = Graph(tmp_path / "model.onnx")(*speech)
    (tmp_path / "made").mkdir()

    export_onnx(model, tmp_path / "made" / "model.onnx", inline_bytes=1000)
    (tmp_path / "made").rename(tmp_path / "moved")

    files = sorted(path.name for path in (tmp_path / "moved").iterdir())
    assert files == ["model.onnx", "model.onnx.data"]
    beside = Graph(tmp_path / "moved" / "model.onnx")(*speech)
    assert torch.equal(beside.logits, inside.logits)


@pytest.mark.long
@pytest.mark.slow
def test_after_an_export_the_memory_of_its_weights_is_free(tmp_path):
    model = small_model()
    before = {id(each) for each in _tensors_alive()}

    export_onnx(model, tmp_path / "model.onnx")

    left = {each.shape for each in _tensors_alive() if id(each) not in before}
    # onnxscript keeps one small table of positions, which no size of a model makes larger.
    assert not left & {weight.shape for weight in model.parameters() if weight.dim() > 1}


def _tensors_alive():
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    return [each for each in gc.get_objects() if type(each) in kinds and each.device.type == "cpu"]


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as Python marks what cannot be imported

    with pytest.raises(ExportError, match=rf"`{name}`.*pip install \"conformer-sweep\[export\]\""):
        export_onnx(small_model(), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=rf"`{name}`"):
        Graph(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [None, b"", b"no graph at all"])
def test_a_file_that_is_no_graph_is_named(content, tmp_path):
    file = tmp_path / "broken.onnx"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(GraphError, match=r"broken\.onnx` must be an ONNX graph, but"):
        Graph(file)


def test_the_graph_of_something_else_is_refused(tmp_path):
    import onnx  # noqa: PLC0415  # an extra

    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "x.onnx"
    )

    with pytest.raises(GraphError, match=r"inputs and outputs features, .* but has x, y instead"):
        Graph(tmp_path / "x.onnx")


def test_a_graph_needs_a_thread(tmp_path):
    with pytest.raises(ValueError, match=r"`threads` must be at least 1, but is 0"):
        Graph(tmp_path / "model.onnx", threads=0)
