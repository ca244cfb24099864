"""A graph in 8-bit integers hears what the graph in floats does."""

import shutil
import zlib

import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel

from core.decoders.ctc import greedy
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import (
    products_beyond_frontend,
    quantize_activations,
    quantize_weights,
)
from core.inference.graph_interface import GraphError
from core.inference.onnx_session import Graph
from core.testing import (
    SHAPE,
    deeper,
    make_patterned_speech,
    ragged_speech,
    small_model,
    train_toy,
    with_frontend,
)

pytestmark = [pytest.mark.slow, pytest.mark.whole]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A model that has learned its task, and its graph."""
    file = tmp_path_factory.mktemp("toy") / "model.onnx"
    model = train_toy()
    export_onnx(model, file)
    return model, file


def exported(folder, shape, *, is_nemo=False, inline_bytes=2**30):
    """Return the folder of a small model's graph, made once: an export takes seconds."""
    own = folder / f"{zlib.crc32(repr(shape).encode())}-{is_nemo}-{inline_bytes}"
    if not own.exists():
        own.mkdir()
        graph = own / "model.onnx"
        export_onnx(small_model(shape=shape), graph, is_nemo=is_nemo, inline_bytes=inline_bytes)
    return own


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The folder of all exported graphs."""
    return tmp_path_factory.mktemp("graphs")


def calibration():
    return [(batch.features, batch.num_frames) for batch in (make_patterned_speech(8, seed=5),)]


def dynamic(graph, file):
    quantize_weights(graph, file)


def static(graph, file):
    quantize_activations(graph, file, calibration())


@pytest.mark.parametrize("quantise", [pytest.param(dynamic, marks=pytest.mark.long), static])
def test_a_taught_model_in_integers_says_nearly_what_it_said(toy, quantise, tmp_path):
    model, graph = toy
    quantise(graph, tmp_path / "small.onnx")
    batch = make_patterned_speech(24, seed=9)

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
        pytest.param(dynamic, False, marks=pytest.mark.long),
        pytest.param(dynamic, True, marks=pytest.mark.long),
        pytest.param(static, False, marks=pytest.mark.long),
    ],
)
def test_the_front_end_stays_in_floats_and_the_blocks_do_not(quantise, is_nemo, graphs, tmp_path):
    graph = exported(graphs, with_frontend(deeper(2), "dw_striding"), is_nemo=is_nemo)

    quantise(graph / "model.onnx", tmp_path / "small.onnx")

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


@pytest.mark.long
@pytest.mark.parametrize(
    "front_end", ["conv4", pytest.param("dw_striding 8x", marks=pytest.mark.long)]
)
def test_dynamic_integers_are_those_of_the_runtimes_own_quantizer(front_end, graphs, tmp_path):
    shape = deeper(2) if front_end == "conv4" else with_frontend(deeper(2), front_end)
    graph = exported(graphs, shape) / "model.onnx"
    speech = ragged_speech(400, 300)

    quantize_weights(graph, tmp_path / "ours.onnx")
    _quantize_by_runtime(graph, tmp_path / "theirs.onnx")

    ours, theirs = (Graph(tmp_path / f"{name}.onnx")(*speech) for name in ("ours", "theirs"))
    assert torch.equal(ours.logits, theirs.logits)


def _quantize_by_runtime(graph, file):
    model = onnx.load(graph)
    del model.graph.value_info[:]
    ONNXModel(model).replace_gemm_with_matmul()
    quantize_dynamic(
        model,
        file,
        nodes_to_quantize=products_beyond_frontend(model),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


@pytest.mark.long
def test_weights_in_a_file_of_their_own_are_quantized_as_those_within(graphs, tmp_path):
    speech = ragged_speech(90, 60)
    for name, inline_bytes in (("within", 2**30), ("external", 1000)):
        graph = exported(graphs, deeper(2), inline_bytes=inline_bytes) / "model.onnx"
        quantize_weights(graph, tmp_path / f"{name}.onnx", inline_bytes=inline_bytes)

    within, external = (Graph(tmp_path / f"{n}.onnx")(*speech) for n in ("within", "external"))

    assert torch.equal(external.logits, within.logits)
    assert (tmp_path / "external.onnx.data").is_file()
    assert (tmp_path / "external.onnx").stat().st_size < 2**18


@pytest.mark.long
@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "missing", "linked"])
def test_weights_that_a_graph_names_elsewhere_are_not_opened(location, graphs, tmp_path):
    graph = tmp_path / "folder" / "model.onnx"
    shutil.copytree(exported(graphs, SHAPE, inline_bytes=1000), graph.parent)
    (tmp_path / "weights").write_bytes((graph.parent / "model.onnx.data").read_bytes())
    (graph.parent / "linked").symlink_to(tmp_path / "weights")
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    graph.write_bytes(model.SerializeToString())

    with pytest.raises(GraphError, match=r"must lie in a file of its folder"):
        quantize_weights(graph, tmp_path / "small.onnx")

    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.long
def test_weights_that_are_cut_short_are_named(graphs, tmp_path):
    graph = tmp_path / "folder" / "model.onnx"
    shutil.copytree(exported(graphs, SHAPE, inline_bytes=1000), graph.parent)
    data = graph.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])

    with pytest.raises(GraphError, match=r"must hold the weights of its graph, but ends before"):
        quantize_weights(graph, tmp_path / "small.onnx")


def test_ranges_are_measured_on_speech_or_not_at_all(toy, tmp_path):
    with pytest.raises(ValueError, match=r"`speech` must hold a batch or more .* but is empty"):
        quantize_activations(toy[1], tmp_path / "small.onnx", [])
