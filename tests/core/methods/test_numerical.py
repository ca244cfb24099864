"""One step of Newton's is the last, and its compensation is least squares."""

import pytest
import torch

from core.methods.numerical import DAMPING, newton_gates
from core.pruning.reconstruction import least_squares_columns


@pytest.fixture
def curvature():
    """(W W^T) * (X^T X) of a consumer, with the damping that the method adds."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(12, 9).double(), torch.randn(200, 12).double()
    inputs[:, 3] += 0.7 * inputs[:, 5]
    return (inputs.T @ inputs) * (weight @ weight.T)


def iterated(curvature, *, closed, rate, steps):
    """Newton's steps from all open gates; `rate` weighs the budget."""
    size = len(curvature)
    ones = torch.ones(size).double()
    kept = (1 - closed) * size
    gates = ones.clone()
    for _ in range(steps):
        gradient = curvature @ (gates - 1) + rate * (gates.sum() - kept) * ones
        gates = gates - torch.linalg.solve(curvature + rate * ones.outer(ones), gradient)
    return gates


@pytest.mark.parametrize("closed", [0.2, 0.5, 0.8])
def test_the_closed_form_is_where_iteration_ends_and_so_is_its_first_step(closed, curvature):
    damped = curvature + DAMPING * curvature.diagonal().mean() * torch.eye(12)
    rate = 1e4 * curvature.diagonal().mean().item()

    once, often = (iterated(damped, closed=closed, rate=rate, steps=n) for n in (1, 50))

    torch.testing.assert_close(once, often, atol=1e-9, rtol=0)
    torch.testing.assert_close(newton_gates(curvature, closed=closed), often, atol=1e-3, rtol=0)


def test_neither_budget_nor_its_weight_changes_the_order(curvature):
    gates = [newton_gates(curvature, closed=closed) for closed in (0.1, 0.5, 0.9)]
    gates += [iterated(curvature, closed=0.5, rate=rate, steps=1) for rate in (1.0, 1e3)]

    orders = {tuple(each.argsort().tolist()) for each in gates}
    assert len(orders) <= 2  # damping may part the last digit of near ties
    assert gates[0].argsort().tolist() == gates[1].argsort().tolist() == gates[2].argsort().tolist()
    assert gates[3].argsort().tolist() == gates[4].argsort().tolist()


def test_its_compensation_is_the_repair_by_least_squares():
    torch.manual_seed(1)
    inputs, weight = torch.randn(100, 10).double(), torch.randn(10, 6).double()
    inputs[:, 2] += inputs[:, 7]
    kept = torch.ones(10).bool()
    kept[[1, 2, 8]] = False
    gram = inputs.T @ inputs

    # Equation 11, with M the columns of the identity at what goes: its rows become 0.
    inverse = torch.linalg.inv(2 * gram)
    pick = torch.eye(10).double()[:, ~kept]
    change = -inverse @ pick @ torch.linalg.inv(pick.T @ inverse @ pick) @ pick.T @ weight
    compensated = weight + change

    torch.testing.assert_close(compensated[~kept], torch.zeros(3, 6).double())
    refit = torch.linalg.lstsq(inputs[:, kept], inputs @ weight).solution
    torch.testing.assert_close(compensated[kept], refit)
    torch.testing.assert_close(
        least_squares_columns(gram, weight.T, kept), refit.T, atol=1e-6, rtol=1e-6
    )
