"""A transducer whose encoder, and predictor and joint, are graphs in ONNX Runtime.

The second graph makes one step: from a frame, the last token and the predictor's state before that
token to the logits of the next one and the state after it. The state is taken over only when a
token was found.

Shapes: B batch, M mel frames, T frames, J joint width, V vocabulary, S state.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.output import Output
from core.decoders.ctc import BLANK
from core.decoders.greedy import MOST_SYMBOLS, Steps, Symbol, greedy_search
from core.features.kaldi import real_frames
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


class GraphDecoder(ABC):
    """A transducer's predictor and joint as graphs, searched greedily."""

    durations: tuple[int, ...]

    @abstractmethod
    def steps(self, batch: int) -> Steps:
        """Return the steps of a search, before the first token."""

    @torch.inference_mode()
    def greedy(
        self,
        encoded: Float[Tensor, "batch time joint"],
        num_frames: Int[Tensor, " batch"],
        *,
        most_symbols: int = MOST_SYMBOLS,
    ) -> list[list[Symbol]]:
        """Return each utterance's tokens with their frames, the best at each place."""
        return greedy_search(self.steps(len(encoded)), encoded, num_frames, most_symbols).symbols


def count_durations(session: Any, file: Path, vocabulary: int) -> tuple[int, ...]:
    """Return 0, 1, 2 and so on, as many as a joint's graph has outputs for durations.

    Raises:
        GraphError: if it has fewer outputs than there are tokens.
    """
    num_outputs = session.get_outputs()[0].shape[-1]
    if num_outputs < vocabulary:
        raise GraphError(
            f"`{file}` must have an output for each of {vocabulary} tokens, but has {num_outputs}"
            " instead."
        )
    return tuple(range(num_outputs - vocabulary))


def run_graph(session: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return a graph's outputs for inputs in its own order."""
    names = (end.name for end in session.get_inputs())
    outputs: list[np.ndarray] = session.run(None, dict(zip(names, arrays, strict=True)))
    return outputs


class GraphTransducer(GraphDecoder):
    """Predictor and joint as a graph of one step."""

    def __init__(self, file: Path, vocabulary: int, *, threads: int = 1) -> None:
        """Read the graph.

        Raises:
            ExportError, GraphError, ValueError: as `open_session` and `count_durations`.
        """
        self.session = open_session(file, [(*STEP_INPUTS, *STEP_OUTPUTS)], threads=threads)
        self.vocabulary = vocabulary
        self.durations = count_durations(self.session, file, vocabulary)
        self.state = self.session.get_inputs()[-1].shape[-1]

    def steps(self, batch: int) -> Steps:
        return _GraphSteps(self, batch)


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
        outputs, _, *after = run_graph(self.session, *arrays)
        for state, new in zip(self.after, after, strict=True):
            state[:, chosen] = new
        logits = torch.from_numpy(outputs[:, 0, 0])
        return logits[:, : self.vocabulary], logits[:, self.vocabulary :]

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        chosen = rows.numpy()
        self.tokens[chosen, 0] = tokens.numpy()
        for state, after in zip(self.states, self.after, strict=True):
            state[:, chosen] = after[:, chosen]


class TransducerNetwork(nn.Module):
    """Graphs of a transducer with the interface of a `Conformer` in inference."""

    def __init__(
        self,
        encoder: Any,
        transducer: GraphDecoder,
        frontend_spec: FrontendSpec,
        vocabulary: int,
        *,
        is_mels_first: bool,
    ) -> None:
        """Take what was read.

        Args:
            encoder: a session of the graph of the encoder, which projects frames for the joint.
            transducer: predictor and joint.
            frontend_spec: the features that the encoder reads.
            vocabulary: number of tokens, blank included.
            is_mels_first: whether the encoder has mels and channels before frames.
        """
        super().__init__()
        self.encoder, self.transducer, self.is_mels_first = encoder, transducer, is_mels_first
        self.frontend_spec, self.vocabulary = frontend_spec, vocabulary
        self.mels = frontend_spec.mels

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Return the encoder's frames, projected by the joint."""
        speech = features.mT.contiguous() if self.is_mels_first else features
        arrays = run_graph(self.encoder, speech.cpu().numpy(), num_frames.cpu().numpy())
        encoded, lengths = map(torch.from_numpy, arrays)
        frames = encoded.mT.contiguous() if self.is_mels_first else encoded  # (B, T, J)
        is_frame = real_frames(lengths, frames.shape[1])
        return Output(ctc_logits=None, is_frame=is_frame, hidden=(), encoded=frames)


def open_graphs(
    folder: Path,
    frontend_spec: FrontendSpec,
    vocabulary: int,
    *,
    is_int8: bool = False,
    threads: int = 1,
) -> TransducerNetwork:
    """Read the two graphs of an export to ONNX Runtime or onnx-asr.

    Args:
        folder: in which `write_transducer_graphs` wrote them.
        frontend_spec: the features that they read.
        vocabulary: number of tokens, blank included.
        is_int8: whether those in 8-bit integers are read.
        threads: of ONNX Runtime.

    Raises:
        ExportError, GraphError, ValueError: as `open_session`.
    """
    encoder, step = (folder / f"{name}{SUFFIXES[is_int8]}" for name in (ENCODER, STEP))
    forms = [(*NEMO_INPUTS, *ENCODER_OUTPUTS)]
    return TransducerNetwork(
        open_session(encoder, forms, threads=threads),
        GraphTransducer(step, vocabulary, threads=threads),
        frontend_spec,
        vocabulary,
        is_mels_first=True,
    )
