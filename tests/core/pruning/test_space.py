"""Law 2: what a choice is said to cost is counted on the extracted model, to the integer."""

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.config.pruning import AxisKind
from core.conformer.axes import Lengths
from core.pruning.extraction import as_mask, extract
from core.pruning.space import Space
from core.testing import (
    FRONTEND_SPECS,
    MASK_KINDS,
    deeper,
    random_mask,
    small_model,
    with_factors,
    with_frontend,
)

KINDS = get_args(AxisKind)
SECONDS = 1.3
SEEDS = [
    seed if seed < 16 else pytest.param(seed, marks=pytest.mark.long)  # each kind, then by chance
    for seed in range(50)
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_factored", [False, True])
def test_cost_is_what_is_counted_on_the_extracted_model(seed, is_factored):
    linear_features = 6 * (seed // len(MASK_KINDS) % 2)  # by turns with each kind
    heard = list(FRONTEND_SPECS)[seed % len(FRONTEND_SPECS)]
    shape = with_frontend(deeper(3, linear_features=linear_features), heard)
    model = small_model(shape=with_factors(shape) if is_factored else shape)
    space = Space.of(model, KINDS, SECONDS)
    kind = MASK_KINDS[seed % len(MASK_KINDS)]
    choice = {name: z != 0 for name, z in random_mask(space.axes, kind, seed).items()}

    cost = space.choice_cost(choice)

    small = extract(model, as_mask(choice))
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.flops == counted_flops(small)


def counted_flops(model):
    frames = Lengths.of(SECONDS, model.shape.frontend_spec).mels
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, frames, 80), torch.tensor([frames]))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "shape",
    [deeper(2), with_factors(deeper(2)), deeper(2, linear_features=6)],
    ids=["dense", "factored", "linear attention"],
)
def test_expected_cost_at_certainty_is_the_exact_cost(shape):
    space = Space.of(small_model(shape=shape), KINDS, SECONDS)
    mask = random_mask(space.axes, "binary")

    expected = space.mask_cost(mask)
    exact = space.choice_cost({name: z != 0 for name, z in mask.items()})

    assert int(expected.params) == exact.params
    assert int(expected.flops) == exact.flops


def test_expected_cost_is_the_mean_cost_of_drawn_choices():
    space = Space.of(small_model(), ["inner", "channel", "head"], SECONDS)
    probabilities = {axis.name: torch.full((axis.size,), 0.9) for axis in space.prunable}
    torch.manual_seed(0)

    draws = [
        space.choice_cost({name: torch.rand(len(p)) < p for name, p in probabilities.items()}).flops
        for _ in range(400)
    ]

    drawn = torch.tensor(draws, dtype=torch.float64)
    gap = (drawn.mean() - space.mask_cost(probabilities).flops).abs()
    assert gap < 4 * drawn.std() / len(draws) ** 0.5


@pytest.mark.parametrize("linear_features", [0, 6])
def test_expected_cost_falls_when_any_gate_closes(linear_features):
    model = small_model(shape=deeper(2, linear_features=linear_features))
    space = Space.of(model, KINDS, SECONDS)
    probabilities = {
        axis.name: torch.full((axis.size,), 0.7, requires_grad=True) for axis in space.prunable
    }

    cost = space.mask_cost(probabilities)
    for resource in (cost.params, cost.flops):
        gradients = torch.autograd.grad(resource, list(probabilities.values()), retain_graph=True)
        for name, gradient in zip(probabilities, gradients, strict=True):
            assert (gradient > 0).all(), name


def test_expected_cost_never_falls_when_a_direction_opens_and_rises_below_the_break_even():
    space = Space.of(small_model(shape=with_factors(deeper(2))), KINDS, SECONDS)
    for share, is_below in [(0.9, False), (0.2, True)]:
        probabilities = {
            axis.name: torch.full((axis.size,), share, requires_grad=True)
            for axis in space.prunable
            if axis.kind == "rank"
        }

        cost = space.mask_cost(probabilities)

        gradients = torch.autograd.grad(cost.flops, list(probabilities.values()))
        assert all((gradient >= 0).all() for gradient in gradients)
        assert all((gradient > 0).all() for gradient in gradients) == is_below


@pytest.mark.parametrize("linear_features", [0, 6])
def test_expected_costs_gradient_is_its_finite_difference(linear_features):
    model = small_model(shape=deeper(2, linear_features=linear_features))
    space = Space.of(model, KINDS, SECONDS)
    probabilities = {
        axis.name: torch.full((axis.size,), 0.7, dtype=torch.float64, requires_grad=True)
        for axis in space.prunable
    }

    gradients = torch.autograd.grad(
        space.mask_cost(probabilities).flops, list(probabilities.values())
    )

    for name, gradient in zip(probabilities, gradients, strict=True):
        with torch.no_grad():
            more = {**probabilities, name: probabilities[name].clone()}
            more[name][0] += 0.1
            difference = (space.mask_cost(more).flops - space.mask_cost(probabilities).flops) / 0.1
        torch.testing.assert_close(gradient[0], difference, rtol=1e-6, atol=1e-3)
