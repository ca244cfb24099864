"""Greedy search of a transducer: the best token at each place, for all utterances of a batch.

The search knows neither predictor nor joint, only their steps, so that a graph in another runtime
is searched as well.

Shapes: B batch, T frames, J joint width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core.decoders.ctc import BLANK

MOST_SYMBOLS = 10
"""Tokens at one frame, NeMo's limit: a transducer may never say blank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """A token that was found."""

    token: int
    frame: int
    duration: int
    """In frames; 0 for RNN-T."""
    log_probability: float


@runtime_checkable
class GreedyDecoder(Protocol):
    """A transducer, in torch or in another runtime."""

    def greedy(
        self,
        encoded: Float[Tensor, "batch time width"],
        num_frames: Int[Tensor, " batch"],
        *,
        most_symbols: int = MOST_SYMBOLS,
    ) -> list[list[Symbol]]:
        """Return each utterance's tokens with their frames, the best at each place."""


@runtime_checkable
class Steps(Protocol):
    """Predictor and joint of a transducer, with the tokens of each utterance of a batch so far."""

    @property
    def durations(self) -> Sequence[int]:
        """Durations in frames, of TDT; empty for RNN-T."""

    def logits(
        self, rows: Int[Tensor, " rows"], frames: Float[Tensor, "rows joint"]
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows durations"]]:
        """Return the logits of tokens and of durations of some utterances, at a frame of each."""

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        """Add a token to each of some utterances, all among those of the last `logits`."""


def greedy_search(
    steps: Steps,
    frames: Float[Tensor, "batch time joint"],
    num_frames: Int[Tensor, " batch"],
    most_symbols: int = MOST_SYMBOLS,
) -> "GreedySearch":
    """Return the search when it has gone through all frames.

    Args:
        steps: of the transducer, before the first token.
        frames: the encoder's frames, projected by the joint.
        num_frames: real frames of each utterance.
        most_symbols: tokens at one frame, after which it goes on to the next.
    """
    search = GreedySearch(steps, frames, num_frames, most_symbols)
    while search.is_running.any():
        search.visit()
    return search


class GreedySearch:
    """Where each utterance of a batch is; all visit one place each in turn."""

    def __init__(
        self,
        steps: Steps,
        frames: Float[Tensor, "batch time joint"],
        num_frames: Int[Tensor, " batch"],
        most_symbols: int,
    ) -> None:
        self.steps, self.most_symbols = steps, most_symbols
        self.frames, self.num_frames = frames, num_frames
        self.durations = num_frames.new_tensor(steps.durations)
        self.rows = torch.arange(len(frames), device=frames.device)
        self.frame, self.num_tokens = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self.num_at_frame = torch.zeros_like(self.rows)
        """Tokens at the present frame."""
        self.symbols: list[list[Symbol]] = [[] for _ in range(len(frames))]
        self.visited: list[Int[Tensor, "rows 3"]] = [self.rows.new_zeros(0, 3)]
        """Utterance, frame, and number of tokens before."""

    @property
    def is_running(self) -> Bool[Tensor, " batch"]:
        return self.frame < self.num_frames

    def visit(self) -> None:
        """Read one place of each running utterance, and move on."""
        rows = self.rows[self.is_running]
        self.visited.append(torch.stack((rows, self.frame[rows], self.num_tokens[rows]), 1))
        logits, of_durations = self.steps.logits(rows, self.frames[rows, self.frame[rows]])
        best, token = logits.log_softmax(-1).max(-1)
        moved = self._moved(token, of_durations)
        is_token = token != BLANK
        self._keep(rows[is_token], token[is_token], moved[is_token], best[is_token])
        for count in (self.num_at_frame, self.num_tokens):
            count[rows] += is_token.to(count.dtype)
        # A blank that takes no frame, and one token too many at a frame, would go on for ever.
        is_stuck = (moved == 0) & (~is_token | (self.num_at_frame[rows] >= self.most_symbols))
        moved = torch.where(is_stuck, 1, moved)
        self.frame[rows] += moved
        self.num_at_frame[rows[moved > 0]] = 0

    def _moved(
        self,
        token: Int[Tensor, " rows"],
        of_durations: Float[Tensor, "rows durations"],
    ) -> Int[Tensor, " rows"]:
        """Return how many frames each utterance goes on by."""
        if not len(self.durations):
            return (token == BLANK).to(token.dtype)
        return self.durations[of_durations.argmax(-1)]

    def _keep(
        self,
        rows: Int[Tensor, " found"],
        token: Int[Tensor, " found"],
        duration: Int[Tensor, " found"],
        best: Float[Tensor, " found"],
    ) -> None:
        """Add tokens to their utterances."""
        if not len(rows):
            return
        columns = (rows, token, self.frame[rows], duration, best)
        for row, *values in zip(*(column.tolist() for column in columns), strict=True):
            number, frame, length, log_probability = values
            self.symbols[row].append(
                Symbol(token=number, frame=frame, duration=length, log_probability=log_probability)
            )
        self.steps.accept(rows, token)
