"""Predictors of transducers: from the tokens so far to a vector for the joint.

An LSTM (NeMo's), or an embedding and a convolution over the last few tokens (icefall's stateless
predictor; Ghodsi et al., 2020). Before the first token both read the blank.

A predictor's state holds one row an utterance, so that a decoder may choose rows of it.

Shapes: B batch, U tokens, P = U + 1 places, E embedding width, H units of an LSTM layer, C context.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.axes import Axis, Cost, Number, Slice, UnitCounts, square_of, total
from core.conformer.shape import TransducerShape
from core.decoders.ctc import BLANK

GATES = 4
"""Gates of an LSTM: input, forget, cell and output, in torch's order."""
NO_TOKEN = -1
"""Stands before the beginning, in the context of a stateless predictor."""

State = tuple[Tensor, ...]
"""Of each utterance one row of each tensor."""


class LstmLayer(nn.Module):
    """One layer of an LSTM, of the size that its tensors have."""

    # `nn.LSTM` keeps a list of its weights beside its parameters: it would not read narrowed
    # tensors that are put in their place.
    def __init__(self, *, inputs: int, units: int, name: str) -> None:
        super().__init__()
        self.name = name
        initial = nn.LSTM(inputs, units)
        first = dict(initial.named_parameters())
        self.weight_ih, self.weight_hh = first["weight_ih_l0"], first["weight_hh_l0"]
        self.bias_ih, self.bias_hh = first["bias_ih_l0"], first["bias_hh_l0"]

    @property
    def units(self) -> int:
        return self.weight_hh.shape[1]

    def forward(
        self,
        x: Float[Tensor, "batch places inputs"],
        hidden: Float[Tensor, "batch units"],
        cell: Float[Tensor, "batch units"],
    ) -> tuple[
        Float[Tensor, "batch places units"],
        Float[Tensor, "batch units"],
        Float[Tensor, "batch units"],
    ]:
        """Return the outputs, and the hidden state and the cell after the last of them."""
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        outputs, hidden, cell = torch.lstm(
            x,
            (hidden[None], cell[None]),
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return outputs, hidden[0], cell[0]

    def axis(self, *readers: Slice) -> Axis:
        """Return the axis of the units, which the layer itself reads, too."""
        # Unit 1 of 640 owns rows 1, 641, 1281 and 1921 of each tensor, and column 1 of `weight_hh`.
        rows = (
            Slice(tensor=f"{self.name}.{tensor}", dim=0, offset=gate * self.units)
            for tensor in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for gate in range(GATES)
        )
        own = Slice(tensor=f"{self.name}.weight_hh", dim=1, is_scaled=True)
        return Axis(
            name=self.name,
            kind="unit",
            size=self.units,
            floor=1,
            slices=(*rows, own, *readers),
        )

    def cost(self, counts: UnitCounts, inputs: Number, num_tokens: int) -> Cost:
        """Return the cost at so many tokens; quadratic in the number of units."""
        h = counts[self.name]
        weights = GATES * (h * inputs + square_of(counts, self.name))
        return Cost(params=weights + 2 * GATES * h, flops=2 * num_tokens * weights)


class LstmPredictor(nn.Module):
    """An embedding and layers of an LSTM."""

    def __init__(
        self, *, vocabulary: int, embedding: int, units: Sequence[int], blank: int, name: str
    ) -> None:
        super().__init__()
        self.name, self.blank = name, blank
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(
            LstmLayer(inputs=inputs, units=outputs, name=f"{name}.layers.{i}")
            for i, (inputs, outputs) in enumerate(zip((embedding, *units), units, strict=False))
        )

    @property
    def typed_layers(self) -> list[LstmLayer]:
        return [layer for layer in self.layers if isinstance(layer, LstmLayer)]

    def start(self, batch: int) -> State:
        """Return the state before the blank that stands before the first token."""
        weight = self.embedding.weight
        return tuple(
            weight.new_zeros(batch, layer.units) for layer in self.typed_layers for _ in range(2)
        )

    def advance(
        self, tokens: Int[Tensor, "batch places"], state: State
    ) -> tuple[Float[Tensor, "batch places outputs"], State]:
        """Return the outputs after each of these tokens, and the state after the last."""
        x, after = self.embedding(tokens), []
        for i, layer in enumerate(self.typed_layers):
            x, hidden, cell = layer(x, state[2 * i], state[2 * i + 1])
            after += [hidden, cell]
        return x, tuple(after)

    def axes(self, reader: Slice) -> list[Axis]:
        """Return the axes; `reader` is what reads the last layer."""
        tensors = [f"{layer.name}.weight_ih" for layer in self.typed_layers]
        inputs = [Slice(tensor=tensor, dim=1, is_scaled=True) for tensor in tensors]
        width = Axis(
            name=f"{self.name}.embedding",
            kind="embedding",
            size=self.embedding.embedding_dim,
            floor=1,
            slices=(Slice(tensor=f"{self.name}.embedding.weight", dim=1), inputs[0]),
        )
        readers = [*inputs[1:], reader]
        layers = zip(self.typed_layers, readers, strict=True)
        return [width, *(layer.axis(reads) for layer, reads in layers)]

    def outputs(self, counts: UnitCounts) -> Number:
        return counts[self.typed_layers[-1].name]

    def cost(self, counts: UnitCounts, num_tokens: int) -> Cost:
        width = counts[f"{self.name}.embedding"]
        inputs = [width, *(counts[layer.name] for layer in self.typed_layers)]
        layers = zip(self.typed_layers, inputs, strict=False)
        table = Cost(params=self.embedding.num_embeddings * width, flops=0)
        return total([table, *(layer.cost(counts, reads, num_tokens) for layer, reads in layers)])


class StatelessPredictor(nn.Module):
    """An embedding, and a convolution over the last tokens, each of its channels for itself."""

    def __init__(
        self, *, vocabulary: int, embedding: int, context: int, blank: int, name: str
    ) -> None:
        super().__init__()
        self.name, self.blank, self.context = name, blank, context
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.convolution = nn.Conv1d(embedding, embedding, context, groups=embedding, bias=False)

    def start(self, batch: int) -> State:
        """Return the tokens before the blank that stands before the first token: none."""
        shape = (batch, self.context - 1)
        return (torch.full(shape, NO_TOKEN, device=self.embedding.weight.device),)

    def advance(
        self, tokens: Int[Tensor, "batch places"], state: State
    ) -> tuple[Float[Tensor, "batch places outputs"], State]:
        """Return the outputs after each of these tokens, and the last of them."""
        read = torch.cat((state[0], tokens), 1)
        x = self.embedding(read.clamp(min=0)) * (read != NO_TOKEN)[..., None]
        weight = self.convolution.weight
        y = F.conv1d(x.mT, weight, groups=len(weight)).mT
        return F.relu(y), (read[:, tokens.shape[1] :],)

    def axes(self, reader: Slice) -> list[Axis]:
        """Return the one axis; `reader` is what reads the convolution."""
        slices = (
            Slice(tensor=f"{self.name}.embedding.weight", dim=1),
            Slice(tensor=f"{self.name}.convolution.weight", dim=0),
            reader,
        )
        return [
            Axis(
                name=f"{self.name}.embedding",
                kind="embedding",
                size=self.embedding.embedding_dim,
                floor=1,
                slices=slices,
            )
        ]

    def outputs(self, counts: UnitCounts) -> Number:
        return counts[f"{self.name}.embedding"]

    def cost(self, counts: UnitCounts, num_tokens: int) -> Cost:
        width = self.outputs(counts)
        return Cost(
            params=(self.embedding.num_embeddings + self.context) * width,
            flops=2 * num_tokens * self.context * width,
        )


Predictor = LstmPredictor | StatelessPredictor


def make_predictor(shape: TransducerShape, *, vocabulary: int, name: str) -> Predictor:
    """Return a new predictor: an LSTM if the shape has units of one."""
    if not shape.units:
        return StatelessPredictor(
            vocabulary=vocabulary,
            embedding=shape.embedding,
            context=shape.context,
            blank=BLANK,
            name=name,
        )
    return LstmPredictor(
        vocabulary=vocabulary,
        embedding=shape.embedding,
        units=shape.units,
        blank=BLANK,
        name=name,
    )


def predict(
    predictor: Predictor, tokens: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch places outputs"]:
    """Return a predictor's outputs before each token of transcripts, and after the last."""
    # A blank first: [5, 7] is read as [blank, 5, 7], which gives three places.
    outputs, _ = predictor.advance(
        F.pad(tokens, (1, 0), value=predictor.blank), predictor.start(len(tokens))
    )
    return outputs
