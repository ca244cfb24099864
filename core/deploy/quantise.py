"""A graph in 8-bit integers, by the packages of the extra `export`.

Dynamic: weights are integers, activations become integers as they come. Static: the range of each
activation is measured on speech beforehand, so that none is left to find at run time. Either way
only matrix products with constants are quantised, with a scale for each output, and the front end
is left in floats: in ONNX Runtime a convolution of 8-bit integers is half as fast as one of floats,
and the front end's products are few, but their inputs span a range in which words are lost.
"""

import os
import re
from collections.abc import Iterable
from itertools import dropwhile
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from core.deploy.onnx import needs_extra
from core.deploy.runtime import Graph

Speech = tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]
"""Features and their lengths."""

PRODUCTS = ("MatMul", "Gemm")
_BEYOND = re.compile(r"\b(blocks|head)\.")
"""What the names have of weights that are not the front end's."""


def quantise_dynamic(graph: Path, file: Path) -> None:
    """Write the graph with 8-bit weights beside, then rename.

    Raises:
        ExportError: if the extra `export` is not installed.
        GraphError: if the graph is missing or none.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415  # an extra
    from onnxruntime.quantization.onnx_model import ONNXModel  # noqa: PLC0415

    model = _prepared(graph)
    ONNXModel(model).replace_gemm_with_matmul()  # as the quantiser does, under other names
    beside = _beside(file)
    quantize_dynamic(
        model,
        beside,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_quantize=_products(model),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    beside.replace(file)


def quantise_static(graph: Path, file: Path, speech: Iterable[Speech]) -> None:
    """Write the graph with 8-bit weights and activations beside, then rename.

    Args:
        graph: what `export_onnx` wrote.
        file: what is written.
        speech: a few batches as the model will meet them: nothing beyond their range is told apart.

    Raises:
        ExportError: if the extra `export` is not installed.
        GraphError: if the graph is missing or none.
        ValueError: if there is no speech.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    from onnxruntime.quantization import QuantType, quantize_static  # noqa: PLC0415  # an extra

    batches = list(speech)
    if not batches:
        raise ValueError("`speech` must hold a batch or more to measure ranges on, but is empty")
    model = _prepared(graph)
    beside = _beside(file)
    quantize_static(
        model,
        beside,
        _Batches(batches),
        nodes_to_quantize=_products(model),
        per_channel=True,
        activation_type=QuantType.QUInt8,  # with signed weights one instruction multiplies four
        weight_type=QuantType.QInt8,
        # What comes out stays in floats: norms, softmax and sums take nothing else.
        extra_options={"OpTypesToExcludeOutputQuantization": list(PRODUCTS)},
    )
    beside.replace(file)


class _Batches:
    """Speech as the quantiser asks for it: one feed at a time, None at the end."""

    def __init__(self, speech: Iterable[Speech]) -> None:
        self.feeds = (
            {"features": features.numpy(), "num_frames": num_frames.numpy()}
            for features, num_frames in speech
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _prepared(graph: Path) -> Any:
    """The graph, said to be ready: it is small enough that the runtime optimises it when loading.

    Raises:
        GraphError: naming the file, if it is missing or no graph.
    """
    import onnx  # noqa: PLC0415  # an extra
    from onnxruntime.quantization.quant_utils import (  # noqa: PLC0415
        add_pre_process_metadata,
    )

    Graph(graph)  # refuses what is none
    model = onnx.load(graph)
    add_pre_process_metadata(model)
    del model.graph.value_info[:]  # the quantiser transposes weights, and infers shapes again
    return model


def _products(model: Any) -> list[str]:
    """The matrix products beyond the front end whose second factor alone is constant, by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [
        node
        for node in model.graph.node  # in the order of their computing
        if node.op_type in PRODUCTS
        and node.input[0] not in constants
        and node.input[1] in constants
    ]
    beyond = dropwhile(lambda node: _BEYOND.search(node.input[1]) is None, products)
    return [node.name for node in beyond]


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")
