"""A graph in 8-bit integers, by the packages of the extra `export`.

Dynamic: weights are integers, and activations are quantized at run time. Static: the range of each
activation is measured on speech beforehand. Either way only matrix products with constants are
quantized, with a scale for each output, and the front end stays in floats: in ONNX Runtime a
convolution of 8-bit integers is half as fast as one of floats, and the front end's few products
have inputs of such a range that quantization costs words.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from core.export.onnx.conversion import LARGEST_INLINE, graph_folder
from core.export.onnx.graph_weights import GraphWriter, open_graph, read_tensor
from core.export.onnx.integer_matmul import (
    find_matmuls,
    quantized_weight,
    replace_products,
    tensor_names,
)
from core.inference.graph_interface import INPUTS, OUTPUTS, needs_extra
from core.inference.onnx_session import Graph

Speech = tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]
"""Features and their lengths."""

PRODUCTS = ("MatMul", "Gemm")
FLOAT_BYTES = 4
_BEYOND = re.compile(r"\b(blocks|head|projection|step|joiner)\.")
"""Matches the names of weights outside the front end."""


def quantize_weights(
    graph: Path,
    file: Path,
    *,
    ends: Sequence[str] = INPUTS + OUTPUTS,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Write the graph with 8-bit weights, tensor by tensor; it appears whole.

    Args:
        graph: written by `write_graph`.
        file: the path to write.
        ends: names of the graph's inputs and outputs.
        inline_bytes: the most bytes of weights in its own file; more go to a second file.

    Raises:
        ExportError: if the extra `export` is not installed.
        GraphError: if the graph is missing or damaged.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    model = open_graph(graph, ends)
    # This list holds them: `GraphWriter` empties that of the graph.
    constants = list(model.graph.initializer)
    products = find_matmuls(model, products_beyond_frontend(model))
    replace_products(model, products)
    del model.graph.value_info[:]  # of tensors that no longer exist
    sizes = (
        # Scales and zero points are left out: a few bytes for each output.
        math.prod(array.dims) * (1 if array.name in products else FLOAT_BYTES)
        for array in constants
    )
    is_outside = sum(sizes) > inline_bytes
    with (
        graph_folder(file) as folder,
        GraphWriter(model, folder / file.name, is_outside=is_outside) as writer,
    ):
        for constant in constants:
            values = read_tensor(constant, graph.parent)
            if constant.name not in products:
                writer.add(constant.name, values)
                continue
            is_transposed = products[constant.name].is_transposed
            # A transposed constant is (N, K); the integer product takes (K, N).
            integers, scale = quantized_weight(values.T if is_transposed else values)
            zeros = np.zeros(len(scale), np.int8)
            for name, array in zip(
                tensor_names(constant.name), (integers, scale, zeros), strict=True
            ):
                writer.add(name, array)


def quantize_graphs(
    folder: Path, ends: Mapping[str, Sequence[str]], *, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write `NAME.int8.onnx` beside each `NAME.onnx`.

    Args:
        folder: of the graphs.
        ends: inputs and outputs of each graph, by its name.
        inline_bytes: the most bytes of weights in a graph's own file.

    Raises:
        ExportError, GraphError, OSError: as `quantize_weights`.
    """
    for name, names in ends.items():
        graph, integers = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
        quantize_weights(graph, integers, ends=names, inline_bytes=inline_bytes)


def quantize_activations(graph: Path, file: Path, speech: Iterable[Speech]) -> None:
    """Write the graph with 8-bit weights and activations; it appears whole.

    Args:
        graph: written by `export_onnx`.
        file: the path to write.
        speech: a few typical batches: values beyond their range are clipped.

    Raises:
        ExportError: if the extra `export` is not installed.
        GraphError: if the graph is missing or damaged.
        ValueError: if there is no speech.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415  # an extra

    batches = list(speech)
    if not batches:
        raise ValueError("`speech` must hold a batch or more to measure ranges on, but is empty")
    model = _prepare_graph(graph)
    tmp_path = _temporary_file(file)
    quantize_static(
        model,
        tmp_path,
        _Batches(batches),
        nodes_to_quantize=products_beyond_frontend(model),
        per_channel=True,
        activation_type=QuantType.QUInt8,  # with signed weights: four products an instruction
        weight_type=QuantType.QInt8,
        # Outputs stay in floats, which norms, softmax and sums need.
        extra_options={"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
    )
    tmp_path.replace(file)


class _Batches:
    """Speech for the quantizer: one feed at a time, None at the end."""

    def __init__(self, speech: Iterable[Speech]) -> None:
        self.feeds = (
            {"features": features.numpy(), "num_frames": num_frames.numpy()}
            for features, num_frames in speech
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _prepare_graph(graph: Path) -> Any:
    """Return the graph marked as preprocessed: the runtime optimizes it when it is loaded.

    Raises:
        GraphError: naming the file, if it is missing or no graph.
    """
    import onnx  # noqa: PLC0415  # an extra
    from onnxruntime.quantization.quant_utils import (  # noqa: PLC0415
        add_pre_process_metadata,
    )

    Graph(graph)  # raises if it is no graph
    model = onnx.load(graph)
    add_pre_process_metadata(model)
    del model.graph.value_info[:]  # the quantizer transposes weights, and infers shapes again
    return model


def products_beyond_frontend(model: Any) -> list[str]:
    """Return the names of matrix products with a constant second factor beyond the front end."""
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [
        node
        for node in model.graph.node  # in the order of computation
        if node.op_type in PRODUCTS
        and node.input[0] not in constants
        and node.input[1] in constants
    ]
    # By order, not by name: the exporter calls some weights of the front end `val_115` and the like
    # (pointwise convolutions of `dw_striding`). What comes before the first weight of a block is
    # the front end.
    beyond = dropwhile(lambda node: _BEYOND.search(node.input[1]) is None, products)
    return [node.name for node in beyond]


def _temporary_file(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")
