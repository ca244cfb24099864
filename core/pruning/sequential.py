"""Sequential reconstruction: the residual stream of a pruned model, brought back module by module.

Both models walk through the calibration speech in step. After each part, its output projection is
refitted by least squares so that the pruned model's residual stream comes nearest to the unpruned
one's, on the entries of the width that are left:

    target of the part = (stream of the unpruned model after it - own stream before it) / share

where `share` is the part's factor in the sum, 0.5 for a feed-forward. So a part corrects errors of
earlier parts, and of parts that are gone. Before that, the layers of the part that read the stream
(`up`; query, key and value) are refitted to give what the unpruned model's give, for the units that
are left: they make up for entries of the width that are gone, and for the stream's own errors. The
front end's projection comes first, the head last, towards the unpruned logits; of a transducer the
joint's three layers, at the places that the unpruned model's search visits. A ridge pulls towards
the layer as it is: few frames cannot ruin it.

Batch-norm statistics move with their inputs: by the difference of means and the ratio of variances
between the two models. An unpruned model is left as it is.

Memory holds the two residual streams and what one module reads and gives, whatever the depth.

Shapes: B batch, T frames, N real frames, D width of the pruned model, W of the unpruned one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.attention import Attention, distance_table
from core.conformer.block import BLOCK_SHARES, BlockModule
from core.conformer.convolution import Convolution
from core.conformer.factored import Factored
from core.conformer.model import Conformer
from core.decoders.transducer import Transducer
from core.environment import return_freed_memory
from core.features.kaldi import real_frames
from core.pruning.least_squares import LeastSquares

SMALL = 1e-12
"""Added to variances: a channel that never moves has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """Which parts of the unpruned model the pruned one has, by the numbers of the former."""

    width: Int[Tensor, " width"]
    blocks: tuple[int, ...]
    units: dict[str, Int[Tensor, " _"]]
    """Units of each axis of a block or a decoder, by the axis's name in the unpruned model."""


@dataclass(kw_only=True, slots=True)
class _Stream:
    """Where the two models are in one batch."""

    is_frame: Bool[Tensor, "batch time"]
    whole: Float[Tensor, "batch time whole_width"]
    """Residual stream of the unpruned model."""
    small: Float[Tensor, "batch time width"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pass:
    """What a module of the unpruned model computes of one batch."""

    output: Float[Tensor, "batch time whole_width"]
    """What it adds to the residual stream."""
    read: dict[str, Float[Tensor, "frames rows"]]
    """Outputs of layers that read the stream, at the units that are left; taken out when used."""
    normalized: Float[Tensor, "frames channels"] | None
    """Inputs of a batch norm, if the module has one."""


def reconstruct_streams(
    small: Conformer,
    whole: Conformer,
    remaining: Remaining,
    speech: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Refit the output projections of a pruned model in order of computation, in place.

    Args:
        small: the pruned model.
        whole: the model whose residual stream is the target.
        remaining: what of it the pruned one has.
        speech: calibration speech, walked through once.
    """
    small.eval()
    whole.eval()
    with torch.no_grad():
        streams = _reconstruct_frontend(small, whole, remaining, speech)
        return_freed_memory()  # of extraction, too
        for number, block in enumerate(whole.typed_blocks()):
            is_left = number in remaining.blocks
            own = small.typed_blocks()[remaining.blocks.index(number)] if is_left else None
            for name, share in BLOCK_SHARES.items():
                part, other = getattr(own, name, None), getattr(block, name)
                _reconstruct_module(part, other, remaining, streams, share=share)
                return_freed_memory()  # of a module: of a large model, half a gigabyte
            for stream in streams:
                stream.whole = block.norm(stream.whole)
                stream.small = stream.small if own is None else own.norm(stream.small)
        _reconstruct_decoders(small, whole, remaining, streams)


def _reconstruct_frontend(
    small: Conformer,
    whole: Conformer,
    remaining: Remaining,
    speech: Iterable[tuple[Tensor, Tensor]],
) -> list[_Stream]:
    """Refit the front end's projection; return the streams after it, one a batch."""
    fit, streams, inputs = LeastSquares(small.frontend.linear), [], []
    for features, num_frames in speech:
        x, y = (m.frontend.stack_channels(features, num_frames) for m in (small, whole))
        target = whole.frontend.linear(y)
        frames = small.frontend.output_frames(num_frames)
        is_frame = real_frames(frames, x.shape[1])
        fit.add(x[is_frame], target[is_frame][:, remaining.width])
        streams.append(_Stream(is_frame=is_frame, whole=target, small=x))
        inputs.append(x)
    fit.solve()
    for stream, x in zip(streams, inputs, strict=True):
        stream.small = small.frontend.linear(x)
    return streams


def _reconstruct_decoders(
    small: Conformer,
    whole: Conformer,
    remaining: Remaining,
    streams: Sequence[_Stream],
) -> None:
    """Refit what reads the last frames: the CTC head, and a transducer's projection of frames."""
    layers: list[tuple[nn.Linear, nn.Linear, Tensor | slice]] = []
    if small.head is not None and whole.head is not None:
        layers.append((small.head, whole.head, slice(None)))
    if small.transducer is not None and whole.transducer is not None:
        joint = whole.transducer.joint
        units = remaining.units[joint.name]
        layers.append((small.transducer.joint.encoder, joint.encoder, units))
    for layer, reader, rows in layers:
        fit = LeastSquares(layer)
        for stream in streams:
            targets = reader(stream.whole[stream.is_frame])[:, rows]
            fit.add(stream.small[stream.is_frame], targets)
        fit.solve()
    if small.transducer is not None and whole.transducer is not None:
        _reconstruct_joint(small.transducer, whole.transducer, remaining, streams)


def _reconstruct_joint(
    small: Transducer, whole: Transducer, remaining: Remaining, streams: Sequence[_Stream]
) -> None:
    """Refit what reads the predictor, then what reads the joint, to give what the unpruned gives.

    The places are those that greedy search of the unpruned model visits, and their neighbours.
    """
    units = remaining.units[whole.joint.name]
    places = [whole.best_places(stream.whole, stream.is_frame.sum(1)) for stream in streams]
    fit = LeastSquares(small.joint.predictor)
    for chosen in places:
        targets = whole.joint.predictor(whole.predicted(chosen))[:, units]
        fit.add(small.predicted(chosen), targets)
    fit.solve()
    fit = LeastSquares(small.joint.output)
    for stream, chosen in zip(streams, places, strict=True):
        targets = whole.joint.output(whole.joint_hidden(stream.whole, chosen))
        fit.add(small.joint_hidden(stream.small, chosen), targets)
    fit.solve()


def _reconstruct_module(
    part: BlockModule | None,
    other: BlockModule | None,
    remaining: Remaining,
    streams: Sequence[_Stream],
    *,
    share: float,
) -> None:
    """Refit a module that remains, from its first layers on, and move both streams behind it."""
    rows = {} if part is None or other is None else _reader_rows(other, remaining.units)
    passes = [] if other is None else [_pass(other, stream, rows) for stream in streams]
    if part is not None:
        for layer in rows:
            _reconstruct_reader(part, layer, passes, streams)
    if isinstance(part, Convolution) and isinstance(other, Convolution):
        channels = remaining.units[f"{other.name}.channel"]
        _move_statistics(part, other, channels, streams, passes)
    _reconstruct_part(part, passes, streams, share=share, width=remaining.width)


def _reconstruct_part(
    part: BlockModule | None,
    passes: Sequence[_Pass],
    streams: Sequence[_Stream],
    *,
    share: float,
    width: Int[Tensor, " width"],
) -> None:
    """Refit a part's projection, and move both streams behind the part.

    A part that is gone is passed by: what the unpruned model adds there is missing until a later
    part makes up for it.
    """
    return_freed_memory()  # of the readers' sums, before the projection's are there
    hidden = [] if part is None else [_hidden(part, stream) for stream in streams]
    # The difference of the streams is taken before the part: behind it, what the part adds would
    # have lost digits to them, and streams that are equal would give a change.
    targets = [(stream.whole[..., width] - stream.small) / share for stream in streams]
    if passes:
        for number, (stream, whole) in enumerate(zip(streams, passes, strict=True)):
            stream.whole = stream.whole + share * whole.output
            targets[number] = targets[number] + whole.output[..., width]
    if part is None:
        return
    fit = LeastSquares(_projection(part))
    for x, target, stream in zip(hidden, targets, streams, strict=True):
        fit.add(x[stream.is_frame], target[stream.is_frame])
    fit.solve()
    for x, stream in zip(hidden, streams, strict=True):
        stream.small = stream.small + share * fit.layer(x)


def _reconstruct_reader(
    part: BlockModule,
    name: str,
    passes: Sequence[_Pass],
    streams: Sequence[_Stream],
) -> None:
    """Refit a layer of `part` that reads the stream, to give what the unpruned model's gave."""
    layer = getattr(part, name)
    fit = LeastSquares(_last_factor(layer))
    for stream, whole in zip(streams, passes, strict=True):
        x = part.norm(stream.small)[stream.is_frame]
        fit.add(layer.reduce(x) if isinstance(layer, Factored) else x, whole.read.pop(name))
    fit.solve()


def _reader_rows(part: BlockModule, units: Mapping[str, Tensor]) -> dict[str, Int[Tensor, " rows"]]:
    """Return the layers of a module that read the residual stream, and their remaining outputs.

    Example: heads 0 and 2 of width 64 are rows 0 to 63 and 128 to 191 of query, key and value;
    channel 1 of 256 is rows 1 and 257 of the convolution's `up`.
    """
    if isinstance(part, Attention):
        inside = torch.arange(part.head_width, device=units[f"{part.name}.head"].device)
        rows = (units[f"{part.name}.head"][:, None] * part.head_width + inside).flatten()
        return {"query": rows, "key": rows, "value": rows}
    if isinstance(part, Convolution):
        channels = units[f"{part.name}.channel"]
        return {"up": torch.cat((channels, channels + part.down.in_features))}
    return {"up": units[f"{part.name}.inner"]}


def _pass(part: BlockModule, stream: _Stream, rows: Mapping[str, Int[Tensor, " rows"]]) -> _Pass:
    """Run a module of the unpruned model, and keep these outputs of layers inside."""
    read: dict[str, Tensor] = {}
    normalized: list[Tensor] = []

    def keep(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        read[name] = output[stream.is_frame][:, rows[name]]

    def keep_normalized(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        normalized.append(inputs[0][stream.is_frame])

    handles = [getattr(part, name).register_forward_hook(partial(keep, name)) for name in rows]
    if isinstance(part, Convolution) and rows:
        handles.append(part.batch_norm.register_forward_pre_hook(keep_normalized))
    try:
        output = _module_output(part, stream.whole, stream.is_frame)
    finally:
        for handle in handles:
            handle.remove()
    return _Pass(output=output, read=read, normalized=normalized[0] if normalized else None)


def _module_output(
    part: BlockModule, x: Float[Tensor, "batch time width"], is_frame: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time width"]:
    """Return what a module of a block adds to the residual stream."""
    if isinstance(part, Attention):
        table = distance_table(
            x.shape[1], part.position.in_features, device=x.device, dtype=x.dtype
        )
        return part(x, is_frame, table)
    return part(x, is_frame) if isinstance(part, Convolution) else part(x)


def _hidden(part: BlockModule, stream: _Stream) -> Float[Tensor, "batch time inputs"]:
    """Return the inputs of a module's output projection."""
    return _inputs_of(
        _projection(part), lambda: _module_output(part, stream.small, stream.is_frame)
    )


class _InputsReachedError(Exception):
    """Ends a run at the module whose inputs are asked for, which are its only argument."""


def _inputs_of(module: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """Return the inputs that a module receives in a run, which ends there."""

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> NoReturn:
        del module
        raise _InputsReachedError(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        run()
    except _InputsReachedError as reached:
        inputs: Tensor = reached.args[0]
        return inputs
    finally:
        handle.remove()
    raise AssertionError(f"the run does not reach {module}")


def _projection(part: BlockModule) -> nn.Linear:
    """Return the layer that writes to the residual stream; of two factors the second."""
    return _last_factor(part.output if isinstance(part, Attention) else part.down)


def _last_factor(layer: nn.Module) -> nn.Linear:
    last = layer.expand if isinstance(layer, Factored) else layer
    assert isinstance(last, nn.Linear)
    return last


def _move_statistics(
    small: Convolution,
    whole: Convolution,
    channels: Int[Tensor, " channels"],
    streams: Sequence[_Stream],
    passes: Sequence[_Pass],
) -> None:
    """Move the batch-norm statistics of a pruned module as its inputs have moved.

    Example: where a channel's mean is 0.2 higher than the unpruned model's on the same speech, and
    its variance 1.5 times as large, so become its running mean and variance.
    """
    norm, reference = small.batch_norm, whole.batch_norm

    def own_inputs(stream: _Stream) -> Tensor:
        run = partial(_module_output, small, stream.small, stream.is_frame)
        return _inputs_of(norm, run)[stream.is_frame]

    mean, variance = _moments(map(own_inputs, streams), norm.running_mean)
    whole_inputs = (each.normalized for each in passes if each.normalized is not None)
    old_mean, old_variance = _moments(whole_inputs, norm.running_mean)
    moved = reference.running_mean[channels] + (mean - old_mean[channels])
    ratio = (variance + SMALL) / (old_variance[channels] + SMALL)
    norm.running_mean.copy_(moved)
    norm.running_var.copy_(reference.running_var[channels] * ratio)


def _moments(
    inputs: Iterable[Float[Tensor, "frames channels"]], like: Tensor
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return the mean and the variance of some batches' frames, summed in double precision."""
    total = squares = torch.zeros(1, dtype=torch.float64)
    count = 0
    for batch in inputs:
        x = batch.double().cpu()
        total, squares = total + x.sum(0), squares + x.square().sum(0)
        count += len(x)
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return mean.to(like), variance.to(like)
