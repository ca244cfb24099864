"""An oracle for tests: the prunable units of any model, found from its gradients alone.

If one input of a consumer has no weight, and a random projection of the model's output is sent
back, then every row and column of a parameter whose gradient has become 0 throughout belonged to
that input alone. So units are found in models that declare none. This is our reading of the first
step of Comb, Prune, Distill (arXiv 2408.03046).

Rules:

- Evaluation mode, so that no batch ties units together.
- Double precision, and several models of the same shape with other weights: what an activation
  happens to close in one of them is open in another.
- An input that closes no row of a matrix lies in the residual stream, and is no unit.
- A bias follows the rows of its weight: a key's has no gradient at all, as softmax ignores it.

`remove_units` cuts units out of any model. Sizes that a module stores beside its weights, such as a
number of heads, must be set by the caller.

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
ROUNDING = 1e-11
"""The share of the largest gradient that rounding can leave where there is none."""
Forward = Callable[[nn.Module], Tensor]
"""Runs a model on some example in double precision; deterministic."""
Entry = tuple[str, int, int]
"""A row or column: the parameter's name, the dimension, the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoupledUnits:
    """The units at the input of one consumer."""

    consumer: str
    """The module's name; its inputs are what a gate multiplies."""
    block: int
    """Adjacent inputs that make one unit: 1, or the width of a head."""
    units: tuple[frozenset[Entry], ...]
    """All rows and columns of each unit, the consumer's columns among them."""


def find_coupled_units(
    model: nn.Module, forward: Forward, *, consumers: Sequence[str] | None = None, draws: int = 3
) -> list[CoupledUnits]:
    """Return the units of a model, by consumer; those of the residual stream are left out.

    It takes one pass forward and back for each unit and draw: instead of a large model, examine a
    small one of the same kind.

    Args:
        model: any model; it is not changed.
        forward: runs such a model on an example that is neither zero nor symmetric.
        consumers: names of the modules to examine; by default all linear and convolution layers.
        draws: how many models with other weights are examined together.
    """
    twins = [_random_twin(model, seed) for seed in range(draws)]
    names = [n for n, m in model.named_modules() if isinstance(m, CONSUMERS)]
    active = _active_entries(twins, forward)
    by_consumer = (_units_of(twins, forward, name, active) for name in consumers or names)
    return [units for units in by_consumer if units is not None]


def _random_twin(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same shape with other weights; biases above 0 leave most units open."""
    twin = copy.deepcopy(model).double().eval().requires_grad_()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.dim() > 1:
                values = torch.randn(parameter.shape, generator=rng) / parameter[0].numel() ** 0.5
            else:
                values = 0.2 + 0.6 * torch.rand(parameter.shape, generator=rng)
            parameter.copy_(values)
    return twin


def remove_units(model: nn.Module, units: Iterable[frozenset[Entry]]) -> nn.Module:
    """Return a copy of a model without these units, smaller and dense."""
    small = copy.deepcopy(model)
    removed: dict[str, dict[int, set[int]]] = {}
    for name, dim, index in frozenset().union(*units):
        removed.setdefault(name, {}).setdefault(dim, set()).add(index)
    for name, by_dim in removed.items():
        owner, leaf = name.rpartition(".")[::2]
        module = small.get_submodule(owner)
        for dim, indices in by_dim.items():
            _narrow(module, leaf, dim, indices)
            if isinstance(module, NORMS) and leaf == "weight":
                for statistic in ("running_mean", "running_var"):
                    _narrow(module, statistic, dim, indices)
    for module in small.modules():
        _update_sizes(module)
    return small


def _narrow(module: nn.Module, leaf: str, dim: int, removed: set[int]) -> None:
    tensor = getattr(module, leaf)
    remaining = [index for index in range(tensor.shape[dim]) if index not in removed]
    rest = tensor.detach().index_select(dim, torch.tensor(remaining, device=tensor.device))
    setattr(module, leaf, nn.Parameter(rest) if isinstance(tensor, nn.Parameter) else rest)


def _update_sizes(module: nn.Module) -> None:
    """Set a module's size attributes to the sizes that its weights have."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        is_depthwise = module.groups == module.in_channels > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if is_depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, NORMS):
        module.num_features = len(module.weight)


def _units_of(
    twins: Sequence[nn.Module], forward: Forward, name: str, active: frozenset[Entry]
) -> CoupledUnits | None:
    module = twins[0].get_submodule(name)
    assert isinstance(module, CONSUMERS)
    is_plain = "weight" in dict(module.named_parameters(recurse=False))
    size = module.weight.shape[1]
    # A depthwise channel is a part of a unit, not its consumer; a single input cannot be removed.
    if not is_plain or getattr(module, "groups", 1) != 1 or size == 1:
        return None

    def inactive(first: int, count: int) -> frozenset[Entry]:
        columns = {(f"{name}.weight", 1, index) for index in range(first, first + count)}
        with _zero_columns(twins, name, first, count):
            return (active - _active_entries(twins, forward)) | columns

    single = [inactive(i, 1) for i in range(size)]
    block = _block_width(inactive, single)
    units = [inactive(i, block) for i in range(0, size, block)] if block > 1 else single
    if not all(_closes_rows(twins[0], unit) for unit in units):
        return None
    with_biases = tuple(_with_biases(twins[0], unit) for unit in units)
    return CoupledUnits(consumer=name, block=block, units=with_biases)


def _block_width(
    inactive: Callable[[int, int], frozenset[Entry]], single: Sequence[frozenset[Entry]]
) -> int:
    """Return the fewest adjacent inputs that together close what none of them closes alone.

    For example, with heads of width 4 a query's rows get a gradient as long as one of the head's
    four values reaches the output: only blocks of 4 add entries to those of their single inputs.
    """
    for block in (b for b in range(2, len(single)) if len(single) % b == 0):
        more = (
            inactive(first, block).difference(*single[first : first + block])
            for first in range(0, len(single), block)
        )
        if _are_alike(more):
            return block
    return 1


def _are_alike(parts: Iterable[frozenset[Entry]]) -> bool:
    """Whether all parts are non-empty, disjoint, and of equal size in every tensor.

    That holds for heads, but not where an activation happens to close with two of its inputs.
    """
    profiles: set[frozenset[tuple[tuple[str, int], int]]] = set()
    seen: set[Entry] = set()
    for part in parts:
        profiles.add(frozenset(Counter((name, dim) for name, dim, _ in part).items()))
        if not part or len(profiles) > 1 or not seen.isdisjoint(part):
            return False
        seen |= part
    return True


def _active_entries(twins: Sequence[nn.Module], forward: Forward) -> frozenset[Entry]:
    """Return rows and columns of parameters that have any gradient in any of the models."""
    return frozenset(entry for twin in twins for entry in _entries_with_gradient(twin, forward))


def _entries_with_gradient(model: nn.Module, forward: Forward) -> Iterator[Entry]:
    parameters = dict(model.named_parameters())
    output = forward(model)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(
        (output * direction.to(output)).sum(),
        list(parameters.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    least = ROUNDING * max(float(gradient.abs().max()) for gradient in gradients)
    for name, gradient in zip(parameters, gradients, strict=True):
        for dim in range(min(gradient.dim(), 2)):
            slices = (
                gradient.transpose(0, dim).flatten(1) if gradient.dim() > 1 else gradient[:, None]
            )
            for index in (slices.abs() > least).any(1).nonzero().flatten().tolist():
                yield name, dim, index


@contextmanager
def _zero_columns(twins: Sequence[nn.Module], name: str, first: int, count: int) -> Iterator[None]:
    """Set the weights of some inputs to 0, also for functions that read the module's weight."""
    columns = slice(first, first + count)
    weights = [twin.get_parameter(f"{name}.weight") for twin in twins]
    before = [weight[:, columns].detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight[:, columns] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in zip(weights, before, strict=True):
                weight[:, columns] = values


def _closes_rows(model: nn.Module, unit: frozenset[Entry]) -> bool:
    """Whether some matrix computes this unit and nothing else."""
    parameters = dict(model.named_parameters())
    return any(dim == 0 and parameters[name].dim() > 1 for name, dim, _ in unit)


def _with_biases(model: nn.Module, unit: frozenset[Entry]) -> frozenset[Entry]:
    """Return the unit with the entries of biases whose weights' rows are its own."""
    parameters = dict(model.named_parameters())
    biases = {
        (bias, 0, index)
        for name, dim, index in unit
        if dim == 0
        and (bias := f"{name.removesuffix('weight')}bias") in parameters
        and len(parameters[bias]) == len(parameters[name])
    }
    return unit | biases
