"""A dense model as an ONNX graph: features and their lengths in, log-probabilities and lengths out.

Batch and time are free, down to no frame at all. Export needs the packages of the extra `export`.

Shapes: B batch, M mel frames, T frames, V vocabulary.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jaxtyping
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.export.onnx.model import Inference
from core.inference.graph_interface import INPUTS, OUTPUTS, needs_extra

OPSET = 23
"""The first in which attention is one operator."""
LARGEST_INLINE = 1536 * 2**20
"""Most bytes of weights in a graph's own file, as protobuf ends at 2 GiB. Larger weights lie in a
second file that the graph refers to by its name alone: both must stay in one folder."""
DATA = ".data"
"""Suffix of that file."""


def graph_purposes(parts: Mapping[str, str]) -> dict[str, str]:
    """Return what each file of some graphs is, from what each graph computes, by its name."""
    forms = {
        ".onnx": ", in floats",
        ".int8.onnx": " in 8-bit integers",
        f".onnx{DATA}": ": its weights, which must stay in one folder with it",
        f".int8.onnx{DATA}": ": its weights in integers, for the same folder",
    }
    return {
        f"{name}{suffix}": f"the graph of {part}{form}"
        for name, part in parts.items()
        for suffix, form in forms.items()
    }


def export_onnx(
    model: Conformer,
    file: Path,
    *,
    is_nemo: bool = False,
    metadata: Mapping[str, str] | None = None,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Write the graph, and a file with its weights if they are large; each appears whole.

    Args:
        model: dense, in evaluation mode.
        file: the path to write.
        is_nemo: whether it gets NeMo's form: mels come before frames in the features, and there is
            a frame of log-probabilities for each frame of features.
        metadata: of the graph, for its runtime.
        inline_bytes: the most bytes of weights in the graph's own file.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    rewritten: nn.Module = Inference(model)
    if is_nemo:
        rewritten = _AsNemo(rewritten, model.shape.frontend_spec.subsampling)
    speech, free = speech_example(model.frontend_spec.mels, is_mels_first=is_nemo)
    write_graph(
        Tracing(module=rewritten, example=speech, free=free, inputs=INPUTS, outputs=OUTPUTS),
        file,
        metadata=metadata,
        inline_bytes=inline_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """A module to trace as a graph."""

    module: nn.Module
    example: tuple[Tensor, ...]
    """Its inputs; sizes that are free are 2 or more, as 0 and 1 would be taken for constants."""
    free: tuple[dict[int, Any], ...]
    """Which dimensions of each input are free."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    """Their names in the graph."""


def speech_example(
    mels: int, *, is_mels_first: bool
) -> tuple[tuple[Tensor, Tensor], tuple[dict[int, Any], ...]]:
    """Return features with their lengths to trace a model with, and which dimensions are free."""
    # Zeros: the random generator is not touched. Two utterances, whose lengths differ, so that
    # padding is part of what is traced.
    features, num_frames = torch.zeros(2, 203, mels), torch.tensor([203, 150])
    batch, mel_frames = torch.export.Dim("batch"), torch.export.Dim("mel_frames")
    if is_mels_first:
        return (features.mT, num_frames), ({0: batch, 2: mel_frames}, {0: batch})
    return (features, num_frames), ({0: batch, 1: mel_frames}, {0: batch})


def write_graph(
    tracing: Tracing,
    file: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Trace a module and write its graph; see `export_onnx`."""
    needs_extra()
    program = _trace(tracing)
    program.model.metadata_props.update(metadata or {})
    with graph_folder(file) as folder:
        # The name of the weights' file is written into the graph.
        program.save(folder / file.name, external_data=_weights_bytes(program) > inline_bytes)
    # onnxscript's rewriting rules keep the last graph in memory, with its weights.
    for value in program.model.graph.initializers.values():
        value.const_value = None


def _trace(tracing: Tracing) -> Any:
    with _quiet():
        program = torch.onnx.export(
            tracing.module,
            tracing.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tracing.inputs),
            output_names=list(tracing.outputs),
            dynamic_shapes=tracing.free,
        )
    assert program is not None
    return program


@contextmanager
def graph_folder(file: Path) -> Iterator[Path]:
    """Yield a folder for a graph; without an error, its files then move to the folder of `file`.

    A graph names the file of its weights, so it must be written under its final name.
    """
    # In the same folder and so on the same disk, where `replace` is one step and copies nothing.
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as scratch:
        folder = Path(scratch)
        yield folder
        # Weights first: a graph that exists can be loaded.
        for written in (f"{file.name}{DATA}", file.name):
            if (folder / written).exists():
                (folder / written).replace(file.with_name(written))


def _weights_bytes(program: Any) -> int:
    tensors = (value.const_value for value in program.model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def repeat_frames(
    frames: Float[Tensor, "batch time vocabulary"], num_frames: int, subsampling: int
) -> Float[Tensor, "batch mel_frames vocabulary"]:
    """Repeat each frame for each frame of features that it was computed from."""
    return frames[:, torch.arange(num_frames, device=frames.device) // subsampling]


class _AsNemo(nn.Module):
    """A graph in the form in which sherpa-onnx reads NeMo's models.

    With subsampling f, sherpa-onnx reads floor(M / f) output frames of M frames of features, but
    padded strides output ceil(M / f), and the last token may be in the last frame. With each output
    frame repeated f times, f can be stated as 1 and all frames are read; greedy search merges
    repeated tokens. Example: M = 10 and f = 4 give 3 output frames, of which it would read 2.
    """

    def __init__(self, model: nn.Module, subsampling: int) -> None:
        super().__init__()
        self.model, self.subsampling = model, subsampling

    def forward(
        self, features: Float[Tensor, "batch mels mel_frames"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch mel_frames vocabulary"], Int[Tensor, " batch"]]:
        log_probabilities, _ = self.model(features.mT, num_frames)
        return repeat_frames(log_probabilities, features.shape[2], self.subsampling), num_frames


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, and disable shape checks, which symbolic sizes do not pass."""
    before, log_level = jaxtyping.config.jaxtyping_disable, logging.root.manager.disable
    logging.disable(logging.WARNING)  # warnings about packages that are missing and not needed
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003 - its signature
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
        logging.disable(log_level)
