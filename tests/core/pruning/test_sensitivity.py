"""Sensitivity tables: the Fisher against measured KL, and what scores make of a table."""

import pytest
import torch

from core.conformer.masking import Folded, fold, gated_forward, named_tensors
from core.methods.obs import Settings, all_tables
from core.pruning.ablation import identity_fold
from core.pruning.calibration import consumers, iterate_grams
from core.pruning.extraction import extract, extract_factored
from core.pruning.fisher import fisher_sums
from core.pruning.fisher_tables import fisher_tables
from core.pruning.low_rank import factorize
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.selection import Budget, choose
from core.pruning.sensitivity import (
    SensitivityTable,
    measured_tables,
    refitted_consumer,
    table_scores,
    unit_prices,
)
from core.pruning.space import Space
from core.testing import FRONTEND_SPECS, SHAPE, ragged_speech, small_model, with_frontend

AXES = ["frontend", "width", "head", "inner", "channel", "module"]
SHORTEST = 7
"""Mel frames of one output frame: then a consumer has one row, and no approximation is left."""


@pytest.fixture
def model():
    return small_model().eval().requires_grad_()


@torch.no_grad()
def output_kl(model, whole, changed, speech):
    """The mean KL over real frames, each model run from the features on."""
    total, count = 0.0, 0
    for features, lengths in speech:
        output = gated_forward(model, features, lengths, whole)
        expected = output.logits.float().log_softmax(-1)[output.is_frame]
        other = gated_forward(model, features, lengths, changed).logits
        actual = other.float().log_softmax(-1)[output.is_frame]
        total += float((expected.exp() * (expected - actual)).sum())
        count += len(expected)
    return total / count


def one_frame_many_times(count):
    features, _ = ragged_speech(SHORTEST)
    return [(features.expand(count, -1, -1), torch.full((count,), SHORTEST))]


@pytest.mark.parametrize("module", ["blocks.0.ff1.down", "blocks.1.ff2.down"])
def test_of_small_changes_the_fisher_tells_the_kl(model, module):
    space = Space.of(model, AXES, 4.0)
    consumer = next(c for c in consumers(list(space.axes)) if c.module == module)
    whole = identity_fold(model)
    ((_, gram),) = iterate_grams(model, whole, [consumer], one_frame_many_times(1))
    sums = fisher_sums(model, one_frame_many_times(20_000), modules=[module], seed=0)
    fisher = sums.outputs[module].double() / sums.count
    weight = whole.tensors[f"{module}.weight"].detach()
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    ratios = []
    for size in (1.0, 0.1, 0.01):
        tensors = dict(whole.tensors) | {f"{module}.weight": weight + size * change}
        moved = Folded(tensors=tensors, closed=frozenset())
        kl = output_kl(model.double(), *_doubled(whole, moved), _doubled_speech())
        model.float()
        d = size * change.double()
        second_order = torch.trace(fisher @ d @ gram[:-1, :-1] @ d.T) / 2
        ratios.append(float(second_order) / kl)

    assert ratios[2] == pytest.approx(1, abs=0.05)  # labels are drawn 20,000 times
    assert abs(ratios[2] - 1) <= abs(ratios[0] - 1)


def _doubled(*folded):
    return [
        Folded(tensors={n: t.double() for n, t in f.tensors.items()}, closed=f.closed)
        for f in folded
    ]


def _doubled_speech():
    return [(features.double(), lengths) for features, lengths in one_frame_many_times(1)]


def test_tables_rise_and_order_every_unit_once(model):
    space = Space.of(model, AXES, 4.0)
    speech = [ragged_speech(120, 90, seed=s) for s in range(3)]

    tables = list(fisher_tables(model, space, speech, seed=0))

    assert len(tables) > 4
    for table in tables:
        assert sorted(table.order.tolist()) == list(range(table.axis.size))
        assert (table.increase.diff() >= 0).all()
        assert table.increase[-1] > 0


@pytest.mark.parametrize("kind", list(FRONTEND_SPECS))
def test_every_kind_of_front_end_has_tables(kind):
    """Of convolutions an image has its channels second, of pointwise layers last."""
    model = small_model(shape=with_frontend(SHAPE, kind)).eval()
    space = Space.of(model, AXES, 4.0)
    speech = [ragged_speech(120, 90)]

    by_fisher = {table.axis.name for table in fisher_tables(model, space, speech, seed=0)}
    measured = {table.axis.name for table in measured_tables(model, space, speech, levels=2)}

    units = {axis.name for axis in space.units}
    width = {axis.name for axis in space.units if axis.kind == "width"}
    assert by_fisher == measured | width == units


def test_tables_do_not_hear_padding(model):
    space = Space.of(model, AXES, 4.0)
    features, lengths = ragged_speech(120, 90)
    longer = torch.nn.functional.pad(features, (0, 0, 0, 64))

    plain = fisher_tables(model, space, [(features, lengths)], seed=0)
    padded = fisher_tables(model, space, [(longer, lengths)], seed=0)

    for a, b in zip(plain, padded, strict=True):
        assert torch.allclose(a.increase, b.increase, rtol=1e-3)


def test_measured_tables_of_one_unit_a_level_measure_the_refitted_model(model):
    """The oracle is the whole model with the consumer's columns replaced, from the features on."""
    space = Space.of(model, AXES, 4.0)
    speech = [ragged_speech(120, 90, seed=s) for s in range(2)]

    tables = list(measured_tables(model, space, speech, levels=3))

    whole = identity_fold(model)
    by_axis = {c.axis.name: c for c in consumers(list(space.axes))}
    assert {table.axis.name for table in tables} == {
        axis.name for axis in space.units if axis.kind != "width"
    }
    for table in tables:
        consumer = by_axis[table.axis.name]
        ((_, gram),) = iterate_grams(model, whole, [consumer], speech)
        increases = []
        for count in table.counts.tolist():
            changed = refitted_consumer(whole.tensors, consumer, gram, table.order[:count])
            moved = Folded(tensors={**whole.tensors, **changed}, closed=frozenset())
            increases.append(output_kl(model, whole, moved, speech))
        expected = torch.tensor(increases).double().cummax(0).values
        torch.testing.assert_close(table.increase, expected, rtol=1e-3, atol=1e-7)


def test_a_module_as_a_whole_is_measured_with_its_gate_closed(model):
    """The oracle is the whole model with the gate closed, from the features on."""
    space = Space.of(model, ["module"], 4.0)
    speech = [ragged_speech(90, 60)]

    tables = list(all_tables(model, space, speech, Settings(), seed=0))

    assert [table.axis.name for table in tables] == [axis.name for axis in space.units]
    whole = identity_fold(model)
    for table in tables:
        moved = fold(named_tensors(model), model.axes(), {table.axis.name: torch.zeros(1)})
        kl = output_kl(model, whole, moved, speech)
        assert float(table.increase[0]) == pytest.approx(kl, rel=1e-3, abs=1e-9)


def test_an_axis_that_can_lose_nothing_has_no_table(model):
    choice = {"frontend.sub2": torch.tensor([1.0, 0, 0, 0, 0])}
    narrow = extract(model, choice).eval()
    space = Space.of(narrow, AXES, 4.0)

    for kind in ("fisher", "measured"):
        settings = Settings(tables=kind, levels=2)
        tables = all_tables(narrow, space, [ragged_speech(120, 90)], settings, seed=0)
        names = {table.axis.name for table in tables}
        assert names == {axis.name for axis in space.units} - {"frontend.sub2"}


def test_prices_never_fall_along_the_order_and_sum_to_the_table():
    axis = next(a for a in small_model().axes() if a.kind == "inner")
    order = torch.randperm(axis.size, generator=torch.Generator().manual_seed(0))
    increase = torch.tensor([0.5, 0.6, 0.7, 2.0]).double()
    counts = torch.tensor([1, 3, 4, axis.size])
    table = SensitivityTable(axis=axis, order=order, counts=counts, increase=increase)

    prices = unit_prices(table)[order]

    assert (prices.diff() > 0).all()
    assert float(prices.sum()) == pytest.approx(2.0, rel=1e-4)


def test_units_beyond_the_last_level_must_stay():
    axis = next(a for a in small_model().axes() if a.kind == "inner")
    order = torch.arange(axis.size)
    table = SensitivityTable(
        axis=axis, order=order, counts=torch.tensor([2]), increase=torch.tensor([0.1]).double()
    )

    prices = unit_prices(table)

    assert prices[2:].isinf().all()
    assert prices[:2].isfinite().all()


def test_scores_are_prices_for_the_share_of_the_resource(model):
    space = Space.of(model, AXES, 4.0)
    tables = list(fisher_tables(model, space, [ragged_speech(90, 60)], seed=0))

    flops, params = (table_scores(space, tables, resource) for resource in ("flops", "params"))

    assert flops.keys() == params.keys() == {table.axis.name for table in tables}
    assert any(not torch.allclose(flops[name], params[name]) for name in flops)


@pytest.mark.parametrize("rank", [3, None])
def test_ranks_of_factors_are_units_like_others(model, rank):
    """At full rank a factor's unit takes nothing, as the product is no larger: it has no score."""
    whole = factorize(model)
    ranks = [axis for axis in whole.axes() if axis.kind == "rank"]
    cut = {a.name: (torch.arange(a.size) < (rank or a.size)).float() for a in ranks}
    factored = extract_factored(whole, cut).eval()
    space = Space.of(factored, [*AXES, "rank"], 4.0)
    speech = [ragged_speech(120, 90, seed=s) for s in range(2)]

    tables = list(fisher_tables(factored, space, speech, seed=0))
    scores = table_scores(space, tables, "flops")

    assert {table.axis.name for table in tables} == {axis.name for axis in space.units}
    assert any(name.endswith(".rank") for name in scores) == (rank is not None)
    choice = choose(space, scores, Budget(keep=0.6, resource="flops"), is_filled=True)
    small = extract_and_reconstruct(factored, {}, choice, how="sequential", speech=speech)
    cost = space.dense_cost(small)
    assert cost.flops == space.choice_cost(choice).flops
    assert space.sparsity(cost, "flops") >= 0.4
