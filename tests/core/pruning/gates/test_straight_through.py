import pytest
import torch

from core.conformer.axes import Axis
from core.pruning.gates.straight_through import CEILING, StraightThrough


def gates_of(*sizes, floor=0):
    axes = [
        Axis(name=f"a{i}", kind="inner", size=size, slices=(), floor=floor)
        for i, size in enumerate(sizes)
    ]
    return StraightThrough(axes)


def set_masks(gates, values):
    with torch.no_grad():
        gates.mask.copy_(torch.tensor(values))
    gates.clamp()


def test_a_gate_is_1_where_its_mask_is_positive_and_has_the_gradient_of_relu():
    gates = gates_of(2, 2)
    set_masks(gates, [0.7, -0.1, 1e-6, 1.4])

    z = gates.sample()
    (z["a0"] @ torch.tensor([2.0, 3.0]) + z["a1"] @ torch.tensor([5.0, 7.0])).backward()

    assert z["a0"].tolist() == [1.0, 0.0]
    assert z["a1"].tolist() == [1.0, 1.0]
    assert gates.mask.grad.tolist() == [2.0, 0.0, 5.0, 7.0]


def test_the_living_are_worth_their_mask_and_the_dead_less_the_sooner_they_died():
    gates = gates_of(4)
    set_masks(gates, [0.5, 0.9, -0.1, 0.2])
    set_masks(gates, [0.4, 0.9, -0.1, -0.2])
    set_masks(gates, [-0.3, 0.8, -0.1, -0.2])

    worth = gates.scores()["a0"]

    assert worth.argsort().tolist() == [2, 3, 0, 1]
    assert worth[1] == torch.tensor(0.8)


def test_as_many_as_must_stay_are_open_whatever_their_masks():
    gates = gates_of(3, 3, floor=2)
    set_masks(gates, [-0.3, -0.1, -0.2, -0.1, 0.5, 0.4])

    z = gates.sample()

    assert z["a0"].tolist() == [0.0, 1.0, 1.0]
    assert z["a1"].tolist() == [0.0, 1.0, 1.0]


def test_frozen_masks_stay_as_they_are():
    gates = gates_of(3)
    set_masks(gates, [0.5, -0.1, 0.2])
    gates.freeze_if(torch.tensor(True))  # noqa: FBT003 - torch's
    before = gates.scores()["a0"]

    set_masks(gates, [0.1, -0.9, -0.2])

    assert torch.equal(gates.scores()["a0"], before)
    assert gates.sample()["a0"].tolist() == [1.0, 0.0, 1.0]


def test_under_a_growing_penalty_units_die_in_the_order_of_their_importance():
    torch.manual_seed(0)
    gates = gates_of(40)
    importance = torch.logspace(-3, 0, 40)[torch.randperm(40)]
    primal = torch.optim.Adam(gates.parameters(), lr=8 / 400)

    for step in range(400):
        z = gates.sample()["a0"]
        primal.zero_grad()
        ((importance * (1 - z)).sum() + 10 ** (-4 + 4 * step / 400) * z.sum()).backward()
        primal.step()
        gates.clamp()

    order = gates.scores()["a0"].argsort()
    ranks = torch.stack((order.argsort(), importance.argsort().argsort())).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.98


def test_no_mask_climbs_out_of_reach():
    gates = gates_of(2)

    set_masks(gates, [7.0, 1.4])

    assert gates.mask.tolist() == pytest.approx([CEILING, 1.4])
