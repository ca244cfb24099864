"""A dense model as an ONNX graph: features and their lengths in, log-probabilities and lengths out.

Batch and time are free. Export needs the packages of the extra `export`.

Shapes: B batch, M mel frames, T frames, V vocabulary.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import jaxtyping
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.conformer.shape import MELS

OPSET = 20


class Exported(nn.Module):
    """What the graph computes."""

    def __init__(self, model: Conformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Int[Tensor, " batch"]]:
        output = self.model(features, num_frames)
        return output.logits.log_softmax(-1), output.num_frames


def export_onnx(model: Conformer, file: Path) -> None:
    """Write the graph beside, then rename.

    Raises:
        ModuleNotFoundError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    features = torch.randn(2, 203, MELS)
    num_frames = torch.tensor([203, 150])
    batch, mel_frames = torch.export.Dim("batch"), torch.export.Dim("mel_frames", min=7)
    with _quiet():
        program = torch.onnx.export(
            Exported(model).eval(),
            (features, num_frames),
            dynamo=True,
            opset_version=OPSET,
            input_names=["features", "num_frames"],
            output_names=["log_probabilities", "num_output_frames"],
            dynamic_shapes={"features": {0: batch, 1: mel_frames}, "num_frames": {0: batch}},
        )
    assert program is not None
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    program.save(beside)
    beside.replace(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """No account of the exporter's steps, no checks of shapes that have no number yet."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003 - its signature
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
