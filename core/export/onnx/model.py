"""A dense model rewritten for inference: it computes the same in fewer steps.

Constants are multiplied out: batch norm into the depthwise convolution, attention's scale and
biases into its projections, the factors 0.5 into the feed-forwards. Frames are rows, so that a
linear layer with its bias is one matrix product, and positions are columns, so that heads need no
transpose. The front end's channels are padded with zeros to whole vectors.

Shapes: B batch, M mel frames, T frames, N = B T rows, D width, P width of the positions, H heads, K
head width, A = H K, C channels, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import Attention, distance_table
from core.conformer.block import Block
from core.conformer.convolution import Convolution
from core.conformer.factored import Factored
from core.conformer.feedforward import FeedForward
from core.conformer.frontend import Frontend
from core.conformer.model import Conformer
from core.export.onnx.layers import (
    constant,
    matrix,
    scale_layer,
    split,
    zero_pad_convolution,
    zero_pad_inputs,
    zero_pad_layer,
)
from core.features.spec import FrontendSpec

LANES = 16
"""Floats of the widest vectors: a convolution of a multiple of it has no partial vectors."""
FINE, COARSE = 256, 256
"""The largest distance is COARSE steps of FINE frames, ahead or back: 43 minutes."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The values of a batch that all blocks use."""

    batch: int
    time: int
    is_frame: Bool[Tensor, "batch time"]
    positions: Float[Tensor, "position_width distances"]
    """Sines above cosines of the distances T, T - 1 ... -(T - 1)."""

    @property
    def present(self) -> Float[Tensor, "rows 1"]:
        return self.is_frame.to(self.positions.dtype).reshape(-1, 1)

    @property
    def floor(self) -> Float[Tensor, "batch 1 1 time"]:
        """Added to scores of padding; finite, so that rows without real frames are finite, too."""
        lowest = torch.finfo(self.positions.dtype).min / 2
        return torch.where(self.is_frame, 0.0, lowest)[:, None, None]


class FlatEncoder(nn.Module):
    """Computes what decoders read, from features and their lengths."""

    def __init__(self, model: Conformer) -> None:
        """Rewrite a dense model in evaluation mode; unchanged parts are shared with it."""
        super().__init__()
        self.frontend = _frontend(model.frontend)
        self.frontend_spec = model.shape.frontend_spec
        self.min_features = min_features(self.frontend_spec)
        self.positions = Positions(model.shape.position_width)
        self.blocks = nn.ModuleList(FlatBlock(block) for block in model.typed_blocks())
        self.eval()

    def encode(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "rows width"], tuple[int, int], Int[Tensor, " batch"]]:
        """Return frames as rows, the batch's size and time, and the frames of each utterance."""
        # A very short sound gets one frame of length 0, not an error inside the runtime.
        few: Any = torch.sym_max(
            0, self.min_features - features.shape[1]
        )  # a symbol, no int, while it is traced
        stacked = self.frontend.stack_channels(F.pad(features, (0, 0, 0, few)), num_frames)
        batch, time, _ = stacked.shape
        lengths: Tensor = self.frontend_spec.output_frames(num_frames)
        frames = Frames(
            batch=batch,
            time=time,
            is_frame=torch.arange(time, device=features.device) < lengths[:, None],
            positions=self.positions(time),
        )
        x = self.frontend.linear(stacked.flatten(0, 1))  # (N, D)
        for block in self.blocks:
            x = block(x, frames)
        return x, (batch, time), lengths.clamp(max=time)


class Inference(FlatEncoder):
    """Computes CTC's log-probabilities and their lengths from features and their lengths."""

    def __init__(self, model: Conformer) -> None:
        """Rewrite a dense model in evaluation mode; unchanged parts are shared with it.

        Raises:
            DecoderError: if it has no CTC head.
        """
        super().__init__(model)
        self.head = model.ctc_head

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Int[Tensor, " batch"]]:
        x, (batch, time), lengths = self.encode(features, num_frames)
        return self.head(x).log_softmax(-1).view(batch, time, -1), lengths


def min_features(frontend_spec: FrontendSpec) -> int:
    """Return frames of features that give a frame; 0 and 1 would be constants in an export."""
    return max(frontend_spec.shortest, 1 + 2**frontend_spec.stages)


class FlatFrontend(nn.Module):
    """Our own front end with its normalization and padded channels."""

    mean: Tensor
    rate: Tensor

    def __init__(self, frontend: Frontend, conv1: nn.Conv2d, conv2: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("mean", frontend.mean)
        self.register_buffer("rate", frontend.deviation.reciprocal())
        sub1, sub2 = conv1.out_channels, conv2.out_channels
        more1, more2 = -sub1 % LANES, -sub2 % LANES
        # 30 channels get 2 of zeros. Their outputs are relu(0) = 0, and the next layer's weights
        # for them are 0 as well.
        self.conv1 = zero_pad_convolution(conv1, more1, 0)
        self.conv2 = zero_pad_convolution(conv2, more2, more1)
        # Inputs are sorted by channel, then by mel: columns of new channels come last.
        weight = frontend.linear.weight.unflatten(1, (sub2, -1))  # (D, C, F / 4)
        self.linear = matrix(F.pad(weight, (0, 0, 0, more2)).flatten(1), frontend.linear.bias)

    def stack_channels(
        self, features: Float[Tensor, "batch mel_frames mels"], _num_frames: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time inputs"]:
        x = ((features - self.mean) * self.rate).unsqueeze(1)
        pictures = F.relu(self.conv2(F.relu(self.conv1(x))))  # (B, C, T, F / 4)
        return pictures.transpose(1, 2).flatten(2)


class Positions(nn.Module):
    """Sines and cosines of all distances, from those of coarse and of fine steps.

    sin(a + b) = sin a cos b + cos a sin b; the tables are made in double precision.
    """

    coarse: Tensor
    fine: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, width, 2).double() * (-math.log(1e4) / width))
        steps = FINE * torch.arange(COARSE, -COARSE, -1)
        for name, distances in (("coarse", steps), ("fine", -torch.arange(FINE))):
            angles = rates[:, None] * distances
            self.register_buffer(name, torch.stack((angles.sin(), angles.cos())).float())

    def forward(self, time: int) -> Float[Tensor, "position_width distances"]:
        """Return the table of the distances T, T - 1 ... -(T - 1); an odd width gets a cosine more.

        Example: T = 300 needs 2 coarse steps of 256 on each side; a distance of 300 is
        2 * 256 - 212, a coarse step of 512 and a fine one of -212.
        """
        steps = (time + FINE - 1) // FINE
        # Coarse distances 512, 256, 0 and -256 with 256 fine ones each: 512 ... -511, of which 300
        # ... -299 are returned.
        near = self.coarse[:, :, COARSE - steps : COARSE + steps, None]
        (sine, cosine), (fine_sine, fine_cosine) = near, self.fine[:, :, None]
        both = torch.cat(
            (
                sine * fine_cosine + cosine * fine_sine,
                cosine * fine_cosine - sine * fine_sine,
            )
        ).flatten(1)
        return both[:, steps * FINE - time : steps * FINE + time]


class FlatBlock(nn.Module):
    """A block on rows of frames."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_flatten_module(part) for part in block.parts())
        self.norm = block.norm

    def forward(
        self, x: Float[Tensor, "rows width"], frames: Frames
    ) -> Float[Tensor, "rows width"]:
        for part in self.parts:
            x = x + part(x, frames)
        return self.norm(x)


class FlatFeedForward(nn.Module):
    """A feed-forward module with its factor 0.5 in `down`."""

    def __init__(self, feedforward: FeedForward) -> None:
        super().__init__()
        self.norm = feedforward.norm
        self.up = feedforward.up
        self.down = scale_layer(feedforward.down, 0.5)

    def forward(
        self, x: Float[Tensor, "rows width"], _frames: Frames
    ) -> Float[Tensor, "rows width"]:
        return self.down(F.silu(self.up(self.norm(x))))


class FlatConvolution(nn.Module):
    """A convolution module with batch norm in its depthwise filter."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.norm = convolution.norm
        more = -convolution.down.in_features % LANES
        self.before, halves = split(convolution.up, 2)
        self.value, self.gate = (zero_pad_layer(half, outputs=more) for half in halves)
        self.down = zero_pad_inputs(convolution.down, more)
        norm, depthwise = convolution.batch_norm, convolution.depthwise
        assert depthwise.bias is not None
        # Batch norm of a depthwise output y + b is (y + b - mean) s + beta, where s = gamma /
        # sqrt(var + 1e-5): the filter times s, and the bias (b - mean) s + beta.
        scale = norm.weight * torch.rsqrt(norm.running_var + 1e-5)
        kernel = (depthwise.weight * scale[:, None, None])[:, :, None]  # (C, 1, 1, kernel)
        self.kernel = constant(F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, more)))
        bias = (depthwise.bias - norm.running_mean) * scale + norm.bias
        self.bias = constant(F.pad(bias, (0, more)))

    def forward(
        self, x: Float[Tensor, "rows width"], frames: Frames
    ) -> Float[Tensor, "rows width"]:
        x = self.before(self.norm(x))
        # Padding is 0 before the depthwise filter, which reads it at an utterance's last frames.
        x = self.value(x) * self.gate(x).sigmoid() * frames.present
        # As an image one pixel high, for which runtimes have fast convolutions.
        x = x.view(frames.batch, 1, frames.time, -1).permute(0, 3, 1, 2)  # (B, C, 1, T)
        reach = self.kernel.shape[-1] // 2
        x = F.conv2d(x, self.kernel, self.bias, padding=(0, reach), groups=len(self.kernel))
        return self.down(F.silu(x.permute(0, 2, 3, 1).flatten(0, 2)))


class FlatAttention(nn.Module):
    """An attention module with ONNX's attention operator."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm, self.head_width = attention.norm, attention.head_width
        # A number, not a size of a tensor: to the exporter a size can be a symbol.
        self.heads = attention.content_bias.shape[0]
        scale = 1 / math.sqrt(self.head_width)
        # (q + u) k / sqrt(K) = (q / sqrt(K) + u / sqrt(K)) k, likewise with v for positions.
        self.query = scale_layer(attention.query, scale)
        self.key, self.value, self.output = attention.key, attention.value, attention.output
        self.content_bias = constant(scale * attention.content_bias.flatten())
        self.position_bias = constant(scale * attention.position_bias.flatten())
        layer = attention.position
        pair = (layer.reduce, layer.expand) if isinstance(layer, Factored) else (layer,)
        first, *rest = (factor.weight for factor in pair)
        # `Positions` has as many cosines as sines; for an odd width the last one meets a column of
        # 0.
        even = F.pad(first, (0, first.shape[1] % 2))
        sorted_ = torch.cat((even[:, 0::2], even[:, 1::2]), dim=1)  # sines' columns first
        self.positions = nn.ParameterList(constant(weight) for weight in (sorted_, *rest))

    def forward(
        self, x: Float[Tensor, "rows width"], frames: Frames
    ) -> Float[Tensor, "rows width"]:
        x = self.norm(x)
        query = self.query(x)
        scores = self._position_scores(query + self.position_bias, frames) + frames.floor
        query = query + self.content_bias
        query, key, value = (
            rows.unflatten(0, (frames.batch, -1)) for rows in (query, self.key(x), self.value(x))
        )
        # The operator splits heads itself, and adds the position scores to its own.
        # Its mask has the shape (B, H, T, T), and its scale is 1, as the query has it already.
        mixed, *_ = torch.onnx.ops.attention(
            query,
            key,
            value,
            scores,
            q_num_heads=self.heads,
            kv_num_heads=self.heads,
            scale=1.0,
        )
        return self.output(mixed.flatten(0, 1))

    def _position_scores(
        self, query: Float[Tensor, "rows all"], frames: Frames
    ) -> Float[Tensor, "batch heads time time"]:
        """Turn scores of distances into scores of frames.

        Row i holds the distances T, T - 1 ... -(T - 1); frame j is at distance i - j, so each row
        must begin one column earlier than the one before. Without the first T numbers, rows of
        2 T - 1 do that. Example with T = 2 and the distances 2, 1, 0, -1 of each row:

            row 0:  2  1  0 -1        read from number T = 2 on, in rows of 3:
            row 1:  2  1  0 -1        [0 -1] 2 / [1  0] -1
        """
        time, positions = frames.time, frames.positions
        for weight in self.positions:
            positions = weight @ positions  # (A, 2 T)
        scores = self._heads(query, frames) @ positions.view(self.heads, -1, 2 * time)
        rows = scores.flatten(2)[..., time:].unflatten(2, (time, 2 * time - 1))
        return rows[..., :time]

    def _heads(
        self, x: Float[Tensor, "rows all"], frames: Frames
    ) -> Float[Tensor, "batch heads time head"]:
        return x.view(frames.batch, frames.time, self.heads, self.head_width).transpose(1, 2)


class FlatLinearAttention(nn.Module):
    """An attention module in linear time, unchanged."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.position_width = attention.position.in_features

    def forward(
        self, x: Float[Tensor, "rows width"], frames: Frames
    ) -> Float[Tensor, "rows width"]:
        distances = distance_table(frames.time, self.position_width, device=x.device, dtype=x.dtype)
        batched = x.view(frames.batch, frames.time, -1)
        return self.attention(batched, frames.is_frame, distances).flatten(0, 1)


def _frontend(frontend: Frontend) -> FlatFrontend | Frontend:
    """Rewrite our own front end; those of imported models are not changed."""
    match frontend.frontend_spec.subsampling_kind, *frontend.stages:
        case "conv4", nn.Conv2d() as conv1, nn.Conv2d() as conv2:
            return FlatFrontend(frontend, conv1, conv2)
    return frontend


def _flatten_module(part: nn.Module) -> nn.Module:
    match part:
        case FeedForward():
            return FlatFeedForward(part)
        case Convolution():
            return FlatConvolution(part)
        case Attention(linear=None):
            return FlatAttention(part)
        case Attention():
            return FlatLinearAttention(part)
    raise TypeError(f"{type(part).__name__} must have a form for inference, but has none.")
