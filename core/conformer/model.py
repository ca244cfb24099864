"""The Conformer and its decoders: front end, blocks, and a CTC head, a transducer, or both.

Sizes are taken from tensors: forward never uses the shape, so that narrowed tensors may replace the
model's own.

Shapes: B batch, M mel frames, T frames, D width, V vocabulary, blank 0.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import distance_table
from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts, total
from core.conformer.block import Block
from core.conformer.frontend import Frontend
from core.conformer.output import DecoderError, Output, frame_numbers
from core.conformer.recomputation import repeated_for_gradients
from core.conformer.shape import Shape
from core.decoders.ctc import CtcHead
from core.decoders.places import Places
from core.decoders.transducer import Transducer
from core.features.kaldi import real_frames
from core.features.spec import FrontendSpec

Decoder = CtcHead | Transducer
NOTHING: AbstractSet[str] = frozenset()
"""No closed module or block."""
NO_SKIPS: Mapping[str, Tensor] = {}


class Conformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.repeats_blocks = False
        """Whether blocks compute their results again for their gradients, instead of keeping them.
        """
        self.frontend = Frontend(shape, name="frontend")
        self.blocks = nn.ModuleList(
            Block(sizes, shape, name=f"blocks.{i}") for i, sizes in enumerate(shape.blocks)
        )
        width, vocabulary = shape.width, shape.vocabulary
        self.head = (
            CtcHead(width=width, vocabulary=vocabulary, name="head") if shape.has_ctc else None
        )
        self.transducer = (
            Transducer(shape.transducer, width=width, vocabulary=vocabulary, name="transducer")
            if shape.transducer
            else None
        )

    @property
    def frontend_spec(self) -> FrontendSpec:
        """The features that it reads, and the kind of its front end."""
        return self.shape.frontend_spec

    @property
    def mels(self) -> int:
        """Mel bins of the features."""
        return self.shape.frontend_spec.mels

    @property
    def vocabulary(self) -> int:
        """Number of tokens, blank included."""
        return self.shape.vocabulary

    @property
    def device(self) -> torch.device:
        return self.frontend.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, which its features must have."""
        return self.frontend.linear.weight.dtype

    @property
    def ctc_head(self) -> CtcHead:
        """Return the CTC head.

        Raises:
            DecoderError: if the model has none.
        """
        if self.head is None:
            raise DecoderError
        return self.head

    @property
    def decoders(self) -> list[Decoder]:
        return [decoder for decoder in (self.head, self.transducer) if decoder is not None]

    def forward(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        closed: AbstractSet[str] = NOTHING,
        tokens: Int[Tensor, "batch tokens"] | None = None,
        places: Places | None = None,
        *,
        skips: Mapping[str, Bool[Tensor, ""]] = NO_SKIPS,
    ) -> Output:
        """Compute the outputs of all decoders.

        Args:
            features: of the batch.
            num_frames: mel frames of each utterance; of numbers on the host, no step waits for the
                device.
            closed: names of modules and blocks to leave out.
            tokens: transcripts, along which a transducer gives scores.
            places: at which a transducer gives all log-probabilities.
            skips: whether blocks are to be left out, where this is known on the device alone.
        """
        on_device = num_frames.to(features.device, non_blocking=True)
        # The residual stream keeps its precision under autocast, too.
        x = self.frontend(features, on_device).to(features.dtype)
        is_frame = real_frames(self.frontend.output_frames(on_device), x.shape[1])  # (B, T)
        lengths = frames = None
        if self.training:
            output_frames = self.frontend_spec.output_frames
            lengths = tuple(int(output_frames(number)) for number in num_frames.tolist())
            numbers = torch.tensor(frame_numbers(lengths, x.shape[1]))
            frames = numbers.to(x.device, non_blocking=True)
        hidden = self.encode_blocks(x, is_frame, closed, frames=frames, skips=skips)
        # Without blocks, the decoders read the front end's frames.
        encoded = (x, *hidden)[-1]
        return Output(
            is_frame=is_frame,
            lengths=lengths,
            frames=frames,
            hidden=hidden,
            encoded=encoded,
            ctc_logits=None if self.head is None else self.head(encoded),
            lattice=None
            if self.transducer is None or tokens is None
            else self.transducer.scores(encoded, tokens),
            at_places=None
            if self.transducer is None or places is None
            else self.transducer(encoded, places),
        )

    @torch.no_grad()
    def best_places(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Places | None:
        """Return where smaller models are compared with this one; None with CTC alone."""
        if self.transducer is None:
            return None
        output = self(features, num_frames)
        return self.transducer.best_places(output.encoded, output.num_frames)

    def encode_blocks(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        closed: AbstractSet[str] = NOTHING,
        *,
        frames: Int[Tensor, " real"] | None = None,
        skips: Mapping[str, Bool[Tensor, ""]] = NO_SKIPS,
    ) -> tuple[Float[Tensor, "batch time width"], ...]:
        """Return the hidden states after each block, from the front end's frames.

        Args:
            x: the front end's frames.
            is_frame: whether each frame is real, not padding.
            closed: names of modules and blocks to leave out.
            frames: the numbers of the real frames, where they are known.
            skips: whether blocks are to be left out, where this is known on the device alone.
        """
        distances = distance_table(
            x.shape[1], self.shape.position_width, device=x.device, dtype=x.dtype
        )
        is_repeated = self.repeats_blocks and self.training and torch.is_grad_enabled()
        hidden = []
        for block in self.typed_blocks():
            if block.name not in closed:
                run = repeated_for_gradients(block) if is_repeated else block
                y = run(x, is_frame, distances, closed, frames)
                x = torch.where(skips[block.name], x, y) if block.name in skips else y
            hidden.append(x)
        return tuple(hidden)

    def set_dropout(self, probability: float) -> None:
        for block in self.typed_blocks():
            block.dropout = probability

    def set_stochastic_depth(self, last: float) -> None:
        """Let training steps skip the last block with this probability, earlier ones less."""
        for i, block in enumerate(self.typed_blocks()):
            # p l / L: a `last` of 0.4 gives four blocks 0.1, 0.2, 0.3 and 0.4.
            block.skip_probability = last * (i + 1) / len(self.blocks)

    def typed_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def axes(self) -> list[Axis]:
        """Return all axes, the residual width first."""
        width = Axis(
            name="width", kind="width", size=self.shape.width, slices=self.width_slices(), floor=8
        )
        inside = (axis for block in self.typed_blocks() for axis in block.axes())
        of_decoder = self.transducer.axes() if self.transducer else []
        return [width, *self.frontend.axes(), *inside, *of_decoder]

    def width_slices(self) -> tuple[Slice, ...]:
        return (
            *self.frontend.width_slices(),
            *(piece for block in self.typed_blocks() for piece in block.width_slices()),
            *(piece for decoder in self.decoders for piece in decoder.width_slices()),
        )

    def cost(self, counts: UnitCounts, seconds: float) -> Cost:
        """Return the cost for an utterance of this length.

        It is multilinear in the counts, but for units of an LSTM (`core/decoders/predictor.py`).
        """
        lengths = Lengths.of(seconds, self.shape.frontend_spec)
        blocks = total(block.cost(counts, lengths) for block in self.typed_blocks())
        decoders = total(decoder.cost(counts, lengths) for decoder in self.decoders)
        return self.frontend.cost(counts, lengths) + blocks + decoders
