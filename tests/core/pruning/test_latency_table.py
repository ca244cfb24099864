"""Latency by a table: it is monotone, has a gradient, and says what the extracted model takes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.config.base import ConfigError
from core.conformer.axes import Lengths
from core.pruning.extraction import as_mask, extract
from core.pruning.latency_table import Grid, LatencyTable, monotone
from core.pruning.space import Space
from core.testing import (
    MASK_KINDS,
    deeper,
    make_latency_table,
    random_mask,
    small_model,
    with_factors,
)

KINDS = ["frontend", "width", "head", "inner", "channel", "module", "block"]
SECONDS = 1.3


def a_space(blocks=2):
    model = small_model(shape=deeper(blocks))
    return Space.of(model, KINDS, SECONDS, latency=make_latency_table(model.shape, SECONDS))


@given(arrays(float, (4, 5), elements=st.floats(0, 10)))
@settings(max_examples=50, deadline=None)
def test_a_table_is_brought_to_rise_both_ways(measured):
    table = np.array(monotone(measured))

    assert (np.diff(table, axis=0) >= -1e-9).all()
    assert (np.diff(table, axis=1) >= -1e-9).all()
    assert table.sum() == pytest.approx(measured.sum())


def test_what_rises_already_is_left_alone():
    table = np.arange(12.0).reshape(3, 4)

    assert monotone(table) == table.tolist()


@given(units=st.floats(0, 8), width=st.floats(1, 6))
@settings(max_examples=50, deadline=None)
def test_reading_is_bilinear(units, width):
    grid = Grid(units=[0, 2, 8], width=[1, 6], ms=[[0.0, 0.0], [1.0, 2.0], [3.0, 10.0]])
    of_units = np.interp(units, [0, 2, 8], [0.0, 1.0, 3.0]), np.interp(units, [0, 2, 8], [0, 2, 10])

    read = grid.at(*torch.tensor([[units], [width]], dtype=torch.float64))

    assert float(read) == pytest.approx(np.interp(width, [1, 6], of_units), abs=1e-9)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_choice_costs_what_the_table_says_of_the_extracted_model(kind, seed):
    space = a_space(3)
    choice = {name: z != 0 for name, z in random_mask(space.axes, kind, seed).items()}

    cost = space.choice_cost(choice)

    small = extract(space.model, as_mask(choice))
    dense = space.dense_cost(small)
    assert (dense.params, dense.flops) == (cost.params, cost.flops)
    assert dense.latency == pytest.approx(cost.latency)
    assert cost.latency == pytest.approx(by_hand(space.latency, small.shape))


def by_hand(table, shape):
    def read(part, units, width):
        sizes = torch.tensor([[units], [width]]).double()
        return float(table.parts[part].at(*sizes))

    d, whole = shape.width, read("frontend", shape.sub2, shape.sub1)
    whole += read("projection", shape.sub2, d) + read("output", 1, d)
    for block in shape.blocks:
        whole += read("norm", 1, d)
        inside = {"feedforward": [block.ff1, block.ff2], "attention": [block.heads]}
        for part, sizes in (inside | {"convolution": [block.channels]}).items():
            whole += sum(read(part, size, d) for size in sizes if size)
    return whole


def test_expectation_at_certainty_is_the_exact_latency():
    space = a_space()
    mask = random_mask(space.axes, "binary")

    expected = space.mask_cost(mask).latency

    exact = space.choice_cost({name: z != 0 for name, z in mask.items()}).latency
    assert float(expected) == pytest.approx(exact, rel=1e-5)


def test_the_expectations_gradient_is_its_finite_difference():
    space = a_space()
    torch.manual_seed(0)
    probabilities = {
        axis.name: torch.rand(axis.size, dtype=torch.float64).clamp(min=0.3).requires_grad_()
        for axis in space.prunable
    }

    latency = space.mask_cost(probabilities).latency
    gradients = torch.autograd.grad(latency, list(probabilities.values()))

    for name, gradient in zip(probabilities, gradients, strict=True):
        assert (gradient >= 0).all(), name
        with torch.no_grad():
            more = {**probabilities, name: probabilities[name].clone()}
            more[name][0] += 1e-7
            difference = (space.mask_cost(more).latency - latency) / 1e-7
        torch.testing.assert_close(gradient[0], difference, rtol=1e-4, atol=1e-6)


def test_expected_latency_keeps_the_gates_dtype():
    space = a_space()

    cost = space.mask_cost({axis.name: torch.full((axis.size,), 0.5) for axis in space.prunable})

    assert cost.latency.dtype == torch.float32


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    table = make_latency_table(small_model().shape, SECONDS)

    table.save(tmp_path / "beside" / "table.json")

    assert LatencyTable.load(tmp_path / "beside" / "table.json") == table


def test_a_slower_machine_takes_as_many_times_as_long():
    space = a_space()
    counts = {axis.name: axis.size for axis in space.axes}

    assert space.latency.scale(3.0).ms(space.axes, counts) == pytest.approx(
        3 * space.unpruned.latency
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.6, 1.0])
def test_whole_models_correct_the_sum_linearly_between_those_measured(share):
    plain = a_space()
    full = float(plain.unpruned.latency)
    whole = [[0.25 * full, 0.5 * full], [full, full]]
    table = LatencyTable.parse({**plain.latency.model_dump(), "whole": whole})
    space = Space.of(plain.model, ["inner"], SECONDS, latency=table)
    counts = {axis.name: round(share * axis.size) for axis in plain.axes}

    told = float(plain.counted_cost(counts).latency)

    wanted = np.interp(told, [0, 0.25 * full, full], [0, 0.5 * full, full])
    assert float(space.counted_cost(counts).latency) == pytest.approx(wanted)


def made_up(**changes):
    return make_latency_table(small_model().shape, SECONDS).model_dump() | changes


def broken(**changes):
    parts = made_up()["parts"]
    return made_up(parts=parts | {"feedforward": parts["feedforward"] | changes})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("no JSON", r"must be a file of JSON, but `.*table.json`"),
        ({}, r"must be a table of latencies, but `utterance_seconds`"),
        (broken(ms=[[1.0]]), r"`ms` must be 4 rows of 4 times"),
        (broken(units=[3, 2, 1, 0]), r"`units`, `width` and `ms` must be increasing"),
        (broken(ms=np.eye(4).tolist()), r"`units`, `width` and `ms` must be increasing"),
        (made_up(whole=[[2.0, 1.0], [1.0, 2.0]]), r"`whole` must be increasing from 0"),
        (made_up(whole=[[1.0, 2.0], [2.0, 1.0]]), r"`whole` must be increasing from 0"),
        (broken(unit=[1]), r"`parts.feedforward.unit` is not a key; did you mean"),
    ],
)
def test_a_table_that_cannot_be_is_refused_in_one_line(values, message, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))

    with pytest.raises(ConfigError, match=message) as caught:
        LatencyTable.load(file)

    assert len(str(caught.value).splitlines()) == 1


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"`pruning.latency_table` must be a file .*nowhere"):
        LatencyTable.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("shape", "seconds", "message"),
    [
        (deeper(2), 2.0, r"`pruning.utterance_seconds` must be 1.3, .*but is 2 instead"),
        (with_factors(deeper(2)), SECONDS, r"must not name latency where layers are factored"),
        (deeper(2, linear_features=6), SECONDS, r"attention runs in linear time"),
    ],
)
def test_a_model_that_the_table_does_not_know_is_refused(shape, seconds, message):
    table = make_latency_table(deeper(2), SECONDS)

    with pytest.raises(ConfigError, match=message):
        Space.of(small_model(shape=shape), KINDS, seconds, latency=table)


def test_a_larger_model_than_the_tables_is_refused():
    values = make_latency_table(deeper(2), SECONDS).model_dump()
    values["parts"]["attention"] |= {"units": [1], "ms": values["parts"]["attention"]["ms"][:1]}

    with pytest.raises(ConfigError, match=r"must hold `attention` of 3 units at width 16"):
        Space.of(small_model(), KINDS, SECONDS, latency=LatencyTable.parse(values))


def test_a_space_without_a_table_counts_as_before():
    space = Space.of(small_model(), KINDS, SECONDS)

    assert space.unpruned.latency == 0.0
    assert isinstance(space.unpruned.flops, int)
    assert Lengths.of(SECONDS).frames > 0
