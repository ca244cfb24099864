"""A graph from elsewhere is data: nothing beside it is opened, nothing in it that runs is run."""

from pathlib import Path

import numpy as np
import pytest

from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_activations, quantize_weights
from core.inference.graph_check import check_graph_file
from core.inference.graph_interface import GraphError
from core.inference.onnx_session import Graph
from core.testing import ragged_speech, small_model

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto

SECRET = np.arange(64, dtype=np.float32)


def tensor(*, dims=(4,), raw=None, external=None):
    """Floats named `w`, inside the graph or somewhere else."""
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    if external is None:
        made.raw_data = SECRET[:4].tobytes() if raw is None else raw
    else:
        made.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            made.external_data.add(key=key, value=value)
    return made


def graph_file(file: Path, *, weights=(), nodes=(), opset=20, functions=(), domain="") -> Path:
    """A graph that adds `w` to its input."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    nodes = list(nodes) or [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=list(weights) or [tensor()])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    file.write_bytes(model.SerializeToString())
    return file


def refused(file: Path, message: str) -> None:
    """By name, in one line, and by the class that opens sessions as well."""
    for check in (check_graph_file, Graph):
        with pytest.raises(GraphError, match=message) as caught:
            check(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.slow
def test_the_graphs_that_leave_are_taken(tmp_path):
    export_onnx(small_model(), tmp_path / "model.onnx")
    quantize_weights(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    quantize_activations(tmp_path / "model.onnx", tmp_path / "static.onnx", [ragged_speech(90, 60)])
    with_data = onnx.load(tmp_path / "model.onnx")
    onnx.save(
        with_data,
        tmp_path / "large.onnx",
        save_as_external_data=True,
        location="large.onnx.data",
        size_threshold=1024,
    )

    for name in ("model", "int8", "static", "large"):
        Graph(tmp_path / f"{name}.onnx")


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "inner/../../secret",
        "..",
        ".",
        "",
        "inner/data",
        "..\\secret",
        "missing",
        "link",
        "*/_ORT_MEM_ADDR_/*",
        "a\0b",
        "inner",
    ],
)
def test_weights_elsewhere_than_in_a_plain_file_beside_the_graph_are_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    (tmp_path / "g" / "inner").mkdir(parents=True)
    (tmp_path / "g" / "inner" / "data").write_bytes(SECRET.tobytes())
    (tmp_path / "g" / "link").symlink_to(tmp_path / "secret")
    external = {"location": location, "offset": "0", "length": "16"}
    file = graph_file(tmp_path / "g" / "g.onnx", weights=[tensor(external=external)])

    refused(file, "must have its weights in itself or in plain files beside it, but 'w'")


def test_weights_elsewhere_are_found_wherever_in_the_graph_they_are_named(tmp_path):
    outside = tensor(external={"location": "../secret"})
    constant = helper.make_node("Constant", [], ["w"], value=outside)
    branch = helper.make_graph([constant], "b", [], [])
    whether = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    function = helper.make_function("", "F", [], ["w"], [constant], [helper.make_opsetid("", 20)])
    sparse = onnx.SparseTensorProto(values=outside, dims=[4])
    places = {
        "node": {"nodes": [constant]},
        "branch": {"nodes": [whether]},
        "function": {"functions": [function]},
        "sparse": {"nodes": [helper.make_node("Constant", [], ["w"], sparse_value=sparse)]},
    }

    for name, words in places.items():
        refused(graph_file(tmp_path / f"{name}.onnx", **words), "must have its weights in itself")


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        ("custom.domain", "Run"),
        ("com.microsoft", "EPContext"),
        ("com.microsoft", "PythonOp"),
        ("ai.onnx.contrib", "Add"),
        ("com.microsoft.nchwc", "Conv"),
    ],
)
def test_operators_of_others_are_refused(domain, operator, tmp_path):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    file = graph_file(tmp_path / "g.onnx", nodes=[node], domain=domain)

    refused(file, f"{operator}.* of the domain '{domain}' instead")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dims": (4,), "raw": b"\0" * 15}, "needs 16 bytes and has 15 instead"),
        ({"dims": (10**9, 10**9)}, "needs 4000000000000000000 bytes and has 16 instead"),
        ({"dims": (-4,)}, "non-negative sizes"),
        ({"external": {"location": "data", "offset": "250"}}, "needs 16 bytes and has 6 instead"),
        ({"external": {"location": "data", "offset": "9" * 15}}, "has 0 instead"),
        ({"external": {"location": "data", "length": "8"}}, "needs 16 bytes and has 8 instead"),
        ({"external": {"location": "data", "offset": "-4"}}, "whole numbers, but 'w' states '-4'"),
        ({"external": {"location": "data", "length": "1e3"}}, "whole numbers"),
    ],
)
def test_sizes_that_are_not_there_are_refused(words, message, tmp_path):
    (tmp_path / "data").write_bytes(SECRET.tobytes())

    refused(graph_file(tmp_path / "g.onnx", weights=[tensor(**words)]), message)


@pytest.mark.parametrize("opset", [0, 999])
def test_an_opset_that_is_not_known_is_refused(opset, tmp_path):
    refused(graph_file(tmp_path / "g.onnx", opset=opset), f"but is of {opset} instead")


def test_a_graph_by_another_suffix_is_refused(tmp_path):
    """ONNX Runtime reads a file of another format by its suffix alone."""
    refused(graph_file(tmp_path / "g.ort"), "does not end in .onnx")
