"""Units found by dead gradients are the declared ones, and are right on models never seen."""

import pytest
import torch
from torch import nn

from core.pruning.comb import combed
from core.testing import deeper, ragged_speech, small_model


def declared(model):
    """The entries of each unit of each axis but width and modules, parameters alone."""
    parameters = dict(model.named_parameters())
    for axis in model.axes():
        if axis.is_whole or axis.kind in ("width", "rank"):
            continue
        yield frozenset(
            frozenset(
                (piece.tensor, piece.dim, piece.offset + unit * piece.block + inside)
                for piece in axis.slices
                if piece.tensor in parameters
                for inside in range(piece.block)
            )
            for unit in range(axis.size)
        )


@pytest.mark.slow
def test_on_our_own_model_it_finds_what_is_declared():
    model = small_model(shape=deeper(1)).double()
    features, num_frames = ragged_speech(60, dtype=torch.float64)

    found = combed(model, lambda: model(features, num_frames).logits)

    assert {frozenset(comb.units) for comb in found} == set(declared(model))


def test_a_residual_stream_is_nobodys_unit():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x):
            x = self.into(x)
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model, example = Residual(), torch.randn(7, 5)

    found = combed(model, lambda: model(example))

    assert [comb.consumer for comb in found] == ["down"]
    (comb,) = found
    assert comb.block == 1
    assert comb.units[2] == {("up.weight", 0, 2), ("up.bias", 0, 2), ("down.weight", 1, 2)}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).train()
    model[0].weight.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = torch.randn(5, 4)

    combed(model, lambda: model(example))

    assert model.training
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
