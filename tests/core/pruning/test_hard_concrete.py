import math

import pytest
import torch

from core.conformer.axes import Axis
from core.pruning.hard_concrete import CLAMP, SHIFT, HardConcrete


def gates_at(log_alpha, size=1):
    axis = Axis(name="a", kind="inner", size=size, slices=())
    return HardConcrete([axis], start={"a": log_alpha})


@pytest.mark.parametrize("log_alpha", [-3.0, -1.6, 0.0, 2.0])
def test_gates_are_open_as_often_as_their_probability_says(log_alpha):
    torch.manual_seed(0)
    gates = gates_at(log_alpha, size=20_000)

    share = (gates.sample()["a"] > 0).double().mean().item()

    expected = gates.open_probability()["a"][0].item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))


def test_reference_values_of_the_distribution():
    # method.md, 1.1: P(z > 0) at log_alpha -1.599, 0 and 4.605.
    for log_alpha, probability in [(-1.598597, 0.5), (0.0, 0.8318), (4.605, 0.99798)]:
        actual = gates_at(log_alpha).open_probability()["a"].item()
        assert actual == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize("offset", [-0.5, -0.01, 0.01, 0.5])
def test_the_median_gate_is_closed_exactly_where_opening_is_the_less_likely(offset):
    gates = gates_at(SHIFT + offset)

    is_open = gates.median()["a"].item() > 0

    assert is_open == (gates.open_probability()["a"].item() > 0.5)


def test_gates_stay_within_the_clamp():
    gates = gates_at(0.0, size=2)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([100.0, -100.0]))

    gates.clamp()

    assert gates.log_alpha.tolist() == [CLAMP, -CLAMP]


def test_a_sample_has_a_gradient_where_it_is_neither_0_nor_1():
    torch.manual_seed(0)
    gates = gates_at(0.0, size=1000)

    z = gates.sample()["a"]
    z.sum().backward()

    inside = (z > 0) & (z < 1)
    assert (gates.log_alpha.grad[inside] > 0).all()
    assert (gates.log_alpha.grad[~inside] == 0).all()


@pytest.mark.parametrize("floor", [1, 3])
def test_a_draw_never_shuts_more_than_a_floor_allows(floor):
    axis = Axis(name="a", kind="frontend", size=6, slices=(), floor=floor)
    gates = HardConcrete([axis], start={"a": -8.0})
    with torch.no_grad():
        gates.log_alpha[-floor:] += 1.0

    for seed in range(5):
        torch.manual_seed(seed)
        z = gates.sample()["a"]
        assert (z[-floor:] > 0).all()
        assert z.count_nonzero() >= floor


def test_a_floor_changes_no_draw_that_keeps_it():
    axis = Axis(name="a", kind="frontend", size=60, slices=(), floor=2)
    floored = HardConcrete([axis], start={"a": 0.0})
    torch.manual_seed(0)
    plain = gates_at(0.0, size=60).sample()["a"]
    torch.manual_seed(0)

    assert torch.equal(floored.sample()["a"], plain)
