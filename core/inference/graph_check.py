"""Checks of a graph file as data: refuses what a recognizer's graph does not need.

ONNX Runtime opens whatever files a graph names for its weights, and runs whatever operators it
knows. A graph of unknown origin is therefore checked before the runtime reads it: operators must be
of the standard's domain, or among the few of ONNX Runtime's own that 8-bit integers need; weights
must lie in the file, or in plain files of the same folder, in full.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.inference.graph_interface import GraphError

STANDARD_DOMAINS = ("", "ai.onnx")
RUNTIME_DOMAIN = "com.microsoft"
RUNTIME_OPERATORS = frozenset(
    {
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "FusedMatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QLinearAdd",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QuantizeLinear",
    }
)
"""Operators of ONNX Runtime's own domain that its quantizers write; others may open files."""
MOST_BYTES = 2**31
"""Largest size of a graph's own file, the limit of protobuf."""


def check_graph_file(file: Path) -> None:
    """Check that opening a graph runs no foreign code and reads no file outside its folder.

    The packages of the extra `export` must be installed.

    Args:
        file: a graph in ONNX's format, with its suffix: ONNX Runtime chooses the format by it.

    Raises:
        GraphError: in one line naming the file, what in it is refused, and why.
    """
    model = _read_graph(file)
    _check_opset(file, model)
    # Subgraphs of `If` and `Loop`, and functions, hold nodes and tensors of their own, at any
    # depth.
    for message in _messages(model):
        if message.DESCRIPTOR.name == "NodeProto":
            _check_operator(file, message)
        elif message.DESCRIPTOR.name == "TensorProto":
            _check_tensor(file, message)


def _read_graph(file: Path) -> Any:
    import onnx  # noqa: PLC0415  # an extra

    if file.suffix != ".onnx" or not file.is_file():
        is_there = "its name does not end in .onnx" if file.is_file() else "there is no such file"
        raise GraphError(f"`{file}` must be an ONNX graph, but {is_there}.")
    if (size := file.stat().st_size) > MOST_BYTES:
        raise GraphError(f"`{file}` must have at most 2 GiB, but has {size / 2**30:.1f} instead.")
    try:
        # Without external data: files that the graph names must be checked before any of them is
        # opened.
        return onnx.load(file, load_external_data=False)
    except Exception as error:  # noqa: BLE001  # errors of protobuf share no other class
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise GraphError(f"`{file}` must be an ONNX graph, but: {first}") from None


def _check_opset(file: Path, model: Any) -> None:
    from onnx.defs import onnx_opset_version  # noqa: PLC0415  # an extra

    newest = onnx_opset_version()
    versions = [opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS]
    if not versions:
        raise GraphError(f"`{file}` must be an ONNX graph, but states no opset.")
    if not all(1 <= version <= newest for version in versions):
        raise GraphError(
            f"`{file}` must be of an opset from 1 to {newest}, the newest that the installed"
            f" package `onnx` knows, but is of {', '.join(map(str, versions))} instead."
        )


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message and all messages in it: subgraphs, functions and attributes included."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            # A field is one message or a list of them.
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from _messages(inner)


def _check_operator(file: Path, node: Any) -> None:
    is_allowed = node.domain in STANDARD_DOMAINS or (
        node.domain == RUNTIME_DOMAIN and node.op_type in RUNTIME_OPERATORS
    )
    if not is_allowed:
        raise GraphError(
            f"`{file}` must have operators of the ONNX standard alone, but has"
            f" {node.op_type[:80]!r} of the domain {node.domain[:80]!r} instead."
        )


def _check_tensor(file: Path, tensor: Any) -> None:
    """Check that a tensor's bytes are in the graph or in a plain file of its folder, all of them.

    The lengths of tensors whose values are listed one by one are the listing's own.
    """
    name = tensor.name[:80]
    if any(size < 0 for size in tensor.dims):
        raise GraphError(f"`{file}` must have tensors of non-negative sizes, but {name!r} has not.")
    if tensor.data_location != tensor.EXTERNAL:
        # Shape and bytes are stated apart: a tensor of shape (1000, 1000) with 8 bytes must not
        # come to the runtime.
        if tensor.HasField("raw_data"):
            _check_length(file, name, _needed_bytes(tensor), len(tensor.raw_data))
        return
    stated = {entry.key: entry.value for entry in tensor.external_data}
    data = _data_file(file, name, stated.get("location", ""))
    begin = _whole_number(file, name, stated.get("offset", "0"))
    # Bytes from the tensor's offset to the end of the file. Without a stated length they all count.
    room = max(0, data.stat().st_size - begin)
    length = _whole_number(file, name, stated["length"]) if "length" in stated else room
    _check_length(file, name, _needed_bytes(tensor), min(length, room))


def _data_file(file: Path, name: str, location: str) -> Path:
    folder = file.resolve().parent
    data = folder / location
    # The name is checked first: no path outside the folder is touched.
    is_name = location not in ("", ".", "..") and not set(location) & set("/\\\0")
    # `resolve` follows links: one in the folder that leads out of it is refused as well.
    if not is_name or data.resolve().parent != folder or not data.is_file():
        raise GraphError(
            f"`{file}` must have its weights in itself or in plain files beside it, but {name!r}"
            f" is in {location[:200]!r} instead."
        )
    return data


def _whole_number(file: Path, name: str, text: str) -> int:
    # `isdigit` alone also accepts such characters as a superscript 2, on which `int` raises.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise GraphError(
            f"`{file}` must state bytes as whole numbers, but {name!r} states {text[:80]!r}."
        )
    return int(text)


def _needed_bytes(tensor: Any) -> int:
    import onnx  # noqa: PLC0415  # an extra

    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return 0  # of an unknown type: the runtime refuses it by name
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    # 3 numbers of 4 bits take 2 bytes: rounded up.
    bits = _PACKED_BITS.get(kind, 8 * dtype.itemsize)
    return -(-math.prod(tensor.dims) * bits // 8)


_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Bits of types of which a byte holds several."""


def _check_length(file: Path, name: str, needed: int, there: int) -> None:
    if needed > there:
        raise GraphError(
            f"`{file}` must have all of its weights, but {name!r} needs {needed} bytes and has"
            f" {there} instead."
        )
