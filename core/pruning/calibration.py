"""Inputs of a model's layers over calibration speech, computed one part at a time.

A part is the front end or a block. Between two parts only the residual stream is held, and inside a
part the sums of its own layers: memory does not grow with the depth. Ten minutes of speech at 80 ms
a frame and a width of 1,024 are a stream of 31 MB, and the sums of a block with 4,096 inner units
are 2 x 134 MB.

Shapes: N frames, I inputs of a consumer, M mel frames.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import distance_table
from core.conformer.axes import Axis, Slice
from core.conformer.masking import Folded
from core.conformer.model import Conformer
from core.decoders.places import Places
from core.environment import return_freed_memory
from core.pruning.least_squares import GramSum
from core.pruning.space import Space

Calibration = Iterable[tuple[Float[Tensor, "_ _ mels"], Int[Tensor, " _"]]]
"""Batches of features and their numbers of mel frames: speech without its words, iterated over
several times."""
FRONTEND = "frontend"
DECODER = "decoder"
"""The part behind the last block; it does not change the residual stream."""
Watch = Callable[[Int[Tensor, " batch"]], AbstractContextManager[None]]
"""Called with a batch's numbers of mel frames; inside the context the batch passes a part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumer:
    """A module that reads the units of an axis."""

    axis: Axis
    piece: Slice

    @property
    def module(self) -> str:
        return self.piece.tensor.removesuffix(".weight")

    @property
    def part(self) -> str:
        """The front end or the block in which it lies, such as `blocks.3`."""
        return part_of(self.module)


def part_of(name: str) -> str:
    """Return the part in which a module or an axis lies: the front end, a block, or the decoder."""
    names = name.split(".")
    if names[0] == "blocks":
        return ".".join(names[:2])
    return FRONTEND if names[0] == FRONTEND else DECODER


def consumers(axes: list[Axis]) -> list[Consumer]:
    """Return the modules whose columns a gate scales; the residual width has none of its own.

    Those of a transducer are not among them: they are read at places, not at frames.
    """
    return [
        Consumer(axis=axis, piece=piece)
        for axis in axes
        for piece in axis.slices
        if piece.is_scaled
        and piece.dim == 1
        and axis.kind != "width"
        and not axis.name.startswith("transducer.")
    ]


def _watch_nothing(num_frames: Int[Tensor, " batch"]) -> AbstractContextManager[None]:
    del num_frames
    return nullcontext()


def prunable_consumers(space: Space) -> list[Consumer]:
    """Return the consumers of the axes that may lose units."""
    names = {axis.name for axis in space.units}
    return [c for c in consumers(list(space.axes)) if c.axis.name in names]


def comparison_places(model: Conformer, speech: Calibration) -> list[Places]:
    """Return for each batch where a transducer is compared; none for CTC, at no pass."""
    if model.transducer is None:
        return []
    by_batch = (model.best_places(*batch) for batch in speech)
    return [places for places in by_batch if places is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    num_frames: Int[Tensor, " batch"]
    is_frame: Bool[Tensor, "batch time"]
    x: Float[Tensor, "batch time width"]
    distances: Float[Tensor, "distances position_width"]


@dataclass(kw_only=True, slots=True)
class ResidualStreams:
    """The residual streams of a model over some speech, moved through it part by part."""

    model: Conformer
    folded: Folded
    speech: Calibration
    places: Sequence[Places] = ()
    """Of each batch: where a transducer is compared; none for CTC."""
    _batches: list[_Batch] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Names of the front end and of the blocks, in order of computation."""
        return [FRONTEND, *(block.name for block in self.model.typed_blocks())]

    @torch.no_grad()
    def advance(self, part: str, watch: Watch = _watch_nothing) -> None:
        """Move all batches through a part, the front end first.

        Args:
            part: one of `parts`, the next one.
            watch: entered for each batch.
        """
        self._batches = list(self._outputs(part, self.folded.tensors, watch))

    @torch.no_grad()
    def watch(self, part: str, watch: Watch) -> None:
        """Compute the next part for all batches, but stay in front of it."""
        for _ in self._outputs(part, self.folded.tensors, watch):
            pass

    @torch.no_grad()
    def log_probs(
        self, part: str, changed: Mapping[str, Tensor]
    ) -> list[Float[Tensor, "frames vocabulary"]]:
        """Return each batch's log-probabilities at frames or places, computed from a part on.

        Args:
            part: the next one, or `DECODER` behind the last block.
            changed: tensors that stand in for the model's own.
        """
        tensors = {**self.folded.tensors, **changed}
        parts = [*self.parts, DECODER]
        later, log_probs = parts[parts.index(part) + 1 : -1], []
        for number, batch in enumerate(self._outputs(part, tensors, _watch_nothing)):
            x = batch.x
            for name in later:
                x = self._block(name, replace(batch, x=x), tensors)
            places = self.places[number] if self.places else None
            log_probs.append(self._decode(x, batch.is_frame, places, tensors))
        return log_probs

    def _decode(
        self,
        x: Float[Tensor, "batch time width"],
        is_frame: Bool[Tensor, "batch time"],
        places: Places | None,
        tensors: Mapping[str, Tensor],
    ) -> Float[Tensor, "distributions outputs"]:
        if places is None:
            logits = F.linear(x[is_frame], tensors["head.weight"], tensors["head.bias"])
            return logits.float().log_softmax(-1)
        decoder = self.model.transducer
        assert decoder is not None
        own = _own_tensors(tensors, decoder.name)
        output: Tensor = torch.func.functional_call(decoder, own, (x, places))
        return output

    def _outputs(self, part: str, tensors: Mapping[str, Tensor], watch: Watch) -> Iterator[_Batch]:
        if part == FRONTEND:
            for features, num_frames in self.speech:
                with watch(num_frames):
                    batch = self._enter(features, num_frames, tensors)
                yield batch
            return
        if part == DECODER:
            yield from self._batches
            return
        for batch in self._batches:
            with watch(batch.num_frames):
                x = self._block(part, batch, tensors)
            yield replace(batch, x=x)

    def _enter(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        tensors: Mapping[str, Tensor],
    ) -> _Batch:
        frontend, own = self.model.frontend, _own_tensors(tensors, FRONTEND)
        x = torch.func.functional_call(frontend, own, (features, num_frames))
        x = x.to(features.dtype)
        time = torch.arange(x.shape[1], device=x.device)
        return _Batch(
            num_frames=num_frames,
            is_frame=time < frontend.output_frames(num_frames)[:, None],
            x=x,
            distances=distance_table(
                x.shape[1], self.model.shape.position_width, device=x.device, dtype=x.dtype
            ),
        )

    def _block(
        self, name: str, batch: _Batch, tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch time width"]:
        if name in self.folded.closed:
            return batch.x
        arguments = (batch.x, batch.is_frame, batch.distances, self.folded.closed)
        block, own = self.model.get_submodule(name), _own_tensors(tensors, name)
        output: Tensor = torch.func.functional_call(block, own, arguments)
        return output


def _own_tensors(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def split_batches(speech: Calibration, *, most_frames: int) -> Calibration:
    """Yield the same utterances in batches of at most so many mel frames, or one a batch.

    A backward pass holds the activations of a whole batch: 10 s of speech are 1,000 mel frames, and
    600 MB of activations of a model of 0.6 billion parameters.
    """
    for features, num_frames in speech:
        size = max(1, most_frames // features.shape[1])
        yield from zip(features.split(size), num_frames.split(size), strict=True)


def iterate_grams(
    model: Conformer, folded: Folded, consumers: list[Consumer], speech: Calibration
) -> Iterator[tuple[Consumer, Float[Tensor, "inputs1 inputs1"]]]:
    """Yield each consumer with X^T X of its inputs over real frames, part by part.

    X has a last column of ones. Consumers in modules that are closed are left out.

    Args:
        model: the model, which is put into evaluation mode.
        folded: its tensors under a mask.
        consumers: of the model, in any order.
        speech: walked through once.
    """
    streams = ResidualStreams(model=model.eval(), folded=folded, speech=speech)
    last = max((streams.parts.index(consumer.part) for consumer in consumers), default=-1)
    for part in streams.parts[: last + 1]:
        own = [consumer for consumer in consumers if consumer.part == part]
        grams: dict[str, GramSum] = {}
        streams.advance(part, gram_watch(model, own, grams))
        there = (consumer for consumer in own if consumer.module in grams)
        yield from ((consumer, grams.pop(consumer.module).total()) for consumer in there)
        return_freed_memory()


def gram_watch(model: Conformer, consumers: list[Consumer], grams: dict[str, GramSum]) -> Watch:
    """Return a watch that adds the rows of consumers' inputs to `grams`, by module.

    Args:
        model: the model.
        consumers: modules that the part contains.
        grams: sums, which are added to.
    """

    @contextmanager
    def watch(num_frames: Int[Tensor, " batch"]) -> Iterator[None]:
        def register(consumer: Consumer) -> torch.utils.hooks.RemovableHandle:
            # With three stages, 10 s are 250 frames for the second convolution and 125 for a block.
            real = model.frontend.frames_in(consumer.module, num_frames)

            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0]
                # The table of positions has neither utterances nor padding.
                rows = x if x.dim() == 2 else _rows(module, x, real)
                grams.setdefault(consumer.module, GramSum()).add(rows)

            return model.get_submodule(consumer.module).register_forward_pre_hook(hook)

        handles = [register(consumer) for consumer in consumers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return watch


def _rows(
    module: nn.Module, x: Float[Tensor, "batch time ..."], real: Int[Tensor, " batch"]
) -> Float[Tensor, "frames inputs"]:
    """Return a consumer's inputs over real frames, one row per product that it computes."""
    if isinstance(module, nn.Conv2d):
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
        assert not isinstance(padding, str)
        # A convolution is a product of patches: one row of 9 C numbers per output position,
        # channel-major as in `weight.flatten(1)`.
        bins = (x.shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1
        patches = F.unfold(x, kernel, stride=stride, padding=padding)  # (B, I, T * bins)
        x = patches.transpose(1, 2).unflatten(1, (-1, bins))  # (B, T, bins, I)
    time = torch.arange(x.shape[1], device=x.device)
    return x[time < real[:, None]].reshape(-1, x.shape[-1])
