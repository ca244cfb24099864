"""A recognizer's graph in ONNX Runtime, which the extra `export` installs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.output import Output
from core.inference.graph_check import check_graph_file
from core.inference.graph_interface import (
    CTC_OUTPUTS,
    INPUTS,
    NEMO_INPUTS,
    OUTPUTS,
    GraphError,
    needs_extra,
)
from core.telemetry import disable_telemetry


def open_session(file: Path, forms: Sequence[Sequence[str]], *, threads: int) -> Any:
    """Return a session of a graph, optimized by ONNX Runtime for this machine.

    Args:
        file: the graph.
        forms: the names of inputs and outputs that it may have.
        threads: that share the work inside each operator.

    Raises:
        ExportError: if the extra `export` is not installed.
        GraphError: naming the file, if it is missing, damaged, another kind of graph, or refused
            by `core/inference/graph_check.py`.
        ValueError: if `threads` is less than 1.
    """
    needs_extra()
    disable_telemetry(os.environ)
    import onnxruntime  # noqa: PLC0415  # an extra

    if threads < 1:
        raise ValueError(f"`threads` must be at least 1, but is {threads} instead")
    check_graph_file(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Operators run one after the other; `threads` share the work inside each.
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone, no notes on optimizations
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # its errors share no other class
        first = str(error).splitlines()[0]
        raise GraphError(f"`{file}` must be an ONNX graph, but: {first}") from None
    ends = (*session.get_inputs(), *session.get_outputs())
    if (names := tuple(end.name for end in ends)) not in map(tuple, forms):
        raise GraphError(
            f"`{file}` must have the inputs and outputs {' or '.join(map(', '.join, forms))}, but"
            f" has {', '.join(names)} instead; `conformer-sweep export` writes such a graph."
        )
    return session


class Graph(nn.Module):
    """A graph of CTC as a module with the interface of a Conformer in inference."""

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        """Read a graph that `export` wrote, in our own form, for sherpa-onnx or for onnx-asr.

        Raises:
            ExportError, GraphError, ValueError: as `open_session`.
        """
        super().__init__()
        forms = ((*INPUTS, *OUTPUTS), (*NEMO_INPUTS, *CTC_OUTPUTS))
        self.session = open_session(file, forms, threads=threads)
        self.file = file
        # Sizes that are free have names: ["batch", "mel_frames", 80] in our form, ["batch", 80,
        # "mel_frames"] in NeMo's.
        self.vocabulary = self.session.get_outputs()[0].shape[-1]
        features, _ = self.session.get_inputs()
        _, second, third = features.shape
        self.is_mels_first = isinstance(second, int)
        self.repeats_frames = self.is_mels_first and features.name == INPUTS[0]
        """Whether it gives a frame for each frame of features: sherpa-onnx needs that."""
        self.mels: int = second if self.is_mels_first else third

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Run the graph; its logits are log-probabilities, and there are no hidden states."""
        fed = features.mT.contiguous() if self.is_mels_first else features
        arrays = (fed.cpu().numpy(), num_frames.cpu().numpy())
        names = (end.name for end in self.session.get_inputs())
        feed = dict(zip(names, arrays, strict=True))
        log_probabilities, num_output_frames = map(torch.from_numpy, self.session.run(None, feed))
        frames = torch.arange(log_probabilities.shape[1])
        is_frame = frames < num_output_frames[:, None]
        return Output(ctc_logits=log_probabilities, is_frame=is_frame, hidden=())
