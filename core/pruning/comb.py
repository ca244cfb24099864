"""Which units any model has, found by what dies with them: no declaration, no tracing of names.

Shut one input of a module that consumes features, and send a random projection of the model's
output back: every row and column of a parameter whose gradient has become 0 throughout belonged to
that input alone. So the units of a model are found that was never seen before. This is our reading
of the first step of Comb, Prune, Distill (arXiv 2408.03046).

Rules: in evaluation mode, so that no batch ties units together; an input that kills no row of a
matrix is of the residual stream, and is nobody's unit; a bias follows the rows of its weight, as a
key's has no gradient at all (softmax does not see it).

Shapes: I inputs of a consumer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Consumer = nn.Linear | nn.Conv1d | nn.Conv2d
Forward = Callable[[], Tensor]
"""Runs the model on some example; deterministic."""
Entry = tuple[str, int, int]
"""A row or column: the parameter's name, the dimension, the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comb:
    """Units that were found at the input of one module."""

    consumer: str
    """The module's name; its inputs are what a gate multiplies."""
    block: int
    """Adjacent inputs that make one unit: 1, or the width of a head."""
    units: tuple[frozenset[Entry], ...]
    """Of each unit, all rows and columns that are its own, the consumer's columns among them."""


def combed(
    model: nn.Module, forward: Forward, *, consumers: Sequence[str] | None = None
) -> list[Comb]:
    """The units of a model, by consumer; those of the residual stream are none.

    Args:
        model: any; it is left as it was.
        forward: runs it on an example that is neither zero nor symmetric.
        consumers: the names of modules to look at; by default all linear and convolution layers.
    """
    was_training = model.training
    model.eval()
    names = [n for n, m in model.named_modules() if isinstance(m, Consumer)]
    try:
        alive = _alive(model, forward)
        found = (_comb(model, forward, name, alive) for name in consumers or names)
        return [comb for comb in found if comb is not None]
    finally:
        model.train(was_training)


def _comb(model: nn.Module, forward: Forward, name: str, alive: frozenset[Entry]) -> Comb | None:
    module = model.get_submodule(name)
    assert isinstance(module, Consumer)
    if getattr(module, "groups", 1) != 1:
        return None  # a channel of its own is a part of a unit, not its consumer
    size = module.weight.shape[1]

    def dead(first: int, count: int) -> frozenset[Entry]:
        with _shut(module, first, count):
            return alive - _alive(model, forward)

    single = [dead(i, 1) for i in range(size)]
    block = _block(dead, single)
    units = [dead(i, block) for i in range(0, size, block)] if block > 1 else single
    if not all(_kills_rows(model, unit) for unit in units):
        return None
    return Comb(consumer=name, block=block, units=tuple(_with_biases(model, u) for u in units))


def _block(dead: Callable[[int, int], frozenset[Entry]], single: Sequence[frozenset[Entry]]) -> int:
    """The fewest adjacent inputs that together kill more than each of them alone."""
    for block in (b for b in range(2, len(single)) if len(single) % b == 0):
        if dead(0, block) - frozenset().union(*single[:block]):
            return block
    return 1


def _alive(model: nn.Module, forward: Forward) -> frozenset[Entry]:
    """Rows and columns of parameters that have any gradient."""
    parameters = dict(model.named_parameters())
    flags = {name: p.requires_grad for name, p in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_()
    output = forward()
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    value = (output * direction.to(output)).sum()
    gradients = torch.autograd.grad(
        value, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    for name, parameter in parameters.items():
        parameter.requires_grad_(flags[name])
    return frozenset(
        (name, dim, place)
        for name, gradient in zip(parameters, gradients, strict=True)
        for dim in range(min(gradient.dim(), 2))
        for place in gradient.transpose(0, dim)
        .reshape(gradient.shape[dim], -1)
        .any(1)
        .nonzero()
        .flatten()
        .tolist()
    )


@contextmanager
def _shut(module: nn.Module, first: int, count: int) -> Iterator[None]:
    """Some inputs of a module are 0: of a linear layer features, of a convolution channels."""
    dim = -1 if isinstance(module, nn.Linear) else 1

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gate = torch.ones(inputs[0].shape[dim], device=inputs[0].device, dtype=inputs[0].dtype)
        gate[first : first + count] = 0
        shape = [1] * inputs[0].dim()
        shape[dim] = -1
        return (inputs[0] * gate.view(shape), *inputs[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _kills_rows(model: nn.Module, unit: frozenset[Entry]) -> bool:
    """Whether some matrix makes this unit and nothing else."""
    parameters = dict(model.named_parameters())
    return any(dim == 0 and parameters[name].dim() > 1 for name, dim, _ in unit)


def _with_biases(model: nn.Module, unit: frozenset[Entry]) -> frozenset[Entry]:
    """The unit, with the entries of biases whose weights' rows are its own."""
    there = dict(model.named_parameters())
    beside = {
        (bias, 0, place)
        for name, dim, place in unit
        if dim == 0
        and (bias := f"{name.removesuffix('weight')}bias") in there
        and len(there[bias]) == len(there[name])
    }
    return unit | beside
