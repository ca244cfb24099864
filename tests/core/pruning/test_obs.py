"""Structured OBS against least squares, one removal after the other."""

import pytest
import torch

from core.pruning.obs import PENDING, joint_removal_order, removal_order


def problem(units, block, outputs=5, rows=200, *, has_bias=True, seed=0):
    """Inputs X that depend on each other, a consumer W, and a weight F of its outputs."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    inputs = units * block
    x = randn(rows, inputs) @ (torch.eye(inputs) + 0.5 * randn(inputs, inputs))
    if has_bias:
        x = torch.cat((x + 1, x.new_ones(rows, 1)), 1)
    weight, root = randn(outputs, x.shape[1]), randn(outputs, outputs)
    return x, weight, root.T @ root


def refitted_error(x, weight, fisher, kept):
    """tr(F dW H dW^T) of the best W' on the kept inputs, by an outside least-squares solver."""
    wanted = x @ weight.T
    # Weighing outputs does not change the best W', as there is no bound on it.
    solution = torch.linalg.lstsq(x[:, kept], wanted).solution
    error = x[:, kept] @ solution - wanted
    return float(torch.trace(fisher @ error.T @ error))


@pytest.mark.parametrize(("units", "block"), [(12, 1), (6, 3), (4, 8)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_growth_of_every_removal_is_what_least_squares_leaves(units, block, has_bias):
    x, weight, fisher = problem(units, block, has_bias=has_bias)

    order = removal_order(
        x.T @ x,
        weight.T @ fisher @ weight,
        num_units=units,
        unit_inputs=block,
        damping=0.0,
        pending=4,
    )

    kept = torch.ones(x.shape[1], dtype=torch.bool)
    whole = float(torch.trace(fisher @ (x @ weight.T).T @ (x @ weight.T)))
    for unit, total in zip(order.units.tolist(), order.growth.cumsum(0).tolist(), strict=True):
        kept[unit * block : (unit + 1) * block] = False
        left = refitted_error(x, weight, fisher, kept) if kept.any() else whole
        assert total == pytest.approx(left, rel=1e-9)


def test_the_first_unit_to_go_is_the_one_that_least_squares_misses_least():
    x, weight, fisher = problem(10, 1)

    order = removal_order(x.T @ x, weight.T @ fisher @ weight, num_units=10, unit_inputs=1)

    errors = []
    for unit in range(10):
        kept = torch.ones(11, dtype=torch.bool)
        kept[unit] = False
        errors.append(refitted_error(x, weight, fisher, kept))
    assert int(order.units[0]) == errors.index(min(errors))
    assert sorted(order.units.tolist()) == list(range(10))


@pytest.mark.parametrize("pending", [1, 3, 64])
def test_collecting_changes_alters_nothing(pending):
    x, weight, fisher = problem(24, 2)

    order, plain = (
        removal_order(
            x.T @ x, weight.T @ fisher @ weight, num_units=24, unit_inputs=2, pending=rows
        )
        for rows in (pending, 1)
    )

    assert order.units.tolist() == plain.units.tolist()
    assert torch.allclose(order.growth, plain.growth, rtol=1e-9)


def test_of_two_units_that_say_the_same_only_one_goes_cheaply():
    x, weight, fisher = problem(6, 1, has_bias=False)
    x[:, 3] = x[:, 1]

    order = removal_order(x.T @ x, weight.T @ fisher @ weight, num_units=6, unit_inputs=1)

    assert int(order.units[0]) in {1, 3}
    assert float(order.growth[0]) < 1e-3 * float(order.growth[1])
    assert int(order.units[1]) not in {1, 3} or float(order.growth[1]) > 1e-3


@pytest.mark.parametrize("units", [8, 2 * PENDING])
def test_the_growth_of_a_unit_that_several_read_is_what_all_of_them_miss(units):
    """Each reader has inputs and a weight of its own, and a bias; each is refitted for itself.

    Of many units the removed ones are taken out of all matrices on the way.
    """
    problems = [problem(units, 1, seed=seed) for seed in range(3)]

    order = joint_removal_order(
        [(x.T @ x, weight.T @ fisher @ weight) for x, weight, fisher in problems],
        num_units=units,
        damping=0.0,
    )

    kept = torch.ones(units + 1, dtype=torch.bool)
    for unit, total in zip(order.units.tolist(), order.growth.cumsum(0).tolist(), strict=True):
        kept[unit] = False
        left = sum(refitted_error(*each, kept) for each in problems)
        assert total == pytest.approx(left, rel=1e-9)


def test_one_reader_alone_has_its_own_order():
    x, weight, fisher = problem(12, 1)

    joint = joint_removal_order([(x.T @ x, weight.T @ fisher @ weight)], num_units=12)
    alone = removal_order(x.T @ x, weight.T @ fisher @ weight, num_units=12, unit_inputs=1)

    assert joint.units.tolist() == alone.units.tolist()
    assert torch.equal(joint.growth, alone.growth)
