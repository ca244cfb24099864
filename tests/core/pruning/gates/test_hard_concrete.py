import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from core.config.settings import GateKind
from core.conformer.axes import Axis
from core.pruning.gates.hard_concrete import CLAMP, COLDEST, KINDS, HardConcrete

SHARES_DONE = {"sampled": [0.0], "straight_through": [0.0], "annealed": [0.0, 0.5, 1.0]}
KIND_AND_SHARE = [(kind, share) for kind, shares in SHARES_DONE.items() for share in shares]


def gates_at(log_alpha, size=1, *, kind="sampled", share=0.0):
    axis = Axis(name="a", kind="inner", size=size, slices=())
    gates = KINDS[kind]([axis], start={"a": log_alpha})
    gates.anneal(share)
    return gates


@pytest.mark.parametrize(("kind", "share"), KIND_AND_SHARE)
@pytest.mark.parametrize("log_alpha", [-CLAMP, -3.0, -1.6, 0.0, 2.0, CLAMP])
def test_gates_are_open_as_often_as_their_probability_says(log_alpha, kind, share):
    torch.manual_seed(0)
    size = 50_000
    gates = gates_at(log_alpha, size=size, kind=kind, share=share)

    drawn = (gates.sample()["a"] > 0).double().mean().item()

    expected = gates.open_probability()["a"][0].item()
    deviation = math.sqrt(expected * (1 - expected) / size)
    assert drawn == pytest.approx(expected, abs=4 * deviation + 1 / size)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shut_for_good_stays_so_and_all_else_starts_anew(kind):
    torch.manual_seed(0)
    axis = Axis(name="a", kind="inner", size=6, slices=())
    gates = KINDS[kind]([axis], start={"a": torch.arange(6.0)}, is_shrinking=True)
    with torch.no_grad():
        gates.log_alpha.uniform_(-CLAMP, CLAMP)
    kept = torch.tensor([1.0, 0, 1, 1, 0, 1])

    gates.shrink({"a": kept})
    gates.sample()["a"].sum().backward()

    living = kept > 0
    assert torch.equal(gates.log_alpha.detach()[living], torch.arange(6.0)[living])
    assert not gates.log_alpha.grad[~living].any()
    for values in (gates.sample(), gates.median(), gates.open_probability()):
        assert not values["a"][~living].any()
    gates.clamp()
    assert gates.scores()["a"][~living].max() < -CLAMP
    gates.shrink({"a": torch.ones(6)})
    assert torch.equal(gates.active, kept)


def test_every_kind_that_a_config_may_name_is_there():
    assert set(KINDS) == set(SHARES_DONE) == set(get_args(GateKind))


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.0])
def test_straight_through_gates_are_0_or_1_and_have_the_gradient_of_the_draw(log_alpha):
    soft, hard = (gates_at(log_alpha, size=500, kind=k) for k in ("sampled", "straight_through"))
    drawn = {}
    for gates in (soft, hard):
        torch.manual_seed(0)
        drawn[gates] = gates.sample()["a"]
        (drawn[gates] * torch.arange(500.0)).sum().backward()

    assert torch.equal(drawn[hard], (drawn[soft] > 0.5).float())
    assert torch.equal(hard.median()["a"], (hard.open_probability()["a"] > 0.5).float())
    assert hard.log_alpha.grad.any()
    torch.testing.assert_close(hard.log_alpha.grad, soft.log_alpha.grad)


@pytest.mark.parametrize("log_alpha", [-1.0, 0.0, 1.0])
def test_annealed_gates_come_to_lie_at_0_and_1(log_alpha):
    between = []
    for share in (0.0, 0.3, 0.6, 1.0):
        torch.manual_seed(0)
        z = gates_at(log_alpha, size=10_000, kind="annealed", share=share).sample()["a"]
        between.append(((z > 0) & (z < 1)).double().mean().item())

    assert all(later < earlier for earlier, later in pairwise(between))
    assert between[-1] < between[0] / 4


def test_gates_cool_by_equal_factors_from_the_usual_temperature_to_the_coldest():
    gates = gates_at(0.0, kind="annealed")
    temperatures = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        gates.anneal(share)
        temperatures.append(gates.temperature)

    assert temperatures[0] == pytest.approx(gates_at(0.0).temperature)
    assert temperatures[-1] == pytest.approx(COLDEST)
    factors = [later / earlier for earlier, later in pairwise(temperatures)]
    assert factors == pytest.approx([factors[0]] * 4)
    assert factors[0] < 1


def test_the_state_of_annealed_gates_says_how_cold_they_are():
    gates, others = gates_at(1.0, kind="annealed", share=0.7), gates_at(0.0, kind="annealed")

    others.load_state_dict(gates.state_dict())

    assert torch.equal(others.median()["a"], gates.median()["a"])
    assert torch.equal(others.open_probability()["a"], gates.open_probability()["a"])


def test_each_unit_may_start_where_it_is_told():
    axis = Axis(name="a", kind="inner", size=3, slices=())
    start = torch.tensor([-1.0, 0.5, 2.0])

    gates = HardConcrete([axis], start={"a": start})

    assert torch.equal(gates.log_alpha.detach(), start)


def test_reference_values_of_the_distribution():
    # method.md, 1.1: P(z > 0) at log_alpha -1.599, 0 and 4.605.
    for log_alpha, probability in [(-1.598597, 0.5), (0.0, 0.8318), (4.605, 0.99798)]:
        actual = gates_at(log_alpha).open_probability()["a"].item()
        assert actual == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(("kind", "share"), KIND_AND_SHARE)
@pytest.mark.parametrize("offset", [-0.5, -0.01, 0.01, 0.5])
def test_the_median_gate_is_closed_exactly_where_opening_is_the_less_likely(offset, kind, share):
    shift = gates_at(0.0, kind=kind, share=share).shift
    gates = gates_at(shift + offset, kind=kind, share=share)

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floor", [1, 3])
def test_a_draw_never_shuts_more_than_a_floor_allows(floor, kind):
    axis = Axis(name="a", kind="frontend", size=6, slices=(), floor=floor)
    gates = KINDS[kind]([axis], start={"a": -8.0})
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
