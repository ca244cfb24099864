"""A transducer (Graves, 2012): a predictor of the next token, and its joint with the frames.

RNN-T advances by one frame at a blank; TDT (Xu et al., 2023) by a duration that is predicted beside
each token and blank.

Costs are stated at a rate of tokens. A place that is visited takes one output of the joint: RNN-T
visits one a frame and one a token, TDT as many as its durations ask for.

Shapes: B batch, T frames, D width, U tokens, P = U + 1 places, V vocabulary, J joint width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Lengths, Slice, UnitCounts
from core.conformer.shape import TransducerShape
from core.decoders.ctc import BLANK
from core.decoders.greedy import MOST_SYMBOLS, GreedySearch, Symbol, greedy_search
from core.decoders.joint import Joint
from core.decoders.lattice import LatticeScores
from core.decoders.places import Places, neighbouring_places
from core.decoders.predictor import State, make_predictor, predict

TOKENS_PER_SECOND = 3.6
"""At which costs are stated: read English in word pieces (36 in 10 s)."""
VISITS_PER_FRAME = 0.5
"""Of a TDT whose durations reach 4, beside those of tokens: an assumption, as it is learned."""


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
        hidden = self.joint_hidden(encoded, places)
        logits = self.joint.split(self.joint.output(hidden))
        # At least in single precision, whatever autocast gives.
        precise = torch.promote_types(hidden.dtype, torch.float32)
        return torch.cat([part.to(precise).log_softmax(-1) for part in logits], -1)

    def joint_hidden(
        self, encoded: Float[Tensor, "batch time width"], places: Places
    ) -> Float[Tensor, "chosen joint"]:
        """Return what the joint's output layer reads at some places."""
        utterance, frame, _ = places.index.unbind(1)
        predicted = self.joint.predictor(self.predicted(places))
        return self.joint.hidden(self.joint.encoder(encoded)[utterance, frame], predicted)

    def predicted(self, places: Places) -> Float[Tensor, "chosen outputs"]:
        """Return the predictor's output before some places."""
        utterance, _, num_before = places.index.unbind(1)
        return predict(self.predictor, places.tokens)[utterance, num_before]

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
    ) -> list[list[Symbol]]:
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
    ) -> GreedySearch:
        steps = _ModuleSteps(self, len(encoded))
        return greedy_search(steps, self.joint.encoder(encoded), num_frames, most_symbols)


class _ModuleSteps:
    """The steps of a greedy search, by the modules of a transducer."""

    def __init__(self, transducer: Transducer, batch: int) -> None:
        self.predictor, self.joint = transducer.predictor, transducer.joint
        self.durations = self.joint.durations
        blank = torch.full((batch,), BLANK, device=self.joint.output.weight.device)
        self.predicted, self.state = self._advance(blank, self.predictor.start(batch))

    def logits(
        self, rows: Int[Tensor, " rows"], frames: Float[Tensor, "rows joint"]
    ) -> tuple[Float[Tensor, "rows vocabulary"], Float[Tensor, "rows durations"]]:
        return self.joint.logits(frames, self.predicted[rows])

    def accept(self, rows: Int[Tensor, " found"], tokens: Int[Tensor, " found"]) -> None:
        predicted, state = self._advance(tokens, tuple(part[rows] for part in self.state))
        self.predicted[rows] = predicted
        for part, new in zip(self.state, state, strict=True):
            part[rows] = new

    def _advance(
        self, tokens: Int[Tensor, " found"], state: State
    ) -> tuple[Float[Tensor, "found joint"], State]:
        outputs, after = self.predictor.advance(tokens[:, None], state)
        return self.joint.predictor(outputs[:, 0]), after
