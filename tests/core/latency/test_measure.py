"""A table of latencies is measured on the model's own parts, and sums up to the whole."""

import statistics

import pytest
import torch

from core.evaluation.timer import latency_seconds
from core.latency.measure import even_shape, latency_table, part_seconds
from core.pruning.space import Space
from core.testing import deeper, small_model

CPU = torch.device("cpu")


@pytest.mark.long
@pytest.mark.slow
def test_a_measured_table_holds_every_part_up_to_the_model_and_adds_up():
    torch.set_num_threads(1)
    shape = deeper(3)
    model = small_model(shape=shape)

    table = latency_table(shape, utterance_seconds=1.0, repeats=3, threads=1, device=CPU)

    space = Space.of(model, ["inner"], 1.0, latency=table)
    sizes = {part: (grid.units[-1], grid.width[-1]) for part, grid in table.parts.items()}
    assert sizes == {
        "frontend": (5, 6),
        "projection": (5, 16),
        "feedforward": (12, 16),
        "attention": (3, 16),
        "convolution": (10, 16),
        "norm": (1, 16),
        "output": (1, 16),
    }
    measured = [
        1000 * latency_seconds(model, utterance_seconds=1.0, repeats=9, device=CPU)
        for _ in range(3)
    ]
    assert space.unpruned.latency == pytest.approx(statistics.median(measured), rel=5.0)
    told, taken = zip(*table.whole, strict=True)
    assert list(told) == sorted(set(told))
    assert list(taken) == sorted(taken)
    assert told[-1] == taken[-1] == pytest.approx(space.unpruned.latency)
    assert len(told) > 1, "whole models were cut and timed, too"
    assert table.parts["feedforward"].ms[0] == [0.0] * len(table.parts["feedforward"].width)


def test_the_seconds_of_all_parts_are_those_of_the_pass():
    shape = deeper(2)
    model = small_model(shape=shape)

    spent = part_seconds(model, (torch.randn(1, 100, 80), torch.tensor([100])), CPU)

    assert set(spent) == {
        *("frontend", "projection", "feedforward", "attention", "convolution", "norm", "output")
    }
    assert all(seconds > 0 for seconds in spent.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("units", [0.01, 0.5, 1.0])
def test_an_even_shape_has_shares_of_the_largest_sizes_and_never_less_than_one(units):
    shape = even_shape(deeper(2), units, 0.5)

    assert len({*shape.blocks}) == 1
    inner = round(units * 12) | 1 if units < 1 else 12
    assert shape.blocks[0].ff1 == shape.blocks[0].ff2 == inner
    assert shape.blocks[0].heads == max(1, round(units * 3))
    assert (shape.width, shape.sub1) == (9, 3)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.75, 1.0])
def test_sizes_between_are_of_the_kind_that_will_be_kept(share):
    odd, rounded = even_shape(deeper(1), share, share), even_shape(deeper(1), share, share, 4)

    for size, most in [(odd.width, 16), (odd.blocks[0].ff1, 12), (odd.blocks[0].channels, 10)]:
        assert size % 2 == 1 or size == most
    for size, most in [(rounded.width, 16), (rounded.blocks[0].ff1, 12)]:
        assert size % 4 == 0
        assert 0 < size <= most
