"""Tables by the Fisher information; of the residual width: its readers, and what they miss."""

import torch

from core.conformer.masking import named_tensors
from core.pruning.fisher import label_gradients, watch_outputs
from core.pruning.fisher_tables import WIDTH_WEIGHT, fisher_tables, reader_norms
from core.pruning.space import Space
from core.testing import ragged_speech, small_model


def width_of(model):
    return next(axis for axis in model.axes() if axis.kind == "width")


def width_table(model, speech):
    (table,) = fisher_tables(model, Space.of(model, ["width"], 4.0), speech, seed=0)
    return table


def speech():
    return [ragged_speech(120, 90, seed=seed) for seed in range(3)]


def test_every_layer_that_reads_the_width_reads_it_from_a_norm_of_the_list():
    """The columns of the width are those of the readers, and each reader's module has a norm."""
    model = small_model().eval()
    columns = {s.tensor for s in width_of(model).slices if s.dim == 1}
    names = {id(module): name for name, module in model.named_modules()}
    read_from = {names[id(norm)].rpartition(".")[0] for norm in reader_norms(model)[:-1]}

    modules = {tensor.removesuffix(".weight").rpartition(".")[0] for tensor in columns}

    assert modules - {""} == read_from  # the head is in no module; the last norm is its own
    assert names[id(reader_norms(model)[-1])] == f"blocks.{len(model.blocks) - 1}.norm"


def test_without_any_unit_every_reader_gives_its_mean_and_the_table_says_what_that_costs():
    """At the last level only biases are left, so each reader's error is its variance."""
    model = small_model().eval()
    axis = width_of(model)

    table = width_table(model, speech())

    norms, frames = reader_norms(model), 0
    inputs, gradients = [[] for _ in norms], [[] for _ in norms]
    for outputs, grads, is_frame, _ in label_gradients(
        model, speech(), lambda: watch_outputs(norms), seed=0
    ):
        frames += int(is_frame.sum())
        for number in range(len(norms)):
            inputs[number].append(outputs[number].detach()[is_frame].double())
            gradients[number].append(grads[number][is_frame].double())
    expected = 0.0
    for x, g in zip(map(torch.cat, inputs), map(torch.cat, gradients), strict=True):
        centered = x - x.mean(0)
        products = g.T @ g / frames
        expected += (
            WIDTH_WEIGHT * 0.5 * float(torch.trace(products @ centered.T @ centered)) / frames
        )
    assert abs(float(table.increase[-1]) / expected - 1) < 1e-3
    assert sorted(table.order.tolist()) == list(range(axis.size))
    assert (table.increase.diff() >= 0).all()


def test_a_unit_that_nobody_reads_goes_first_and_costs_nothing():
    model = small_model().eval()
    with torch.no_grad():
        for piece in (s for s in width_of(model).slices if s.dim == 1):
            named_tensors(model)[piece.tensor][:, 5] = 0

    table = width_table(model, speech())

    assert int(table.order[0]) == 5
    assert float(table.increase[0]) < 1e-6 * float(table.increase[-1])


def test_padding_is_not_looked_at():
    model = small_model().eval()
    padded = [(torch.nn.functional.pad(f, (0, 0, 0, 64)), n) for f, n in speech()]

    plain = width_table(model, speech())
    other = width_table(model, padded)

    assert torch.allclose(plain.increase, other.increase, rtol=1e-3)
    assert Space.of(model, ["width"], 4.0).units[0].size == len(plain.order)
