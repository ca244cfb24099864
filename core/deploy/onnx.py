"""A dense model as an ONNX graph: features and their lengths in, log-probabilities and lengths out.

Batch and time are free. Export needs the packages of the extra `export`.
"""

import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import jaxtyping
import torch

from core.conformer.model import Conformer
from core.conformer.shape import MELS
from core.deploy.inference import Inference

OPSET = 23
"""The first in which attention is one operator."""
INPUTS, OUTPUTS = ("features", "num_frames"), ("log_probabilities", "num_output_frames")
EXTRA = ("onnx", "onnxscript", "onnxruntime")


class ExportError(ValueError):
    """What an export needs is not installed."""


class GraphError(ValueError):
    """A file that is no recogniser's graph."""


def needs_extra() -> None:
    """Check that the packages of the extra `export` are there.

    Raises:
        ExportError: naming the one that is not, and what installs it.
    """
    for name in EXTRA:
        if importlib.util.find_spec(name) is None:
            raise ExportError(
                f"A graph must have the package `{name}`, but it is not installed;"
                ' `pip install "conformer-sweep[export]"` installs it.'
            )


def export_onnx(model: Conformer, file: Path) -> None:
    """Write the graph beside, then rename.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    needs_extra()
    features = torch.zeros(2, 203, MELS)  # chance is left as it is
    num_frames = torch.tensor([203, 150])
    batch = torch.export.Dim("batch")
    mel_frames = torch.export.Dim("mel_frames", min=_shortest(model))
    with _quiet():
        program = torch.onnx.export(
            Inference(model),
            (features, num_frames),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes={"features": {0: batch, 1: mel_frames}, "num_frames": {0: batch}},
        )
    assert program is not None
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    program.save(beside)
    beside.replace(file)


def _shortest(model: Conformer) -> int:
    """Frames of features that give enough of each stage: 0 and 1 are constants to the exporter."""
    hearing = model.shape.hearing
    return 7 if hearing.frontend == "conv4" else 1 + 2**hearing.stages


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
