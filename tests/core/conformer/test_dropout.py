"""Dropout keeps the mean, drops the share it says, and is repeated by a seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.conformer.dropout import add_with_dropout, dropout_multiplier, dropped_bytes
from core.testing import ragged_speech, small_model

PROBABILITIES = (0.05, 0.1, 0.5, 0.9)


@given(st.floats(0, 1, exclude_max=True))
def test_the_probability_is_the_one_asked_for_to_a_256th_and_never_all(dropout):
    assert dropped_bytes(dropout) / 256 == pytest.approx(dropout, abs=1 / 256)
    assert dropped_bytes(dropout) < 256


@pytest.mark.parametrize("dropout", PROBABILITIES)
def test_as_many_are_dropped_as_the_probability_says(dropout):
    torch.manual_seed(0)
    ones = torch.ones(1_000_003)  # no multiple of the bytes of a draw

    share = float((dropout_multiplier(ones, dropout) == 0).float().mean())

    # Five standard deviations of the mean of so many coins.
    assert share == pytest.approx(dropped_bytes(dropout) / 256, abs=5 * 0.5 / 1000)


@pytest.mark.parametrize("dropout", PROBABILITIES)
def test_what_is_kept_is_scaled_so_that_the_mean_stays(dropout):
    values = dropout_multiplier(torch.ones(10_000), dropout).unique()

    realised = dropped_bytes(dropout) / 256
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - realised)]))


def test_neighbours_drop_independently_wherever_they_stand_in_a_draw():
    torch.manual_seed(0)
    is_dropped = (dropout_multiplier(torch.ones(80_000, 8), 0.5) == 0).double()

    torch.testing.assert_close(
        is_dropped.mean(0), torch.full((8,), 0.5).double(), atol=0.01, rtol=0
    )
    correlations = torch.corrcoef(is_dropped.T)
    torch.testing.assert_close(correlations, torch.eye(8).double(), atol=0.02, rtol=0)


def test_the_gradient_passes_where_the_value_did():
    torch.manual_seed(0)
    x, y = torch.randn(3, 40), torch.randn(3, 40).requires_grad_()

    out = add_with_dropout(x, y, share=0.5, dropout=0.3)
    out.sum().backward()

    torch.testing.assert_close(out.detach(), x + y.grad * y.detach())
    torch.testing.assert_close(y.grad.unique(), torch.tensor([0.0, 0.5 * 256 / (256 - 77)]))


def test_a_seed_repeats_what_is_dropped():
    def drawn():
        torch.manual_seed(7)
        return [dropout_multiplier(torch.ones(1001), 0.2) for _ in range(2)]

    first, again = drawn(), drawn()

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_sum_has_the_type_of_what_flows_past(dtype):
    x, y = torch.zeros(5), torch.ones(5, dtype=dtype)

    assert add_with_dropout(x, y, share=1.0, dropout=0.1).dtype == x.dtype


def test_without_dropout_a_share_is_added():
    x, y = torch.randn(2, 5)

    torch.testing.assert_close(add_with_dropout(x, y, share=0.5, dropout=0.0), x + 0.5 * y)


def test_an_evaluated_model_drops_nothing_and_draws_nothing():
    model = small_model()
    speech = ragged_speech(90, 40)
    wanted = model(*speech).logits
    before = torch.get_rng_state()

    model.set_dropout(0.5)
    model.eval()

    assert torch.equal(model(*speech).logits, wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_model_drops():
    model = small_model()
    model.set_dropout(0.5)
    model.train()
    speech = ragged_speech(90, 40)

    assert not torch.equal(model(*speech).logits, model(*speech).logits)
