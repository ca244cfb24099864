"""Attention in linear time estimates what softmax gives, nearer with more features."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.conformer.attention import Attention, distance_table
from core.conformer.axes import Lengths
from core.conformer.linear_attention import (
    LinearMixing,
    bidirectional_sums,
    center_and_balance,
    crossover_frames,
    orthogonal_directions,
    rotate_coefficients,
)
from core.conformer.shape import BlockShape
from core.pruning.space import whole_cost
from core.testing import SHAPE, ragged_speech, small_model

K, P = 4, 6


def a_mixing(features, seed=0) -> LinearMixing:
    torch.manual_seed(seed)
    return LinearMixing(head_width=K, position_width=P, features=features).double()


def inputs(*lengths, seed=0, size=0.7):
    chance = torch.Generator().manual_seed(seed)
    time = max(lengths)

    def noise(width):
        shape = (len(lengths), 2, time, width)
        return size * torch.randn(shape, generator=chance, dtype=torch.float64)

    distances = distance_table(time, P, device=torch.device("cpu"), dtype=torch.float64)
    is_frame = torch.arange(time) < torch.tensor(lengths)[:, None]
    return noise(K + P), noise(K), noise(K), distances, is_frame


def by_softmax(query, key, value, distances, is_frame):
    """As the scores are defined: by content, and by the table's row of each distance."""
    time = key.shape[2]
    frames = torch.arange(time)
    table = distances[time - 1 - (frames[:, None] - frames)]  # (T, T, P)
    scores = query[..., :K] @ key.transpose(-1, -2)
    scores = scores + torch.einsum("bhip,ijp->bhij", query[..., K:], table)
    return scores.masked_fill(~is_frame[:, None, None], -torch.inf).softmax(-1) @ value


def test_its_error_falls_with_the_number_of_features():
    given = inputs(30, 20, size=0.2)
    real = given[-1][:, None, :, None]
    counts = (8, 32, 128, 512)

    def error(features):
        gaps = [a_mixing(features, seed)(*given) - by_softmax(*given) for seed in range(8)]
        return float((torch.stack(gaps) * real).norm())

    errors = [error(features) for features in counts]

    assert errors == sorted(errors, reverse=True)
    slope = math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert slope < -0.25


def test_it_comes_near_softmax_with_relative_positions():
    given = inputs(30, 20, size=0.2)
    query, *rest = given
    without_positions = torch.cat((query[..., :K], torch.zeros_like(query[..., K:])), dim=-1)
    real = given[-1][:, None, :, None]

    error = (a_mixing(4096)(*given) - by_softmax(*given)) * real
    share_of_positions = (by_softmax(without_positions, *rest) - by_softmax(*given)) * real

    assert error.norm() < 0.2 * share_of_positions.norm()


def test_the_mean_over_directions_of_two_features_is_the_exponential_of_a_product():
    torch.manual_seed(0)
    q, k = 0.4 * torch.randn(2, 5)

    draws = torch.stack([orthogonal_directions(5, 5) for _ in range(1500)])
    exponents = bidirectional_sums(draws @ (q + k)) - (q.square().sum() + k.square().sum()) / 2
    estimates = exponents.exp().mean(1)

    gap = (estimates.mean() - (q @ k).exp()).abs()
    assert gap < 4 * estimates.std() / len(draws) ** 0.5


def test_directions_of_a_block_are_at_right_angles():
    torch.manual_seed(0)
    directions = orthogonal_directions(7, 5).double()

    products = directions @ directions.T

    assert torch.isfinite(directions).all()
    for block in (slice(0, 5), slice(5, 7)):
        inside = products[block, block]
        torch.testing.assert_close(inside, inside.diagonal().diag(), rtol=0, atol=1e-5)


def test_turned_queries_meet_a_place_as_queries_meet_a_distance():
    _, _, _, distances, _ = inputs(9)
    torch.manual_seed(0)
    x = torch.randn(9, P, dtype=torch.float64)
    positions = distances[:9].flip(0)

    actual = rotate_coefficients(x, positions) @ positions.T

    frames = torch.arange(9)
    expected = torch.einsum("ip,ijp->ij", x, distances[8 - (frames[:, None] - frames)])
    torch.testing.assert_close(actual, expected)


def test_balancing_leaves_softmax_as_it_was_and_lowers_norms():
    query, key, _, _, is_frame = inputs(12, 7)
    q, k = 3 + 5 * query[..., :K], key - 2
    real = is_frame[:, None, :, None]

    less_q, mean, less_k = center_and_balance(q, k, real)

    def weights(q, k):
        scores = q @ k.transpose(-1, -2)
        return scores.masked_fill(~is_frame[:, None, None], -torch.inf).softmax(-1) * real

    torch.testing.assert_close(weights(less_q + mean, less_k), weights(q, k))
    spread = (less_q.square().sum(2), less_k.square().sum(2))
    torch.testing.assert_close(*spread, rtol=1e-5, atol=0)
    assert spread[0].sum() + spread[1].sum() < ((q.square() + k.square()) * real).sum()


@pytest.mark.parametrize("length", [20, 7, 1])
def test_padding_however_loud_reaches_no_frame(length):
    query, key, value, distances, is_frame = inputs(20, length)
    real = is_frame[:, None, :, None]
    query, key, value = (torch.where(real, x, 50.0) for x in (query, key, value))
    mixing = a_mixing(16)

    together = mixing(query, key, value, distances, is_frame)
    alone = mixing(
        *(x[1:, :, :length] for x in (query, key, value)),
        distances[20 - length : 19 + length],
        is_frame[1:, :length],
    )

    torch.testing.assert_close(together[1:, :, :length], alone, rtol=1e-11, atol=1e-11)


def test_weights_of_a_frame_sum_to_one_however_large_the_scores():
    query, key, value, distances, is_frame = inputs(15, 4, size=40.0)

    mixed = a_mixing(8)(query, key, torch.ones_like(value), distances, is_frame)

    real = is_frame[:, None, :, None].expand_as(mixed)
    torch.testing.assert_close(mixed[real], torch.ones_like(mixed[real]))


def test_a_gradient_reaches_every_weight_of_attention_in_linear_time():
    torch.manual_seed(0)
    attention = Attention(
        width=8, position_width=P, heads=2, head_width=K, name="a", ranks={}, linear_features=6
    )
    distances = distance_table(9, P, device=torch.device("cpu"), dtype=torch.float32)

    is_frame = torch.arange(9) < torch.tensor([[9], [5]])
    attention(torch.randn(2, 9, 8), is_frame, distances).square().sum().backward()

    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # What all queries and all keys share, softmax does not see.
        assert name == "key.bias" or (parameter.grad != 0).any(), name


def test_twice_the_frames_cost_twice_the_flops():
    mixing = a_mixing(6)

    def counted(time):
        given = inputs(time)
        with FlopCounterMode(display=False) as counter:
            mixing(*given)
        return counter.get_total_flops()

    assert counted(80) == 2 * counted(40)


def test_it_costs_less_from_the_crossover_on():
    sizes = {"head_width": SHAPE.head_width, "position_width": SHAPE.position_width}
    frames = crossover_frames(features=40, **sizes)

    def flops(linear_features, time):
        block = BlockShape(ff1=4, heads=3, channels=0, ff2=0, linear_features=linear_features)
        model = small_model(shape=replace(SHAPE, blocks=(block,)))
        seconds = (4 * time + 3) / 100
        assert Lengths.of(seconds).frames == time
        return whole_cost(model, seconds).flops

    before, after = math.floor(frames), math.ceil(frames)
    assert 1 < before < frames < after
    assert flops(40, before) > flops(0, before)
    assert flops(40, after) < flops(0, after)


def test_numbers_are_finite_in_half_precision():
    model = small_model(shape=replace(SHAPE, blocks=(replace(SHAPE.blocks[0], linear_features=6),)))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*ragged_speech(90, 40, 3))

    assert torch.isfinite(output.logits).all()


def test_features_without_their_opposites_are_refused():
    with pytest.raises(ValueError, match=r"must be an even number, but are 5 instead"):
        Attention(
            width=8, position_width=P, heads=2, head_width=K, name="a", ranks={}, linear_features=5
        )


def test_a_table_that_lacks_a_cosine_is_refused():
    with pytest.raises(ValueError, match=r"must have an even width.*but has 5 instead"):
        Attention(
            width=8, position_width=5, heads=2, head_width=K, name="a", ranks={}, linear_features=6
        )
