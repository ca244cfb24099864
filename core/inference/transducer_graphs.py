"""A transducer whose encoder, and predictor and joint, are graphs in ONNX Runtime.

The second graph makes one step: from a frame, the last token and the predictor's state before that
token to the logits of the next one and the state after it. The state is taken over only when a
token was found.

Shapes: B batch, M mel frames, T frames, J joint width, V vocabulary, S state.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.output import Output
from core.decoders.ctc import BLANK
from core.decoders.greedy import MOST_SYMBOLS, Symbol, greedy_search
from core.features.spec import FrontendSpec
from core.inference.graph_interface import (
    ENCODER,
    ENCODER_OUTPUTS,
    NEMO_INPUTS,
    STEP,
    STEP_INPUTS,
    STEP_OUTPUTS,
    SUFFIXES,
    GraphError,
)
from core.inference.onnx_session import open_session


class GraphTransducer:
    """Predictor and joint as a graph of one step."""

    def __init__(self, file: Path, vocabulary: int, *, threads: int = 1) -> None:
        """Read the graph; durations are 0, 1, 2 and so on, as many as it has outputs for them.

        Raises:
            ExportError, GraphError, ValueError: as `open_session`, or if it has fewer outputs than
                there are tokens.
        """
        self.session = open_session(file, [(*STEP_INPUTS, *STEP_OUTPUTS)], threads=threads)
        self.vocabulary = vocabulary
        num_outputs = self.session.get_outputs()[0].shape[-1]
        if num_outputs < vocabulary:
            raise GraphError(
                f"`{file}` must have an output for each of {vocabulary} tokens, but has"
                f" {num_outputs} instead."
            )
        self.durations = tuple(range(num_outputs - vocabulary))
        self.state = self.session.get_inputs()[-1].shape[-1]

    @torch.inference_mode()
    def greedy(
        self,
        encoded: Float[Tensor, "batch time joint"],
        num_frames: Int[Tensor, " batch"],
        *,
        most_symbols: int = MOST_SYMBOLS,
    ) -> list[list[Symbol]]:
        """Return each utterance's tokens with their frames, the best at each place."""
        steps = _GraphSteps(self, len(encoded))
        return greedy_search(steps, encoded, num_frames, most_symbols).symbols


class _GraphSteps:
    """The steps of a greedy search: each runs the graph once, which gives the next state, too."""

    def __init__(self, transducer: GraphTransducer, batch: int) -> None:
        self.session, self.vocabulary = transducer.session, transducer.vocabulary
        self.durations = transducer.durations
        self.tokens = np.full((batch, 1), BLANK, np.int32)
        # Two of shape (1, B, S): before the last token, and after it.
        self.states = [np.zeros((1, batch, transducer.state), np.float32) for _ in range(2)]
        self.after = [state.copy() for state in self.states]

    def logits(
        self, rows: Int[Tensor, " rows"], frames: Float[Tensor, "rows joint"]
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows durations"]]:
        chosen = rows.numpy()
        arrays = (
            frames.numpy()[..., None],
            self.tokens[chosen],
            np.ones(len(chosen), np.int32),
            *(state[:, chosen] for state in self.states),
        )
        feed = dict(zip(STEP_INPUTS, arrays, strict=True))
        outputs, _, *after = self.session.run(None, feed)
        for state, new in zip(self.after, after, strict=True):
            state[:, chosen] = new
        logits = torch.from_numpy(outputs[:, 0, 0])
        return logits[:, : self.vocabulary], logits[:, self.vocabulary :]

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        chosen = rows.numpy()
        self.tokens[chosen, 0] = tokens.numpy()
        for state, after in zip(self.states, self.after, strict=True):
            state[:, chosen] = after[:, chosen]


class TransducerGraphs(nn.Module):
    """The graphs of a transducer with the interface of a `Conformer` in inference."""

    def __init__(
        self,
        folder: Path,
        frontend_spec: FrontendSpec,
        vocabulary: int,
        *,
        is_int8: bool = False,
        threads: int = 1,
    ) -> None:
        """Read the graphs.

        Args:
            folder: in which `write_transducer_graphs` wrote them.
            frontend_spec: the features that they read.
            vocabulary: number of tokens, blank included.
            is_int8: whether those in 8-bit integers are read.
            threads: of ONNX Runtime.

        Raises:
            ExportError, GraphError, ValueError: as `open_session`.
        """
        super().__init__()
        encoder, step = (folder / f"{name}{SUFFIXES[is_int8]}" for name in (ENCODER, STEP))
        forms = [(*NEMO_INPUTS, *ENCODER_OUTPUTS)]
        self.encoder = open_session(encoder, forms, threads=threads)
        self.transducer = GraphTransducer(step, vocabulary, threads=threads)
        self.frontend_spec, self.vocabulary = frontend_spec, vocabulary
        self.mels = frontend_spec.mels

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Return the encoder's frames, projected by the joint."""
        arrays = (features.mT.contiguous().cpu().numpy(), num_frames.cpu().numpy())
        feed = dict(zip(NEMO_INPUTS, arrays, strict=True))
        encoded, lengths = map(torch.from_numpy, self.encoder.run(None, feed))
        frames = encoded.mT.contiguous()  # (B, T, J)
        is_frame = torch.arange(frames.shape[1]) < lengths[:, None]
        return Output(ctc_logits=None, is_frame=is_frame, hidden=(), encoded=frames)
