"""The front end: convolutions from frames of features to fewer frames of the residual stream.

Our own front end has about 2 % of a Conformer's weights and a quarter of its FLOPs, so its channels
are gated like any other unit. Those of imported models have other convolutions.

Shapes: B batch, M frames of features, F mel bins, S frames and G bins after some stage, T frames
after the last, C channels, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts
from core.conformer.shape import Shape
from core.features.kaldi import real_frames
from core.features.spec import FrontendSpec


class Separable(nn.Module):
    """A depthwise separable convolution, without an activation between its two layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs)
        self.pointwise = nn.Linear(inputs, outputs)

    def forward(
        self, x: Float[Tensor, "batch channels frames bins"]
    ) -> Float[Tensor, "batch more_channels fewer_frames fewer_bins"]:
        # As many groups as the tensor has channels, so that narrowed weights need no other code.
        weight, bias = self.depthwise.weight, self.depthwise.bias
        x = F.conv2d(x, weight, bias, stride=2, padding=1, groups=len(weight))
        return self.pointwise(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


Stage = nn.Conv2d | Separable


class Frontend(nn.Module):
    """The front end; its units are the channels of each convolution."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: Shape, *, name: str) -> None:
        super().__init__()
        self.name = name
        self.frontend_spec: FrontendSpec = shape.frontend_spec
        channels = shape.frontend_channels
        # Channels (40, 40) make pairs (1, 40) and (40, 40): features are an image of one channel.
        for number, (before, after) in enumerate(zip((1, *channels), channels, strict=False), 1):
            self.add_module(f"conv{number}", _stage(self.frontend_spec, number, before, after))
        # 40 channels of 19 bins are 760 inputs; without convolutions, the 80 mel bins of one frame.
        self.linear = nn.Linear((1, *channels)[-1] * self.bins[-1], shape.width)
        self.register_buffer("mean", torch.zeros(shape.frontend_spec.mels))
        self.register_buffer("deviation", torch.ones(shape.frontend_spec.mels))

    @property
    def stages(self) -> list[Stage]:
        modules = [self.get_submodule(f"conv{i + 1}") for i in range(self.frontend_spec.stages)]
        return [stage for stage in modules if isinstance(stage, Stage)]

    @property
    def bins(self) -> tuple[int, ...]:
        """Mel bins of the features, and bins after each stage."""
        # Without padding 80, 39 and 19; with padding 80, 40 and 20: bins shrink as frames do.
        mels = self.frontend_spec.mels
        return (mels, *self.frontend_spec.stage_frames(mels))

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time width"]:
        return self.linear(self.stack_channels(features, num_frames))

    def stack_channels(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time inputs"]:
        """Return the inputs of the linear layer, channel-major."""
        x = ((features - self.mean) / self.deviation).unsqueeze(1)  # (B, 1, M, F)
        # Without padding in the convolutions, every output frame sees real frames alone.
        is_padded = self.frontend_spec.is_padded
        x = _zero_padding(x, num_frames) if is_padded else x
        for stage, stage_lengths in zip(
            self.stages, self.frontend_spec.stage_frames(num_frames), strict=True
        ):
            x = F.relu(stage(x))  # (B, C, S, G)
            x = _zero_padding(x, stage_lengths) if is_padded else x
        return x.transpose(1, 2).flatten(2)  # (B, T, C * G)

    def output_frames(self, num_frames: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        frames: Tensor = self.frontend_spec.output_frames(num_frames)
        return frames

    def frames_in(self, module: str, num_frames: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the number of real frames at the output of a module's stage, or of all stages."""
        stage = module.removeprefix(f"{self.name}.conv")
        if stage == module:  # outside the convolutions
            return self.output_frames(num_frames)
        # `frontend.conv2.pointwise` leaves `2.pointwise`, which is stage 2, at index 1.
        frames: Tensor = self.frontend_spec.stage_frames(num_frames)[int(stage[0]) - 1]
        return frames

    def axes(self) -> list[Axis]:
        return [
            Axis(
                name=f"{self.name}.sub{number}",
                kind="frontend",
                size=_channels(stage),
                floor=1,
                slices=(*self._producer_slices(number), *self._consumer_slices(number)),
            )
            for number, stage in enumerate(self.stages, 1)
        ]

    def _producer_slices(self, number: int) -> tuple[Slice, ...]:
        name = f"{self.name}.conv{number}"
        if isinstance(self.stages[number - 1], Separable):
            name = f"{name}.pointwise"
        return Slice(tensor=f"{name}.weight", dim=0), Slice(tensor=f"{name}.bias", dim=0)

    def _consumer_slices(self, number: int) -> tuple[Slice, ...]:
        """Return the columns of the layer that reads a stage's channels, which the gate scales."""
        if number == len(self.stages):
            # Channel-major: with 19 bins, channel c owns columns 19 c to 19 c + 18.
            name, block = f"{self.name}.linear.weight", self.bins[-1]
            return (Slice(tensor=name, dim=1, block=block, is_scaled=True),)
        name = f"{self.name}.conv{number + 1}"
        if not isinstance(self.stages[number], Separable):
            return (Slice(tensor=f"{name}.weight", dim=1, is_scaled=True),)
        return (
            # The depthwise filters keep channels apart: the pointwise layer reads them.
            Slice(tensor=f"{name}.depthwise.weight", dim=0),
            Slice(tensor=f"{name}.depthwise.bias", dim=0),
            Slice(tensor=f"{name}.pointwise.weight", dim=1, is_scaled=True),
        )

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            Slice(tensor=f"{self.name}.linear.weight", dim=0, is_scaled=True),
            Slice(tensor=f"{self.name}.linear.bias", dim=0, is_scaled=True),
        )

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        bins, d = self.bins, counts["width"]
        c = counts[f"{self.name}.sub{len(self.stages)}"] if self.stages else 1
        whole = Cost(params=(c * bins[-1] + 1) * d, flops=2 * lengths.frames * bins[-1] * (c * d))
        for number, stage in enumerate(self.stages, 1):
            before = counts[f"{self.name}.sub{number - 1}"] if number > 1 else 1
            after = counts[f"{self.name}.sub{number}"]
            # A 3x3 filter for each pair of channels, applied at S G positions. With 40 channels and
            # 10 s, the second convolution takes 2 * 249 * 19 * 9 * 40 * 40 = 136 MFLOPs.
            products = 9 * (before * after)
            params = products + after
            if isinstance(stage, Separable):
                # One 3x3 filter per input channel, then a matrix; each of the two layers has a
                # bias.
                products = 9 * before + before * after
                params = products + before + after
            positions = lengths.stages[number - 1] * bins[number]
            whole += Cost(params=params, flops=2 * positions * products)
        return whole


def _stage(frontend_spec: FrontendSpec, number: int, before: int, after: int) -> Stage:
    if frontend_spec.subsampling_kind == "dw_striding" and number > 1:
        return Separable(before, after)
    return nn.Conv2d(before, after, 3, stride=2, padding=int(frontend_spec.is_padded))


def _channels(stage: Stage) -> int:
    return stage.out_channels if isinstance(stage, nn.Conv2d) else stage.pointwise.out_features


def _zero_padding(
    x: Float[Tensor, "batch channels frames bins"], num_frames: Int[Tensor, " batch"]
) -> Float[Tensor, "batch channels frames bins"]:
    """Set frames beyond each utterance to 0, so that kernels read nothing of them."""
    is_frame = real_frames(num_frames, x.shape[2])
    return x * is_frame[:, None, :, None].to(x.dtype)
