"""Self-attention with relative positions (Dai et al., 2019), heads as units.

score(i, j) = ((q_i + u) k_j + (q_i + v) p_(i-j)) / sqrt(K), where p is a projected table of sines.
Values are mixed by softmax of the scores, or by estimates of it in linear time.

Shapes: B batch, T frames, D width, P width of the table, H heads, K head width, A = H K, R = 2 T -
1 distances.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Number, Slice, UnitCounts
from core.conformer.factored import (
    Linear,
    column_slice,
    linear,
    rank_axes,
    row_slices,
    saved_entries,
)
from core.conformer.feedforward import module_axis
from core.conformer.linear_attention import LinearMixing
from core.conformer.norm import LayerNorm, in_autocast

TRAINING_ROWS, INFERENCE_ROWS = 64, 128
"""Rows of scores computed at a time on a CPU; without gradients, fewer calls are faster."""
LONG = 512
"""Frames, 20 s, up to which all rows are computed at once: larger tables leave the caches. At the
lengths for which costs are stated, the computation is therefore the one that is counted."""


class Attention(nn.Module):
    """The attention module of a block; its units are heads."""

    linear: LinearMixing | None

    def __init__(
        self,
        *,
        width: int,
        position_width: int,
        heads: int,
        head_width: int,
        name: str,
        ranks: Mapping[str, int],
        linear_features: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.head_width = head_width
        self.norm = LayerNorm(width, name=f"{name}.norm")
        inside = heads * head_width
        self.query = linear(f"{name}.query", width, inside, ranks)
        self.key = linear(f"{name}.key", width, inside, ranks)
        self.value = linear(f"{name}.value", width, inside, ranks)
        # Without a bias b: it would add the same (q_i + v) b to every score of row i, which softmax
        # ignores.
        self.position = linear(f"{name}.position", position_width, inside, ranks, has_bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, head_width))
        self.position_bias = nn.Parameter(torch.zeros(heads, head_width))
        self.output = linear(f"{name}.output", inside, width, ranks)
        self.linear = None
        if linear_features:
            self.linearize(linear_features)

    def linearize(self, features: int) -> None:
        """Switch to linear time, with this number of random features, which are sampled here.

        Raises:
            ValueError: if the table of positions or the number of features is odd.
        """
        if features % 2:
            raise ValueError(
                f"features of linear attention must be an even number, but are {features} instead"
            )
        width = self.position.in_features
        if width % 2:
            raise ValueError(
                "the table of positions must have an even width for linear attention,"
                f" but has {width} instead"
            )
        mixing = LinearMixing(head_width=self.head_width, position_width=width, features=features)
        self.linear = mixing.to(device=self.content_bias.device, dtype=self.content_bias.dtype)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        distances: Float[Tensor, "distances position_width"],
    ) -> Float[Tensor, "batch time width"]:
        x = in_autocast(self.norm(x))
        # (H, B, T, K). Heads come first, so that the utterances of a batch, which share the table,
        # are rows of one product per head.
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        # The u and v of the formula above; here `v` holds the values.
        u, w = (b[:, None, None].to(q.dtype) for b in (self.content_bias, self.position_bias))
        if self.linear is not None:
            mixed = self._in_linear_time(
                of_content=q + u,
                of_position=q + w,
                k=k,
                v=v,
                is_frame=is_frame,
                distances=distances,
            )
        else:
            p = self._heads(self.position(distances)[None])[:, 0]  # (H, R, K)
            mixed = softmax_attention(
                of_content=q + u,
                of_position=q + w,
                k=k,
                v=v,
                p=p,
                is_frame=is_frame,
                rows=self._rows(x),
            )
        return self.output(mixed.permute(1, 2, 0, 3).flatten(2))  # (B, T, A)

    def _heads(self, x: Float[Tensor, "batch time all"]) -> Float[Tensor, "heads batch time head"]:
        """Split into as many heads as the tensor has: narrowed weights need no other code."""
        return x.unflatten(-1, (-1, self.head_width)).permute(2, 0, 1, 3)

    def _rows(self, x: Float[Tensor, "batch time width"]) -> int:
        """Return how many rows of scores are computed at a time; a compiled graph computes all."""
        time, is_free = x.shape[1], x.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_free and self.training:
            return TRAINING_ROWS
        return INFERENCE_ROWS if is_free and time > LONG else time

    def _in_linear_time(
        self,
        *,
        of_content: Float[Tensor, "heads batch time head"],
        of_position: Float[Tensor, "heads batch time head"],
        k: Float[Tensor, "heads batch time head"],
        v: Float[Tensor, "heads batch time head"],
        is_frame: Bool[Tensor, "batch time"],
        distances: Float[Tensor, "distances position_width"],
    ) -> Float[Tensor, "heads batch time head"]:
        assert self.linear is not None
        assert isinstance(self.position, nn.Linear), "the position layer must not be factored"
        # (q + v) (W r) = (W^T (q + v)) r: with the projection on the queries' side, keys hold plain
        # sines and cosines, in which a difference of positions splits into products.
        p = self.position.weight.unflatten(0, (-1, 1, self.head_width))  # (H, 1, K, P)
        queries = torch.cat((of_content, of_position @ p), dim=-1) / math.sqrt(self.head_width)
        q, k, v = (x.transpose(0, 1) for x in (queries, k, v))  # (B, H, T, ...)
        return self.linear(q, k, v, distances, is_frame).transpose(0, 1)

    def _layers(self) -> dict[str, Linear]:
        names = ("query", "key", "value", "position", "output")
        return {f"{self.name}.{name}": getattr(self, name) for name in names}

    def axes(self) -> list[Axis]:
        k, (*projections, (output, last)) = self.head_width, self._layers().items()
        # Heads of width 64, head 1 closed: rows 64 to 127 of query, key, value and position leave,
        # row 1 of both biases, and columns 64 to 127 of output.
        heads = Axis(
            name=f"{self.name}.head",
            kind="head",
            size=self.content_bias.shape[0],
            parent=self.name,
            slices=(
                *(
                    piece
                    for name, layer in projections
                    for piece in row_slices(name, layer, block=k)
                ),
                Slice(tensor=f"{self.name}.content_bias", dim=0),
                Slice(tensor=f"{self.name}.position_bias", dim=0),
                column_slice(output, last, block=k, is_scaled=True),
            ),
        )
        return [module_axis(self.name, output, last), heads, *rank_axes(self._layers())]

    def width_slices(self) -> tuple[Slice, ...]:
        readers = {"query": self.query, "key": self.key, "value": self.value}
        return (
            *self.norm.width_slices(),
            *(column_slice(f"{self.name}.{name}", layer) for name, layer in readers.items()),
            *row_slices(f"{self.name}.output", self.output, is_scaled=True),
        )

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        d, heads = counts["width"], counts[f"{self.name}.head"]
        a, p, t = self.head_width * heads, self.position.in_features, lengths.frames
        # A product over t frames costs 2 FLOPs a weight and frame; that of the table has r
        # distances.
        of_frames = sum(
            (
                saved_entries(counts, f"{self.name}.{name}", d, a)
                for name in ("query", "key", "value")
            ),
            start=saved_entries(counts, f"{self.name}.output", a, d),
        )
        of_distances = saved_entries(counts, f"{self.name}.position", p, a)
        # Weights 4 d a + p a; biases 3 a of q, k, v and d of o; u and v 2 a; the norm 2 d.
        whole = Cost(
            params=4 * d * a + p * a + 5 * a + 3 * d,
            flops=8 * t * d * a + self._mixing_flops(heads, t),
        )
        r = 2 * t - 1
        less = Cost(params=of_frames + of_distances, flops=2 * t * of_frames + 2 * r * of_distances)
        return counts[self.name] * (whole + (-1) * less)

    def _mixing_flops(self, heads: Number, time: int) -> Number:
        if self.linear is not None:
            return self.linear.flops(heads, time)
        a, p, r = self.head_width * heads, self.position.in_features, 2 * time - 1
        # The table's projection; content scores and mixing; position scores.
        return 2 * r * p * a + 4 * time * time * a + 2 * time * r * a


def softmax_attention(
    *,
    of_content: Float[Tensor, "heads batch time head"],
    of_position: Float[Tensor, "heads batch time head"],
    k: Float[Tensor, "heads batch time head"],
    v: Float[Tensor, "heads batch time head"],
    p: Float[Tensor, "heads distances head"],
    is_frame: Bool[Tensor, "batch time"],
    rows: int,
) -> Float[Tensor, "heads batch time head"]:
    """Mix values by softmax of the scores of both queries, a number of rows at a time.

    A few rows fit into the caches and need few distances; for all rows at once, half of the
    position scores are never used, but fewer calls are made.

    Args:
        of_content: queries with the content bias, q + u.
        of_position: queries with the position bias, q + v.
        k: keys.
        v: values.
        p: the projected table of distances T - 1 to -(T - 1).
        is_frame: whether each frame is real, not padding.
        rows: of scores at a time.
    """
    heads, batch, time, head_width = k.shape
    scale = 1 / math.sqrt(head_width)
    keys, values = k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
    # `alpha` below scales content scores alone, so position scores are scaled through the table.
    to_distances = (scale * p).transpose(1, 2)  # (H, K, R)
    # A finite floor keeps rows without any real frame finite.
    floor = torch.finfo(k.dtype).min
    bias = torch.zeros_like(is_frame, dtype=k.dtype).masked_fill(~is_frame, floor)
    # Row h B + b belongs to head h and utterance b, as in `k.flatten(0, 1)`.
    bias = bias.repeat(heads, 1)[:, None]  # (H B, 1, T)
    mixed, end = [], 0
    parts = zip(of_content.split(rows, 2), of_position.split(rows, 2), strict=True)
    for content, position in parts:
        end += content.shape[2]
        # The distances from its last row to the first frame, up to its first row to the last frame.
        # Example: T = 5 and rows 2 and 3, so `end` is 4: columns 1 to 6, the distances 3 to -2.
        met = to_distances[:, :, time - end : 2 * time - 1 - end + content.shape[2]]
        # All utterances use the same distances, so they are rows of one product.
        positions = position.flatten(1, 2) @ met  # (H, B rows, T + rows - 1)
        scores = torch.baddbmm(
            relative_shift(positions.view(heads * batch, content.shape[2], -1)),
            content.flatten(0, 1),
            keys,
            alpha=scale,
        )  # (H B, rows, T)
        mixed.append(F.softmax(scores.add_(bias), dim=-1) @ values)
    return torch.cat(mixed, dim=1).unflatten(0, (heads, batch))


def relative_shift(
    scores: Float[Tensor, "pairs rows distances"],
) -> Float[Tensor, "pairs rows time"]:
    """Turn columns of distances into columns of frames.

    Row i of N holds frame j at column N - 1 - i + j: the last row begins at the first column, each
    row above one column later. With N = T = 3 and columns of the distances 2, 1, 0, -1, -2:

        row 0:  2  1 [0 -1 -2]
        row 1:  2 [1  0 -1] -2
        row 2: [2  1  0] -1 -2
    """
    pairs, rows, distances = scores.shape
    time = distances - rows + 1
    if torch.compiler.is_exporting():  # exported graphs have no strides
        # One 0 before each row (z), and all numbers but the first N read as rows of R again: the
        # example becomes (0 -1 -2 z 2), (1 0 -1 -2 z) and (2 1 0 -1 -2).
        padded = F.pad(scores, (1, 0)).view(pairs, distances + 1, rows)
        return padded[:, 1:].reshape(pairs, rows, distances)[:, :, :time]
    # Row i begins at flat index i R + N - 1 - i = (N - 1) + i (R - 1): 2, 6 and 10 in the example.
    strides = (rows * distances, distances - 1, 1)
    return scores.contiguous().as_strided((pairs, rows, time), strides, rows - 1)


def distance_table(
    time: int, width: int, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "distances width"]:
    """Return sines and cosines, interleaved, of the distances T - 1 down to -(T - 1).

    Args:
        time: T, the number of frames.
        width: of the table.
        device: of the table.
        dtype: of the table.
    """
    # In fp64: with angles in fp32, entries would be wrong by up to 8e-5 in 60 s of speech and by
    # 4e-4 in 6 min.
    distances = torch.arange(time - 1, -time, -1, device=device, dtype=torch.float64)
    rates = torch.exp(
        torch.arange(0, width, 2, device=device, dtype=torch.float64) * (-math.log(1e4) / width)
    )
    angles = distances[:, None] * rates
    # Distance 2 at width 4: sin 2, cos 2, sin 0.02, cos 0.02. An odd width lacks the last cosine.
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return table[:, :width].to(dtype)
