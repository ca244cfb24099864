"""Low rank: weight matrices as products of two factors from singular values, and back.

Shapes: M inputs, N outputs, K directions of a linear layer.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from core.conformer.factored import Factored
from core.conformer.model import Conformer
from core.conformer.shape import Shape


def factorize(model: Conformer) -> Conformer:
    """Return a model of the same function with its blocks' linear layers as full-rank factors."""
    tensors = dict(model.state_dict())
    ranks = dict(model.shape.ranks)
    for name in model.shape.linears():
        if name in ranks:
            continue
        reduce, expand = split_matrix(tensors.pop(f"{name}.weight"))
        tensors |= {f"{name}.reduce.weight": reduce, f"{name}.expand.weight": expand}
        if f"{name}.bias" in tensors:
            tensors[f"{name}.expand.bias"] = tensors.pop(f"{name}.bias")
        ranks[name] = len(reduce)
    return build_model(replace(model.shape, ranks=ranks), tensors, is_training=model.training)


def split_matrix(
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Float[Tensor, "directions inputs"], Float[Tensor, "outputs directions"]]:
    """Return R and E with E R = W, directions sorted by decreasing singular value.

    Each factor takes the square root of the values, so that both learn at similar rates.
    """
    # W = U S V with U (N, K), S (K,) and V (K, M). Then R = sqrt(S) V, and E = U sqrt(S).
    left_vectors, values, right_vectors = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values.sqrt()
    return (root[:, None] * right_vectors).to(weight), (left_vectors * root).to(weight)


def multiply_factors(model: Conformer, *, everywhere: bool = False) -> Conformer:
    """Return the same function, with one matrix wherever the two factors hold no fewer entries.

    Args:
        model: a model with factored layers.
        everywhere: multiply factors out also where they hold fewer entries.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Factored)}
    # 100 inputs and 50 outputs: rank 33 holds 33 * 150 = 4,950 entries and stays, rank 34 does not.
    dense = [name for name, layer in layers.items() if everywhere or not _is_less(layer)]
    if not dense:
        return model
    tensors = dict(model.state_dict())
    for name in dense:
        reduce = tensors.pop(f"{name}.reduce.weight")
        expand = tensors.pop(f"{name}.expand.weight")
        tensors[f"{name}.weight"] = (expand.double() @ reduce.double()).to(expand)
        if f"{name}.expand.bias" in tensors:
            tensors[f"{name}.bias"] = tensors.pop(f"{name}.expand.bias")
    ranks = {name: rank for name, rank in model.shape.ranks.items() if name not in dense}
    return build_model(replace(model.shape, ranks=ranks), tensors, is_training=model.training)


def build_model(
    shape: Shape, tensors: Mapping[str, Tensor], *, is_training: bool, is_copied: bool = True
) -> Conformer:
    """Return a new model of this shape with these tensors.

    Args:
        shape: of the model.
        tensors: its parameters and buffers by name.
        is_training: whether it is put into training mode.
        is_copied: whether tensors are copied; False if nothing else uses them.
    """
    # On `meta` no weights are allocated and none are drawn; `assign` below puts the tensors in.
    with torch.device("meta"):
        model = Conformer(shape)
    own = {
        name: tensor.detach().clone() if is_copied else tensor.detach()
        for name, tensor in tensors.items()
    }
    model.load_state_dict(own, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()  # an assigned tensor keeps its own flag
    return model.train(is_training)


def _is_less(layer: Factored) -> bool:
    m, n, k = layer.in_features, layer.out_features, layer.reduce.out_features
    return k * (m + n) < m * n
