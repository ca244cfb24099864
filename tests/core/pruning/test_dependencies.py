"""An independent oracle of what depends on what: torch-pruning's graph agrees with the slices."""

from collections import defaultdict
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from core.conformer import convolution
from core.testing import deeper, ragged_speech, small_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of its own making

WEIGHTLESS = ("ElementWiseOp", "ReshapeOp", "SplitOp", "ConcatOp")


@pytest.fixture
def model(monkeypatch):
    """The model, whose functions are told to torch-pruning in words that it knows."""
    model = small_model(shape=deeper(1))
    modules = {id(m.weight): m for m in model.modules() if isinstance(m, torch.nn.Conv1d)}

    def as_module(x, weight, _):
        return modules[id(weight)](x.transpose(1, 2)).transpose(1, 2)

    def in_halves(x, dim):
        value, gate = x.chunk(2, dim)
        return value * gate.sigmoid()

    monkeypatch.setattr(convolution, "depthwise", as_module)
    monkeypatch.setattr(F, "glu", in_halves)
    return model


def graph_of(model):
    tp = pytest.importorskip("torch_pruning")
    return tp.DependencyGraph().build_dependency(
        model,
        example_inputs=ragged_speech(60),
        forward_fn=lambda model, example: model(*example).logits,
    )


def entries(model, graph, producer, place):
    """(weight, dim) with places that go when one output of a module goes."""
    import torch_pruning as tp  # noqa: PLC0415  (only where it is installed)

    names = {id(module): name for name, module in model.named_modules()}
    module = model.get_submodule(producer)
    prune = (
        tp.prune_linear_out_channels
        if isinstance(module, torch.nn.Linear)
        else tp.prune_conv_out_channels
    )
    found = defaultdict(set)
    for dependency, places in graph.get_pruning_group(module, prune, idxs=[place]):
        name = names.get(id(dependency.target.module))
        if name and hasattr(dependency.target.module, "weight"):
            dim = 0 if "out" in dependency.handler.__name__ else 1
            found[f"{name}.weight", dim] |= set(map(int, places))
    return found


def declared(axis, unit):
    found = defaultdict(set)
    for piece in axis.slices:
        first = piece.offset + unit * piece.block
        found[piece.tensor, piece.dim] |= set(range(first, first + piece.block))
    return found


PRODUCERS = {
    "blocks.0.ff1.inner": "blocks.0.ff1.up",
    "blocks.0.ff2.inner": "blocks.0.ff2.up",
    "blocks.0.convolution.channel": "blocks.0.convolution.up",
    "blocks.0.attention.head": "blocks.0.attention.value",
    "frontend.sub1": "frontend.conv1",
    "frontend.sub2": "frontend.conv2",
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_the_graph_has_the_weights_that_are_declared(name, model):
    axis = next(axis for axis in model.axes() if axis.name == name)
    weights = {
        (piece.tensor, piece.dim)
        for piece in axis.slices
        if piece.tensor.endswith("weight") and "norm" not in piece.tensor
    }

    found = entries(model, graph_of(model), PRODUCERS[name], 0)

    assert set(found) == weights


@pytest.mark.parametrize("name", [name for name in PRODUCERS if name != "frontend.sub2"])
def test_and_their_rows_and_columns(name, model):
    """But for the channels of the last convolution: it does not follow how they are laid out."""
    axis = next(axis for axis in model.axes() if axis.name == name)
    graph = graph_of(model)
    block = next(piece.block for piece in axis.slices if piece.is_scaled)

    for unit in range(axis.size):
        found = defaultdict(set)
        for place in range(unit * block, (unit + 1) * block):
            for key, places in entries(model, graph, PRODUCERS[name], place).items():
                found[key] |= places
        wanted = declared(axis, unit)
        for key in product([name for name, _ in found], (0, 1)):
            assert found.get(key, set()) == wanted.get(key, set()), key
