"""The Conformer with CTC: front end, blocks, and a linear head over the vocabulary.

Sizes are those of the tensors: forward never asks the shape, so narrowed tensors may stand in for
the model's own.

Shapes: B batch, M mel frames, T frames, D width, V vocabulary, blank 0.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import distance_table
from core.conformer.axes import Axis, Cost, Kept, Lengths, Slice, total
from core.conformer.block import Block
from core.conformer.frontend import Frontend
from core.conformer.shape import Shape
from core.features.spec import FrontendSpec

NOTHING: AbstractSet[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What a forward pass gives; frames at or beyond an utterance's length mean nothing."""

    logits: Float[Tensor, "batch time vocabulary"]
    is_frame: Bool[Tensor, "batch time"]
    hidden: tuple[Float[Tensor, "batch time width"], ...]
    """After each block, also after one that was passed by."""

    @property
    def num_frames(self) -> Int[Tensor, " batch"]:
        return self.is_frame.sum(1)


class Conformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.frontend = Frontend(shape, name="frontend")
        self.blocks = nn.ModuleList(
            Block(sizes, shape, name=f"blocks.{i}") for i, sizes in enumerate(shape.blocks)
        )
        self.head = nn.Linear(shape.width, shape.vocabulary)

    @property
    def frontend_spec(self) -> FrontendSpec:
        """From which features it hears."""
        return self.shape.frontend_spec

    @property
    def vocabulary(self) -> int:
        """Tokens that it tells apart, blank included."""
        return self.head.out_features

    def forward(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        closed: AbstractSet[str] = NOTHING,
    ) -> Output:
        """`num_frames` counts mel frames; `closed` names modules and blocks to leave out."""
        # Under autocast, too, what flows past the modules keeps its digits.
        x = self.frontend(features, num_frames).to(features.dtype)
        time = torch.arange(x.shape[1], device=x.device)
        is_frame = time < self.frontend.output_frames(num_frames)[:, None]
        hidden = self.encode_blocks(x, is_frame, closed)
        return Output(logits=self.head((x, *hidden)[-1]), is_frame=is_frame, hidden=hidden)

    def encode_blocks(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        closed: AbstractSet[str] = NOTHING,
    ) -> tuple[Float[Tensor, "batch time width"], ...]:
        """What each block makes of the front end's frames."""
        distances = distance_table(
            x.shape[1], self.shape.position_width, device=x.device, dtype=x.dtype
        )
        hidden = []
        for block in self.blocks:
            if block.name not in closed:
                x = block(x, is_frame, distances, closed)
            hidden.append(x)
        return tuple(hidden)

    def set_dropout(self, probability: float) -> None:
        for block in self.typed_blocks():
            block.dropout = probability

    def set_stochastic_depth(self, last: float) -> None:
        """Let training steps pass by the last block so often, and earlier ones linearly less."""
        for i, block in enumerate(self.typed_blocks()):
            block.skip_probability = last * (i + 1) / len(self.blocks)

    def typed_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def axes(self) -> list[Axis]:
        """Everything that can be cut, the residual width first."""
        width = Axis(
            name="width", kind="width", size=self.shape.width, slices=self.width_slices(), floor=8
        )
        inside = (axis for block in self.typed_blocks() for axis in block.axes())
        return [width, *self.frontend.axes(), *inside]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.frontend.width_slices(),
            *(piece for block in self.typed_blocks() for piece in block.width_slices()),
            Slice(tensor="head.weight", dim=1),
        )

    def cost(self, kept: Kept, seconds: float) -> Cost:
        """Of one utterance of so many seconds; exact for whole counts, multilinear in them."""
        lengths = Lengths.of(seconds, self.shape.frontend_spec)
        d, v = kept["width"], self.shape.vocabulary
        head = Cost(params=(d + 1) * v, flops=2 * lengths.frames * d * v)
        blocks = total(block.cost(kept, lengths) for block in self.typed_blocks())
        return self.frontend.cost(kept, lengths) + blocks + head
