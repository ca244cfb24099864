"""A transducer whose encoder, predictor and joint are the three graphs that sherpa-onnx loads.

Its own kind has a stateless predictor, whose input is the last tokens. The kind for NeMo's models
has states and the blank as last token: of five tokens theirs are 0 to 3 and the blank 4, where ours
are 1 to 4 and the blank 0. The predictor runs once for each token, the joint at each place.

Shapes: B batch, M mel frames, T frames, J joint width, V vocabulary, S state, C context.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.decoders.ctc import BLANK
from core.decoders.greedy import Steps
from core.decoders.predictor import NO_TOKEN
from core.features.spec import FrontendSpec
from core.inference.graph_interface import NEMO_ENDS, STATELESS_ENDS, SUFFIXES
from core.inference.onnx_session import open_session
from core.inference.transducer_graphs import (
    GraphDecoder,
    TransducerNetwork,
    count_durations,
    run_graph,
)

ENCODER = "encoder"
"""Name of the graph of the encoder, without its suffix."""


class SherpaTransducer(GraphDecoder):
    """Predictor and joint as two graphs."""

    def __init__(
        self, folder: Path, vocabulary: int, *, is_nemo: bool, suffix: str, threads: int
    ) -> None:
        """Read the graphs.

        Raises:
            ExportError, GraphError, ValueError: as `open_session` and `count_durations`.
        """
        self.vocabulary, self.is_nemo = vocabulary, is_nemo
        self.predictor, self.joint = (
            _open(folder, name, suffix, is_nemo=is_nemo, threads=threads)
            for name in ("decoder", "joiner")
        )
        self.durations = count_durations(self.joint, folder / f"joiner{suffix}", vocabulary)

    def steps(self, batch: int) -> Steps:
        return (_NemoSteps if self.is_nemo else _StatelessSteps)(self, batch)


class _StatelessSteps:
    """The steps of a greedy search with sherpa-onnx's own kind."""

    def __init__(self, transducer: SherpaTransducer, batch: int) -> None:
        self.transducer, self.durations = transducer, transducer.durations
        context = transducer.predictor.get_inputs()[0].shape[1]
        self.tokens = np.full((batch, context), NO_TOKEN, np.int64)
        self.tokens[:, -1] = BLANK
        self.predicted = run_graph(transducer.predictor, self.tokens)[0]

    def logits(
        self, rows: Int[Tensor, " rows"], frames: Float[Tensor, "rows joint"]
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows durations"]]:
        predicted = self.predicted[rows.numpy()]
        logits = torch.from_numpy(run_graph(self.transducer.joint, frames.numpy(), predicted)[0])
        size = self.transducer.vocabulary
        return logits[:, :size], logits[:, size:]

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        chosen = rows.numpy()
        later = np.concatenate((self.tokens[chosen, 1:], tokens.numpy()[:, None]), 1)
        self.tokens[chosen] = later
        self.predicted[chosen] = run_graph(self.transducer.predictor, later)[0]


class _NemoSteps:
    """The steps of a greedy search with the kind for NeMo's models."""

    def __init__(self, transducer: SherpaTransducer, batch: int) -> None:
        self.transducer, self.durations = transducer, transducer.durations
        state = transducer.predictor.get_inputs()[-1].shape[-1]
        self.states = [np.zeros((1, batch, state), np.float32) for _ in range(2)]
        self.predicted, self.states = self._advance(np.full(batch, BLANK), self.states)

    def logits(
        self, rows: Int[Tensor, " rows"], frames: Float[Tensor, "rows joint"]
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows durations"]]:
        predicted = self.predicted[rows.numpy()]
        outputs = run_graph(self.transducer.joint, frames.numpy()[..., None], predicted)[0]
        logits, size = torch.from_numpy(outputs[:, 0, 0]), self.transducer.vocabulary
        return logits[:, :size].roll(1, dims=1), logits[:, size:]

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        chosen = rows.numpy()
        before = [state[:, chosen] for state in self.states]
        self.predicted[chosen], after = self._advance(tokens.numpy(), before)
        for state, new in zip(self.states, after, strict=True):
            state[:, chosen] = new

    def _advance(
        self, tokens: np.ndarray, states: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        theirs = ((tokens - 1) % self.transducer.vocabulary).astype(np.int32)[:, None]
        lengths = np.ones(len(tokens), np.int32)
        predicted, _, *after = run_graph(self.transducer.predictor, theirs, lengths, *states)
        return predicted, after


def open_sherpa_graphs(
    folder: Path,
    frontend_spec: FrontendSpec,
    vocabulary: int,
    *,
    is_int8: bool = False,
    threads: int = 1,
) -> TransducerNetwork:
    """Read the three graphs of an export to sherpa-onnx.

    Args:
        folder: of the export.
        frontend_spec: the features that they read; Kaldi's are those of its own kind.
        vocabulary: number of tokens, blank included.
        is_int8: whether those in 8-bit integers are read.
        threads: of ONNX Runtime.

    Raises:
        ExportError, GraphError, ValueError: as `open_session`.
    """
    suffix, is_nemo = SUFFIXES[is_int8], frontend_spec.features != "kaldi"
    return TransducerNetwork(
        _open(folder, ENCODER, suffix, is_nemo=is_nemo, threads=threads),
        SherpaTransducer(folder, vocabulary, is_nemo=is_nemo, suffix=suffix, threads=threads),
        frontend_spec,
        vocabulary,
        is_mels_first=is_nemo,
    )


def _open(folder: Path, name: str, suffix: str, *, is_nemo: bool, threads: int) -> Any:
    inputs, outputs = (NEMO_ENDS if is_nemo else STATELESS_ENDS)[name]
    return open_session(folder / f"{name}{suffix}", [(*inputs, *outputs)], threads=threads)
