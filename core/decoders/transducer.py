"""A transducer (Graves, 2012): a predictor of the next token, and its joint with the frames.

RNN-T advances by one frame at a blank; TDT (Xu et al., 2023) by a duration that is predicted beside
each token and blank.

Costs are stated at a rate of tokens. A place that is visited takes one output of the joint: RNN-T
visits one a frame and one a token, TDT as many as its durations ask for.

Shapes: B batch, T frames, D width, U tokens, P = U + 1 places, V vocabulary, J joint width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts
from core.conformer.shape import TransducerShape
from core.decoders.ctc import BLANK
from core.decoders.joint import Joint
from core.decoders.lattice import LatticeScores
from core.decoders.places import Places, neighbouring_places
from core.decoders.predictor import State, make_predictor, predict

TOKENS_PER_SECOND = 3.6
"""At which costs are stated: read English in word pieces (36 in 10 s)."""
VISITS_PER_FRAME = 0.5
"""Of a TDT whose durations reach 4, beside those of tokens: an assumption, as it is learned."""
MOST_SYMBOLS = 10
"""Tokens at one frame, NeMo's limit: a transducer may never say blank."""


class Transducer(nn.Module):
    """Predictor and joint of one transducer."""

    def __init__(self, shape: TransducerShape, *, width: int, vocabulary: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.predictor = make_predictor(shape, vocabulary=vocabulary, name=f"{name}.predictor")
        self.joint = Joint(
            encoder_width=width,
            predictor_width=(shape.embedding, *shape.units)[-1],
            width=shape.joint,
            vocabulary=vocabulary,
            blank=BLANK,
            durations=shape.durations,
            activation=shape.activation,
            name=f"{name}.joint",
        )

    def scores(
        self, encoded: Float[Tensor, "batch time width"], tokens: Int[Tensor, "batch tokens"]
    ) -> LatticeScores:
        """Return the log-probabilities along transcripts."""
        return self.joint.scores(encoded, predict(self.predictor, tokens), tokens)

    def forward(
        self, encoded: Float[Tensor, "batch time width"], places: Places
    ) -> Float[Tensor, "chosen outputs"]:
        """Return the log-probabilities at some places: of all tokens, then of all durations."""
        utterance, frame, num_before = places.index.unbind(1)
        predicted = self.joint.predictor(predict(self.predictor, places.tokens))
        frames = self.joint.encoder(encoded)
        logits = self.joint.logits(frames[utterance, frame], predicted[utterance, num_before])
        return torch.cat([part.float().log_softmax(-1) for part in logits], -1)

    def axes(self) -> list[Axis]:
        return [*self.predictor.axes(self.joint.predictor_slice()), self.joint.axis()]

    def width_slices(self) -> tuple[Slice, ...]:
        return self.joint.width_slices()

    def cost(self, counts: UnitCounts, lengths: Lengths) -> Cost:
        """Return the cost at the stated rates; quadratic in the units of an LSTM."""
        tokens, frames = round(TOKENS_PER_SECOND * lengths.seconds), lengths.frames
        without_tokens = round(VISITS_PER_FRAME * frames) if self.joint.durations else frames
        joint = self.joint.cost(
            counts,
            self.predictor.outputs(counts),
            frames=frames,
            tokens=tokens,
            visits=tokens + without_tokens,
        )
        return self.predictor.cost(counts, tokens) + joint

    @torch.no_grad()
    def greedy(
        self,
        encoded: Float[Tensor, "batch time width"],
        num_frames: Int[Tensor, " batch"],
        *,
        most_symbols: int = MOST_SYMBOLS,
    ) -> list[list["Symbol"]]:
        """Return each utterance's tokens with their frames, the best at each place.

        Args:
            encoded: the encoder's frames.
            num_frames: real frames of each utterance.
            most_symbols: tokens at one frame, after which it goes on to the next.
        """
        return self._searched(encoded, num_frames, most_symbols).symbols

    @torch.no_grad()
    def best_places(
        self, encoded: Float[Tensor, "batch time width"], num_frames: Int[Tensor, " batch"]
    ) -> Places:
        """Return the places that greedy search visits, and their neighbours."""
        search = self._searched(encoded, num_frames)
        tokens = [[symbol.token for symbol in symbols] for symbols in search.symbols]
        return neighbouring_places(torch.cat(search.visited), tokens, num_frames)

    def _searched(
        self,
        encoded: Float[Tensor, "batch time width"],
        num_frames: Int[Tensor, " batch"],
        most_symbols: int = MOST_SYMBOLS,
    ) -> "_GreedySearch":
        search = _GreedySearch(self, encoded, num_frames, most_symbols)
        while search.is_running.any():
            search.visit()
        return search


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """A token that was found."""

    token: int
    frame: int
    duration: int
    """In frames; 0 for RNN-T."""
    log_probability: float


class _GreedySearch:
    """Where each utterance of a batch is; all visit one place each in turn."""

    def __init__(
        self,
        transducer: Transducer,
        encoded: Float[Tensor, "batch time width"],
        num_frames: Int[Tensor, " batch"],
        most_symbols: int,
    ) -> None:
        self.predictor, self.joint = transducer.predictor, transducer.joint
        self.most_symbols = most_symbols
        self.frames = self.joint.encoder(encoded)  # (B, T, J)
        self.num_frames = num_frames
        self.durations = num_frames.new_tensor(self.joint.durations)
        batch = len(encoded)
        self.rows = torch.arange(batch, device=encoded.device)
        self.frame, self.num_tokens = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self.num_at_frame = torch.zeros_like(self.rows)
        """Tokens at the present frame."""
        self.symbols: list[list[Symbol]] = [[] for _ in range(batch)]
        self.visited: list[Int[Tensor, "rows 3"]] = [self.rows.new_zeros(0, 3)]
        """Utterance, frame, and number of tokens before."""
        blank = self.rows.new_full((batch,), BLANK)
        self.predicted, self.state = self._advance(blank, self.predictor.start(batch))

    @property
    def is_running(self) -> Bool[Tensor, " batch"]:
        return self.frame < self.num_frames

    def visit(self) -> None:
        """Read one place of each running utterance, and move on."""
        rows = self.rows[self.is_running]
        self.visited.append(torch.stack((rows, self.frame[rows], self.num_tokens[rows]), 1))
        logits, of_durations = self.joint.logits(
            self.frames[rows, self.frame[rows]], self.predicted[rows]
        )
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
        if not self.joint.durations:
            return (token == BLANK).to(token.dtype)
        return self.durations[of_durations.argmax(-1)]

    def _keep(
        self,
        rows: Int[Tensor, " found"],
        token: Int[Tensor, " found"],
        duration: Int[Tensor, " found"],
        best: Float[Tensor, " found"],
    ) -> None:
        """Add tokens to their utterances, and advance the predictor by them."""
        if not len(rows):
            return
        columns = (rows, token, self.frame[rows], duration, best)
        for row, *values in zip(*(column.tolist() for column in columns), strict=True):
            number, frame, length, log_probability = values
            self.symbols[row].append(
                Symbol(token=number, frame=frame, duration=length, log_probability=log_probability)
            )
        predicted, state = self._advance(token, tuple(part[rows] for part in self.state))
        self.predicted[rows] = predicted
        for part, new in zip(self.state, state, strict=True):
            part[rows] = new

    def _advance(
        self, tokens: Int[Tensor, " found"], state: State
    ) -> tuple[Float[Tensor, "found joint"], State]:
        outputs, after = self.predictor.advance(tokens[:, None], state)
        return self.joint.predictor(outputs[:, 0]), after
