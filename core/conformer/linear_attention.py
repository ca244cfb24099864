"""Attention in linear time by positive random features (FAVOR+; Choromanski et al., 2021).

exp(q k) is the mean over normal w of exp(w q - |q|^2 / 2) exp(w k - |k|^2 / 2). With a few samples
of w, sums over keys do not depend on the query: T frames cost T, not T^2. Each w is used with its
opposite, which makes two features of one product.

Relative positions use the same product. The table holds sines and cosines, and those of a
difference are sums of products: (q_i + v) p_(i-j) = b_i e_j, where e_j is the table's row of
distance j and b_i = W_p^T (q_i + v) turned by i. So queries are (q_i + u, b_i) and keys (k_j, e_j),
and a model trained with softmax is approximated with its positions. Rotary positions, or none, are
cheaper, but do not approximate it: on a trained teacher with 64 features, before any tuning, they
had about twice the word errors.

Softmax is invariant to some transformations, which are chosen so that features vary least. Keys
lose their mean over frames; queries lose theirs, which becomes a weight of each key; and each
dimension is scaled so that queries and keys vary alike.

Shapes: B batch, T frames, H heads, K head width, P width of the table, E = K + P, M features, R = 2
T - 1 distances.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.axes import Number


class LinearMixing(nn.Module):
    """Mixes values by estimates of the softmax weights.

    Directions are sampled once and stay the same in tuning, export and inference.
    """

    directions: Tensor

    def __init__(self, *, head_width: int, position_width: int, features: int) -> None:
        super().__init__()
        self.head_width, self.position_width = head_width, position_width
        self.register_buffer(
            "directions", orthogonal_directions(features // 2, head_width + position_width)
        )

    def forward(
        self,
        query: Float[Tensor, "batch heads time both"],
        key: Float[Tensor, "batch heads time head"],
        value: Float[Tensor, "batch heads time head"],
        distances: Float[Tensor, "distances position_width"],
        is_frame: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch heads time head"]:
        """Mix values.

        Args:
            query: q + u and W_p^T (q + v), concatenated and scaled as for softmax.
            key: of each frame.
            value: of each frame.
            distances: the table of distances T - 1 to -(T - 1).
            is_frame: whether each frame is real, not padding.
        """
        positions = distances[: query.shape[2]].flip(0)  # (T, P), of 0 up to T - 1
        content, position = query.split((self.head_width, self.position_width), dim=-1)
        q = torch.cat((content, rotate_coefficients(position, positions)), dim=-1)
        k = torch.cat((key, positions.expand(*key.shape[:2], -1, -1)), dim=-1)  # (B, H, T, E)
        on_queries, on_keys = self._features(q, k, is_frame[:, None, :, None])
        # (M, T) (T, K): sums over keys come first, so no T x T matrix is ever made.
        mixed = on_queries @ (on_keys.transpose(-1, -2) @ value)
        weight = on_queries @ on_keys.sum(2).unsqueeze(-1)
        # The largest feature of a query is 1, and so is that of some key: below 1 no frame is real.
        return mixed / weight.clamp(min=1)

    def _features(
        self,
        q: Float[Tensor, "batch heads time both"],
        k: Float[Tensor, "batch heads time both"],
        is_real: Bool[Tensor, "batch 1 time 1"],
    ) -> tuple[
        Float[Tensor, "batch heads time features"], Float[Tensor, "batch heads time features"]
    ]:
        """Return the features of queries and of keys, at most 1; those of padded keys are 0."""
        q, mean, k = center_and_balance(q, k, is_real)
        # A query's own term cancels; a key's is mean k - |k|^2 / 2.
        on_keys = bidirectional_sums(k @ self.directions.T) + (k * (mean - k / 2)).sum(
            -1, keepdim=True
        )
        on_keys = on_keys.masked_fill(~is_real, torch.finfo(on_keys.dtype).min / 2)
        # Each feature is divided by the same value for all keys as it is multiplied by for queries.
        largest = on_keys.detach().amax(2, keepdim=True)
        on_queries = bidirectional_sums(q @ self.directions.T) + largest
        on_queries = on_queries - on_queries.detach().amax(-1, keepdim=True)
        return on_queries.exp(), (on_keys - largest).exp() * is_real

    def flops(self, heads: Number, time: int) -> Number:
        """Return the FLOPs of these heads."""
        features, k, p = 2 * len(self.directions), self.head_width, self.position_width
        return time * heads * flops_per_frame(features, k, p)


def flops_per_frame(features: int, head_width: int, position_width: int) -> int:
    """Return the FLOPs of one head: position queries, both features, sums over keys, weights."""
    both = head_width + position_width
    # Products of 2 FLOPs each: W_p^T (q + v); M / 2 directions of width E for queries and for keys;
    # sums over keys and their mixing, M K each; the weights. 64 features at K = 24 and P = 96:
    # 26,240.
    return (
        2 * head_width * position_width
        + 2 * features * both
        + 4 * features * head_width
        + 2 * features
    )


def bidirectional_sums(x: Float[Tensor, "*batch directions"]) -> Float[Tensor, "*batch features"]:
    return torch.cat((x, -x), dim=-1)


def center_and_balance(
    q: Float[Tensor, "batch heads time both"],
    k: Float[Tensor, "batch heads time both"],
    is_real: Bool[Tensor, "batch 1 time 1"],
) -> tuple[
    Float[Tensor, "batch heads time both"],
    Float[Tensor, "batch heads 1 both"],
    Float[Tensor, "batch heads time both"],
]:
    """Return centered queries, their mean, and centered keys, scaled so that both vary alike.

    (q + mean) k stays the same up to a term that all keys of a query share. Padding is 0 in both.
    """
    frames = is_real.sum(2, keepdim=True).clamp(min=1)
    mean = (q * is_real).sum(2, keepdim=True) / frames
    q = (q - mean) * is_real
    k = (k - (k * is_real).sum(2, keepdim=True) / frames) * is_real
    spread_q, spread_k = (x.square().sum(2, keepdim=True) + 1e-6 for x in (q, k))
    # The root of the root, as the factor acts on both: spreads of 16 and 1 become 4 and 4.
    scale = (spread_k / spread_q) ** 0.25
    return q * scale, mean * scale, k / scale


def rotate_coefficients(
    x: Float[Tensor, "*batch time width"], positions: Float[Tensor, "time width"]
) -> Float[Tensor, "*batch time width"]:
    """Turn coefficients of sines and cosines of i - j into those of sines and cosines of j.

    The row is i. By sin(i - j) = sin(i) cos(j) - cos(i) sin(j), a coefficient 1 of sin(i - j)
    becomes -cos(i) of sin(j) and sin(i) of cos(j).
    """
    of_sine, of_cosine = x[..., 0::2], x[..., 1::2]
    sine, cosine = positions[:, 0::2], positions[:, 1::2]
    pairs = (of_cosine * sine - of_sine * cosine, of_sine * sine + of_cosine * cosine)
    return torch.stack(pairs, dim=-1).flatten(-2)


def orthogonal_directions(count: int, width: int) -> Float[Tensor, "count width"]:
    """Return normal vectors, orthogonal within each block of `width`, which varies less."""
    blocks = []
    # At most `width` vectors are orthogonal; more come in independent blocks.
    for _ in range(math.ceil(count / width)):
        basis, triangle = torch.linalg.qr(torch.randn(width, width))
        blocks.append(
            basis * triangle.diagonal().sign()
        )  # without the signs, directions are not uniform
    # Rows of an orthogonal matrix have length 1; these are lengths of other normal vectors.
    lengths = torch.randn(count, width).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:count] * lengths


def crossover_frames(*, features: int, head_width: int, position_width: int) -> float:
    """Return the number of frames from which on a head costs less in linear time than by softmax.

    With softmax it costs 2 (2 t - 1) P K for its table, 4 t^2 K for scores and mixing and
    2 t (2 t - 1) K for the scores of positions.
    """
    k, p = head_width, position_width
    linear = flops_per_frame(features, k, p)
    # Softmax minus linear is a t^2 + b t + c. At 64 features, K = 24 and P = 96 it is 0 at t = 89,
    # or 3.6 s of speech.
    a, b, c = 8 * k, 4 * p * k - 2 * k - linear, -2 * p * k
    return (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
