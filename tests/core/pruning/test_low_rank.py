"""Factors compute what their matrix did, and are one matrix again where that is no more."""

from dataclasses import replace

import pytest
import torch

from core.conformer.factored import Factored, saved_entries
from core.pruning.low_rank import factorize, multiply_factors, split_matrix
from core.pruning.space import whole_cost
from core.testing import SHAPE, ragged_speech, small_model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_model_of_factors_computes_what_it_did_of_matrices(dtype, tolerance):
    model = small_model().to(dtype)
    features, num_frames = ragged_speech(61, 40, dtype=dtype)

    expected = model(features, num_frames)
    actual = factorize(model)(features, num_frames)

    torch.testing.assert_close(actual.logits, expected.logits, rtol=tolerance, atol=tolerance)
    assert set(factorize(model).shape.ranks) == set(model.shape.linears())


def test_multiplied_out_it_is_the_model_again():
    model = small_model()

    again = multiply_factors(factorize(model))

    assert again.shape == model.shape
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


def test_factors_of_full_rank_cost_what_their_matrices_do():
    model = small_model()

    assert whole_cost(factorize(model), 4.0) == whole_cost(model, 4.0)


def test_directions_fall_in_their_singular_value_and_share_it_evenly():
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    reduce, expand = split_matrix(weight)

    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(expand @ reduce, weight)
    torch.testing.assert_close(reduce.square().sum(1), values)
    torch.testing.assert_close(expand.square().sum(0), values)


@pytest.mark.parametrize(("rank", "is_a_pair"), [(7, True), (8, False), (12, False)])
def test_a_pair_stays_one_only_below_its_break_even(rank, is_a_pair):
    shape = replace(SHAPE, width=16, blocks=(replace(SHAPE.blocks[0], ff1=16),))
    model = small_model(shape=replace(shape, ranks={"blocks.0.ff1.up": rank}))

    layer = multiply_factors(model).blocks[0].ff1.up

    assert isinstance(layer, Factored) == is_a_pair
    least = min(rank * (16 + 16), 16 * 16)
    assert sum(p.numel() for p in layer.parameters()) == least + 16
    assert 16 * 16 - saved_entries({"up.rank": rank}, "up", 16, 16) == least
