"""A dense model as an ONNX graph: features and their lengths in, log-probabilities and lengths out.

Batch and time are free, down to no frame at all. Export needs the packages of the extra `export`.

Shapes: B batch, M mel frames, T frames, V vocabulary.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jaxtyping
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.conformer.shape import MELS
from core.export.onnx.model import Inference
from core.inference.graph_interface import INPUTS, OUTPUTS, needs_extra

OPSET = 23
"""The first in which attention is one operator."""
LARGEST_INLINE = 1536 * 2**20
"""Bytes of weights that a graph's own file holds, as protobuf ends at 2 GiB. More of them lie in a
file beside it, which the graph knows by its name alone: both must stay in one folder."""
DATA = ".data"
"""Suffix of that file."""


def export_onnx(
    model: Conformer,
    file: Path,
    *,
    is_nemo: bool = False,
    metadata: Mapping[str, str] | None = None,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Write the graph, and the file with its weights if they are many; each appears whole.

    Args:
        model: dense, in evaluation mode.
        file: what is written.
        is_nemo: whether its runtime reads it as a model of NeMo's: mels come before frames in the
            features, and there is a frame of log-probabilities for each of the features.
        metadata: what the graph says of itself to its runtime.
        inline_bytes: the most weights that the graph's own file may hold.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    rewritten: nn.Module = Inference(model)
    features = torch.zeros(2, 203, MELS)  # chance is left as it is
    if is_nemo:
        rewritten, features = _AsNemo(rewritten, model.shape.frontend_spec.subsampling), features.mT
    num_frames = torch.tensor([203, 150])
    batch, mel_frames = torch.export.Dim("batch"), torch.export.Dim("mel_frames")
    time_axis = 2 if is_nemo else 1
    with _quiet():
        program = torch.onnx.export(
            rewritten,
            (features, num_frames),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch, time_axis: mel_frames}, {0: batch}),
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    with graph_folder(file) as folder:
        program.save(folder / file.name, external_data=_weights_bytes(program) > inline_bytes)
    # onnxscript's rules of rewriting remember the last graph that they saw, with its weights.
    for value in program.model.graph.initializers.values():
        value.const_value = None


@contextmanager
def graph_folder(file: Path) -> Iterator[Path]:
    """Give a folder to write a graph into; when all went well, its files are put beside `file`.

    A graph names the file of its weights: written under another name, it would not find it.
    """
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as scratch:
        folder = Path(scratch)
        yield folder
        # Weights first: a graph that is there can be loaded.
        for written in (f"{file.name}{DATA}", file.name):
            if (folder / written).exists():
                (folder / written).replace(file.with_name(written))


def _weights_bytes(program: Any) -> int:
    tensors = (value.const_value for value in program.model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def repeat_frames(
    frames: Float[Tensor, "batch time vocabulary"], num_frames: int, subsampling: int
) -> Float[Tensor, "batch mel_frames vocabulary"]:
    """Each frame as often as there are features that it was made of."""
    return frames[:, torch.arange(num_frames, device=frames.device) // subsampling]


class _AsNemo(nn.Module):
    """As sherpa-onnx reads a model of NeMo's.

    Of M features it reads floor(M / f) frames, where padded strides leave ceil(M / f), and speech
    that ends at once says its last token in the last one. With each of them repeated it may be told
    that f is 1, and reads all; greedy search takes a token that is said again at once for one.
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
    """No account of the exporter's steps, no checks of shapes that have no number yet."""
    before, unheard = jaxtyping.config.jaxtyping_disable, logging.root.manager.disable
    logging.disable(logging.WARNING)  # of packages that are not there, and not needed
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003 - its signature
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
        logging.disable(unheard)
