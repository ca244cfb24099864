"""Which units any model has, found by what dies with them: no declaration, no tracing of names.

Let one input of a module that consumes features have no weight, and send a random projection of the
model's output back: every row and column of a parameter whose gradient has become 0 throughout
belonged to that input alone. So the units of a model are found that was never seen before. This is
our reading of the first step of Comb, Prune, Distill (arXiv 2408.03046).

Rules: in evaluation mode, so that no batch ties units together; in double precision, and of several
models of the same make with other weights, as what an activation happens to shut in one of them is
open in another; an input that kills no row of a
matrix is of the residual stream, and is nobody's unit; a bias follows the rows of its weight, as a
key's has no gradient at all (softmax does not see it).

`without` cuts units out of any model. What a module has been told of its sizes beside its weights
(a number of heads) it cannot know: that is the bringer's to say anew.

Shapes: I inputs of a consumer.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONSUMERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NOTHING = 1e-11
"""Of the largest gradient, what rounding leaves where there is none."""
Forward = Callable[[nn.Module], Tensor]
"""Runs a model on some example in double precision; deterministic."""
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
    model: nn.Module, forward: Forward, *, consumers: Sequence[str] | None = None, draws: int = 3
) -> list[Comb]:
    """The units of a model, by consumer; those of the residual stream are none.

    One pass forward and back a unit and draw: of a large model, comb a small one of the same make.

    Args:
        model: any; it is left as it was.
        forward: runs one of its make on an example that is neither zero nor symmetric.
        consumers: the names of modules to look at; by default all linear and convolution layers.
        draws: models with other weights whose word together counts.
    """
    twins = [_drawn(model, seed) for seed in range(draws)]
    names = [n for n, m in model.named_modules() if isinstance(m, CONSUMERS)]
    alive = _alive(twins, forward)
    found = (_comb(twins, forward, name, alive) for name in consumers or names)
    return [comb for comb in found if comb is not None]


def _drawn(model: nn.Module, seed: int) -> nn.Module:
    """One of the same make with weights of its own, biases above 0: little is shut by chance."""
    twin = copy.deepcopy(model).double().eval().requires_grad_()
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.dim() > 1:
                values = (
                    torch.randn(parameter.shape, generator=chance) / parameter[0].numel() ** 0.5
                )
            else:
                values = 0.2 + 0.6 * torch.rand(parameter.shape, generator=chance)
            parameter.copy_(values)
    return twin


def without(model: nn.Module, units: Iterable[frozenset[Entry]]) -> nn.Module:
    """A copy of a model without these units, smaller and dense."""
    small = copy.deepcopy(model)
    gone: dict[str, dict[int, set[int]]] = {}
    for name, dim, place in frozenset().union(*units):
        gone.setdefault(name, {}).setdefault(dim, set()).add(place)
    for name, by_dim in gone.items():
        owner, leaf = name.rpartition(".")[::2]
        module = small.get_submodule(owner)
        for dim, places in by_dim.items():
            _narrow(module, leaf, dim, places)
            if isinstance(module, NORMS) and leaf == "weight":
                for statistic in ("running_mean", "running_var"):
                    _narrow(module, statistic, dim, places)
    for module in small.modules():
        _measure(module)
    return small


def _narrow(module: nn.Module, leaf: str, dim: int, gone: set[int]) -> None:
    tensor = getattr(module, leaf)
    kept = [place for place in range(tensor.shape[dim]) if place not in gone]
    rest = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))
    setattr(module, leaf, nn.Parameter(rest) if isinstance(tensor, nn.Parameter) else rest)


def _measure(module: nn.Module) -> None:
    """Let a module say the sizes that its weights have."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        is_depthwise = module.groups == module.in_channels > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if is_depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, NORMS):
        module.num_features = len(module.weight)


def _comb(
    twins: Sequence[nn.Module], forward: Forward, name: str, alive: frozenset[Entry]
) -> Comb | None:
    module = twins[0].get_submodule(name)
    assert isinstance(module, CONSUMERS)
    is_plain = "weight" in dict(module.named_parameters(recurse=False))
    size = module.weight.shape[1]
    # A channel of its own is a part of a unit, not its consumer; of one input nothing can be left.
    if not is_plain or getattr(module, "groups", 1) != 1 or size == 1:
        return None

    def dead(first: int, count: int) -> frozenset[Entry]:
        columns = {(f"{name}.weight", 1, place) for place in range(first, first + count)}
        with _shut(twins, name, first, count):
            return (alive - _alive(twins, forward)) | columns

    single = [dead(i, 1) for i in range(size)]
    block = _block(dead, single)
    units = [dead(i, block) for i in range(0, size, block)] if block > 1 else single
    if not all(_kills_rows(twins[0], unit) for unit in units):
        return None
    return Comb(consumer=name, block=block, units=tuple(_with_biases(twins[0], u) for u in units))


def _block(dead: Callable[[int, int], frozenset[Entry]], single: Sequence[frozenset[Entry]]) -> int:
    """The fewest adjacent inputs that together kill what none of them kills alone."""
    for block in (b for b in range(2, len(single)) if len(single) % b == 0):
        more = (
            dead(first, block).difference(*single[first : first + block])
            for first in range(0, len(single), block)
        )
        if _are_alike(more):
            return block
    return 1


def _are_alike(parts: Iterable[frozenset[Entry]]) -> bool:
    """Whether each is something, has as much of every tensor as the others, and shares nothing.

    So heads gain. Where an activation happens to die with two of its inputs, others do not.
    """
    profiles: set[frozenset[tuple[tuple[str, int], int]]] = set()
    seen: set[Entry] = set()
    for part in parts:
        profiles.add(frozenset(Counter((name, dim) for name, dim, _ in part).items()))
        if not part or len(profiles) > 1 or not seen.isdisjoint(part):
            return False
        seen |= part
    return True


def _alive(twins: Sequence[nn.Module], forward: Forward) -> frozenset[Entry]:
    """Rows and columns of parameters that have any gradient in any of the models."""
    return frozenset(entry for twin in twins for entry in _felt(twin, forward))


def _felt(model: nn.Module, forward: Forward) -> Iterator[Entry]:
    parameters = dict(model.named_parameters())
    output = forward(model)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(
        (output * direction.to(output)).sum(),
        list(parameters.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    least = NOTHING * max(float(gradient.abs().max()) for gradient in gradients)
    for name, gradient in zip(parameters, gradients, strict=True):
        for dim in range(min(gradient.dim(), 2)):
            slices = (
                gradient.transpose(0, dim).flatten(1) if gradient.dim() > 1 else gradient[:, None]
            )
            for place in (slices.abs() > least).any(1).nonzero().flatten().tolist():
                yield name, dim, place


@contextmanager
def _shut(twins: Sequence[nn.Module], name: str, first: int, count: int) -> Iterator[None]:
    """Some inputs of a module have no weight, whoever reads it: the module or a function."""
    places = slice(first, first + count)
    weights = [twin.get_parameter(f"{name}.weight") for twin in twins]
    before = [weight[:, places].detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight[:, places] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight[:, places] = values


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
