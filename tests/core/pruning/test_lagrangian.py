"""Law 7, the multipliers' part: their ascent reaches a toy target."""

from itertools import pairwise

import pytest
import torch

from core.conformer.axes import Axis
from core.pruning.gates.hard_concrete import HardConcrete
from core.pruning.lagrangian import Lagrangian, staged_target, warmed_target


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("steps", [400, pytest.param(1500, marks=pytest.mark.long)])
def test_the_ascent_of_the_multipliers_reaches_a_toy_target(target, steps):
    torch.manual_seed(0)
    axis = Axis(name="a", kind="inner", size=400, slices=())
    gates = HardConcrete([axis], start={"a": 3.0})
    importance = torch.logspace(-3, 1, 400)
    lagrangian = Lagrangian(quadratic_start=50.0)
    primal = torch.optim.Adam(gates.parameters(), lr=0.1)
    dual = torch.optim.Adam(lagrangian.parameters(), lr=0.1, maximize=True)

    for step in range(steps):
        loss = (importance * (1 - gates.sample()["a"])).sum() / 400
        expected = 1 - gates.open_probability()["a"].mean()
        wanted = warmed_target(target, step=step, warmup_steps=round(0.3 * steps))
        primal.zero_grad()
        dual.zero_grad()
        (loss + lagrangian.penalty(wanted - expected)).backward()
        primal.step()
        dual.step()
        gates.clamp()

    sparsity = 1 - gates.open_probability()["a"].mean().item()
    assert sparsity == pytest.approx(target, abs=0.02)
    assert gates.log_alpha[-40:].mean() > gates.log_alpha[:40].mean()


@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_target_in_rounds_rises_by_equal_shares_of_the_rest_to_its_value(rounds, steps):
    targets = [
        staged_target(0.9, step=step, steps=steps, rounds=rounds, warmup_share=0.5)
        for step in range(steps)
    ]

    assert targets == sorted(targets)
    assert targets[-1] == pytest.approx(0.9)
    if steps > rounds:
        ends = [targets[-(-n * steps // rounds) - 1] for n in range(1, rounds + 1)]
        left = [1.0] + [1 - target for target in ends]
        ratios = [after / before for before, after in pairwise(left)]
        assert ratios == pytest.approx([0.1 ** (1 / rounds)] * rounds)
    if rounds == 1:
        warmup_steps = round(0.5 * steps)
        plain = [warmed_target(0.9, step=s, warmup_steps=warmup_steps) for s in range(steps)]
        assert targets == pytest.approx(plain)


def test_too_little_pruning_raises_the_linear_multiplier_and_too_much_lowers_it():
    for violation, sign in [(0.2, 1), (-0.2, -1)]:
        lagrangian = Lagrangian(quadratic_start=0.0)
        dual = torch.optim.Adam(lagrangian.parameters(), lr=0.1, maximize=True)

        lagrangian.penalty(torch.tensor(violation)).backward()
        dual.step()

        assert lagrangian.lambda_linear.item() * sign > 0
        assert lagrangian.lambda_quadratic.item() > 0


def test_the_target_never_falls_while_it_warms_up_and_ends_at_its_value():
    targets = [warmed_target(0.7, step=step, warmup_steps=20) for step in range(50)]

    assert targets == sorted(targets)
    assert targets[0] == pytest.approx(0.7 / 20)
    assert targets[-1] == 0.7


def test_without_warm_up_the_target_is_there_at_once():
    assert warmed_target(0.7, step=0, warmup_steps=0) == 0.7
