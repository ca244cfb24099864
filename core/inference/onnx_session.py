"""A recognizer's graph in ONNX Runtime, which the extra `export` installs."""

import os
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.output import Output
from core.inference.graph_check import check_graph_file
from core.inference.graph_interface import INPUTS, OUTPUTS, GraphError, needs_extra
from core.telemetry import disable_telemetry


class Graph(nn.Module):
    """A graph as a module with the interface of a Conformer in inference."""

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        """Read a graph, and let ONNX Runtime optimize it for this machine.

        Raises:
            ExportError: if the extra `export` is not installed.
            GraphError: naming the file, if it is missing, damaged, another kind of graph, or
                refused by `core/inference/graph_check.py`.
            ValueError: if `threads` is less than 1.
        """
        needs_extra()
        disable_telemetry(os.environ)
        import onnxruntime  # noqa: PLC0415  # an extra

        super().__init__()
        if threads < 1:
            raise ValueError(f"`threads` must be at least 1, but is {threads} instead")
        check_graph_file(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Operators run one after the other; `threads` share the work inside each.
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors alone, no notes on optimizations
        try:
            self.session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001  # its errors share no other class
            first = str(error).splitlines()[0]
            raise GraphError(f"`{file}` must be an ONNX graph, but: {first}") from None
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        if (names := tuple(end.name for end in ends)) != INPUTS + OUTPUTS:
            raise GraphError(
                f"`{file}` must have the inputs and outputs {', '.join(INPUTS + OUTPUTS)},"
                f" but has {', '.join(names)} instead; `export_onnx` writes such a graph."
            )

        self.file = file
        # Sizes that are free have names: ["batch", "mel_frames", 80] in our form, ["batch", 80,
        # "mel_frames"] in NeMo's.
        self.vocabulary = self.session.get_outputs()[0].shape[-1]
        _, second, third = self.session.get_inputs()[0].shape
        self.is_mels_first = isinstance(second, int)
        self.mels: int = second if self.is_mels_first else third

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Run the graph; its logits are log-probabilities, and there are no hidden states."""
        fed = features.mT.contiguous() if self.is_mels_first else features
        feed = {"features": fed.cpu().numpy(), "num_frames": num_frames.cpu().numpy()}
        log_probabilities, num_output_frames = map(torch.from_numpy, self.session.run(None, feed))
        frames = torch.arange(log_probabilities.shape[1])
        is_frame = frames < num_output_frames[:, None]
        return Output(ctc_logits=log_probabilities, is_frame=is_frame, hidden=())
