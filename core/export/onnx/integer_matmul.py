"""Matrix products of a graph with 8-bit weights, whose inputs are quantized at run time.

Per output the weights have one scale, absmax / 127, and 0 stays 0; x is quantized by ONNX's
DynamicQuantizeLinear, with a scale and a zero point z for the whole tensor. Then, in integers,

    x W = scale_x scale_W (x_q - z) W_q.

Operators and numbers are exactly those of ONNX Runtime's own dynamic quantization, which however
holds the whole model several times in memory.

Shapes: K inputs, N outputs of a product.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

LARGEST = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A node that multiplies its input by a constant matrix."""

    node: Any
    is_transposed: bool
    """Whether the constant is (N, K) instead of (K, N)."""

    @property
    def weight(self) -> str:
        return str(self.node.input[1])


def find_matmuls(model: Any, names: Collection[str]) -> dict[str, Product]:
    """Return the products that can be computed in integers, by the names of their constants.

    Args:
        model: a graph.
        names: of the nodes to consider.
    """
    # Gemm is alpha A B + beta C: only the plain product, without a transposed A, can be replaced. A
    # constant that several nodes read must stay in floats for the others.
    uses = Counter(name for node in model.graph.node for name in node.input)
    products = {}
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        is_plain = all(
            attributes[name].f == 1.0 if name in ("alpha", "beta") else not attributes[name].i
            for name in ("alpha", "beta", "transA")
            if name in attributes
        )
        if node.name in names and is_plain and uses[node.input[1]] == 1:
            is_transposed = "transB" in attributes and bool(attributes["transB"].i)
            products[str(node.input[1])] = Product(node=node, is_transposed=is_transposed)
    return products


def replace_products(model: Any, products: Mapping[str, Product]) -> None:
    """Rewrite these nodes in place; `tensor_names` names their new constants."""
    names = {product.node.name for product in products.values()}
    quantized: set[str] = set()
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes += _integer_nodes(node, quantized) if node.name in names else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def tensor_names(weight: str) -> tuple[str, str, str]:
    """Return the names of the integers, their scales and their zero points."""
    return f"{weight}_quantized", f"{weight}_scale", f"{weight}_zero_point"


def quantized_weight(
    weight: Float32[np.ndarray, "inputs outputs"],
) -> tuple[Int8[np.ndarray, "inputs outputs"], Float32[np.ndarray, " outputs"]]:
    """Return integers, and the scale of each output.

    Example: the largest absolute weight of an output is 2.54, so its scale is 0.02, and a weight of
    1.0 becomes 50.
    """
    absmax = np.maximum(weight.max(0), -weight.min(0))
    # In double precision, as in ONNX Runtime: another rounding would give another scale.
    scale = absmax.astype(np.float64) / LARGEST
    # An output whose weights are all 0 would have the scale 0: it gets 1.
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    # The range of int8 is -128 to 127; with absmax / 127 no weight needs -128.
    integers = np.clip((weight / scale).round(), -LARGEST - 1, LARGEST)
    return integers.astype(np.int8), scale


def _integer_nodes(node: Any, quantized: set[str]) -> Iterator[Any]:
    """Yield the nodes that replace one; an input of several products is quantized once."""
    from onnx import TensorProto, helper  # noqa: PLC0415  # an extra

    x, weight, *bias = node.input
    x_names = [f"{x}_quantized", f"{x}_scale", f"{x}_zero_point"]
    integers, scale, zero_point = tensor_names(weight)
    (out,), make = node.output, helper.make_node
    product = f"{out}_product"
    if x not in quantized:
        quantized.add(x)
        yield make("DynamicQuantizeLinear", [x], x_names, f"{x}_QuantizeLinear")
    # (x_q - z) W_q in 32-bit integers, then floats, times scale_x scale_W, plus the bias.
    sums, floats, scales = f"{out}_sums", f"{out}_floats", f"{out}_scales"
    inputs = [x_names[0], integers, x_names[2], zero_point]
    yield make("MatMulInteger", inputs, [sums], f"{node.name}_quant")
    yield make("Cast", [sums], [floats], f"{node.name}_cast", to=TensorProto.FLOAT)
    yield make("Mul", [x_names[1], scale], [scales], f"{node.name}_scales")
    yield make("Mul", [floats, scales], [product if bias else out], f"{node.name}_scaled")
    if bias:
        yield make("Add", [product, *bias], [out], f"{node.name}_bias")
