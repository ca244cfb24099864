"""A transducer as ONNX graphs: an encoder, and one step of the predictor and the joint.

Inputs and outputs are those of NeMo's exports. The joint's projections of frames and of predictions
are parts of the encoder and of the predictor: each is computed once, and not at every visit of a
place. So `D`, the size of a frame, is the joint's width.

A predictor's state is two tensors. The units of all layers of an LSTM lie side by side, so that
layers may differ in size. A stateless predictor keeps its last tokens there, each plus 1, as a
state begins with zeros.

Shapes: N batch, M mel frames, T frames, D joint width, V vocabulary, blank included, S state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.decoders.joint import ACTIVATIONS, Joint
from core.decoders.predictor import LstmLayer, LstmPredictor, Predictor, StatelessPredictor
from core.decoders.transducer import Transducer
from core.export.onnx.conversion import (
    LARGEST_INLINE,
    Tracing,
    graph_purposes,
    speech_example,
    write_graph,
)
from core.export.onnx.layers import constant
from core.export.onnx.model import FlatEncoder
from core.inference.graph_interface import (
    ENCODER,
    ENCODER_OUTPUTS,
    NEMO_INPUTS,
    STEP,
    STEP_INPUTS,
    STEP_OUTPUTS,
    SUFFIXES,
    ExportError,
)


class EncoderGraph(FlatEncoder):
    """Computes the joint's projection of each frame."""

    def __init__(self, model: Conformer, joint: Joint) -> None:
        """Rewrite a dense model in evaluation mode."""
        super().__init__(model)
        self.projection = joint.encoder

    def forward(
        self, features: Float[Tensor, "batch mels mel_frames"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch joint time"], Int[Tensor, " batch"]]:
        x, (batch, time), lengths = self.encode(features.mT, num_frames)
        return self.projection(x).view(batch, time, -1).mT, lengths


class LstmStep(nn.Module):
    """One step of an LSTM layer, as matrix products."""

    def __init__(self, layer: LstmLayer) -> None:
        super().__init__()
        self.units = layer.units
        self.input_weight, self.weight = constant(layer.weight_ih), constant(layer.weight_hh)
        self.bias = constant(layer.bias_ih + layer.bias_hh)

    def forward(
        self,
        x: Float[Tensor, "batch inputs"],
        hidden: Float[Tensor, "batch units"],
        cell: Float[Tensor, "batch units"],
    ) -> tuple[Float[Tensor, "batch units"], Float[Tensor, "batch units"]]:
        gates = F.linear(x, self.input_weight, self.bias) + F.linear(hidden, self.weight)
        into, forget, new, out = gates.chunk(4, dim=1)  # in torch's order
        cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
        return out.sigmoid() * cell.tanh(), cell


class LstmSteps(nn.Module):
    """One step of all layers of an LSTM."""

    def __init__(self, predictor: LstmPredictor) -> None:
        super().__init__()
        self.embedding = predictor.embedding
        self.layers = nn.ModuleList(LstmStep(layer) for layer in predictor.typed_layers)
        self.sizes = [layer.units for layer in predictor.typed_layers]
        self.state = sum(self.sizes)

    def forward(
        self,
        tokens: Int[Tensor, " batch"],
        hidden: Float[Tensor, "batch state"],
        cell: Float[Tensor, "batch state"],
    ) -> tuple[
        Float[Tensor, "batch outputs"], Float[Tensor, "batch state"], Float[Tensor, "batch state"]
    ]:
        x, after = self.embedding(tokens), []
        states = zip(hidden.split(self.sizes, 1), cell.split(self.sizes, 1), strict=True)
        for layer, (old_hidden, old_cell) in zip(self.layers, states, strict=True):
            x, new_cell = layer(x, old_hidden, old_cell)
            after.append((x, new_cell))
        new_hidden, new_cells = zip(*after, strict=True)
        return x, torch.cat(new_hidden, 1), torch.cat(new_cells, 1)


class StatelessStep(nn.Module):
    """One step of a predictor that reads its last tokens; its second state is not used."""

    def __init__(self, predictor: StatelessPredictor) -> None:
        super().__init__()
        self.predictor, self.state = predictor, max(1, predictor.context - 1)

    def forward(
        self,
        tokens: Int[Tensor, " batch"],
        previous: Float[Tensor, "batch state"],
        unused: Float[Tensor, "batch state"],
    ) -> tuple[
        Float[Tensor, "batch outputs"], Float[Tensor, "batch state"], Float[Tensor, "batch state"]
    ]:
        # Context 3: a state 0 6 and the token 7 are nothing, token 5 and token 7.
        numbered = torch.cat((previous, tokens[:, None] + 1.0), 1)
        known = (numbered[:, -self.predictor.context : -1] - 1).long()  # -1: nothing
        outputs, _ = self.predictor.advance(tokens[:, None], (known,))
        return outputs[:, 0], numbered[:, 1:], unused * 1.0


class PredictorGraph(nn.Module):
    """One step of a predictor, and the joint's projection of its output."""

    def __init__(self, predictor: Predictor, joint: Joint) -> None:
        super().__init__()
        self.step = (
            LstmSteps(predictor)
            if isinstance(predictor, LstmPredictor)
            else StatelessStep(predictor)
        )
        self.projection = joint.predictor

    def forward(
        self,
        targets: Int[Tensor, "batch 1"],
        target_length: Int[Tensor, " batch"],
        hidden: Float[Tensor, "1 batch state"],
        cell: Float[Tensor, "1 batch state"],
    ) -> tuple[
        Float[Tensor, "batch joint 1"],
        Int[Tensor, " batch"],
        Float[Tensor, "1 batch state"],
        Float[Tensor, "1 batch state"],
    ]:
        x, hidden, cell = self.step(targets[:, 0].long(), hidden[0], cell[0])
        # Times 1, so that the input is part of the graph: a runtime passes it.
        return self.projection(x)[..., None], target_length * 1, hidden[None], cell[None]


class JoinerGraph(nn.Module):
    """Logits of tokens, then of durations, of a projected frame and a projected prediction."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.activation, self.output = ACTIVATIONS[joint.activation], joint.output

    def forward(
        self,
        encoder_outputs: Float[Tensor, "batch joint 1"],
        decoder_outputs: Float[Tensor, "batch joint 1"],
    ) -> Float[Tensor, "batch 1 1 outputs"]:
        x = self.activation((encoder_outputs + decoder_outputs)[..., 0])
        return self.output(x)[:, None, None]


class StepGraph(nn.Module):
    """One step of the predictor and the joint."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.predictor = PredictorGraph(transducer.predictor, transducer.joint)
        self.joiner = JoinerGraph(transducer.joint)

    def forward(
        self,
        encoder_outputs: Float[Tensor, "batch joint 1"],
        targets: Int[Tensor, "batch 1"],
        target_length: Int[Tensor, " batch"],
        hidden: Float[Tensor, "1 batch state"],
        cell: Float[Tensor, "1 batch state"],
    ) -> tuple[Tensor, ...]:
        predicted, *rest = self.predictor(targets, target_length, hidden, cell)
        return (self.joiner(encoder_outputs, predicted), *rest)


def write_encoder(
    model: Conformer, transducer: Transducer, file: Path, *, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write the graph of the encoder.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    speech, free = speech_example(model.frontend_spec.mels, is_mels_first=True)
    module = EncoderGraph(model, transducer.joint).eval()
    tracing = Tracing(
        module=module, example=speech, free=free, inputs=NEMO_INPUTS, outputs=ENCODER_OUTPUTS
    )
    write_graph(tracing, file, inline_bytes=inline_bytes)


def write_step(transducer: Transducer, file: Path) -> None:
    """Write the graph of one step of predictor and joint.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    module = StepGraph(transducer).eval()
    frame = torch.zeros(2, transducer.joint.output.in_features, 1)
    batch = torch.export.Dim("batch")
    tracing = Tracing(
        module=module,
        example=(frame, *predictor_example(module.predictor.step.state)),
        free=({0: batch}, *predictor_free(batch)),
        inputs=STEP_INPUTS,
        outputs=STEP_OUTPUTS,
    )
    write_graph(tracing, file)


def write_transducer_graphs(
    model: Conformer,
    transducer: Transducer,
    folder: Path,
    *,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Write both graphs, in floats.

    Args:
        model: the recognizer.
        transducer: of it.
        folder: for the graphs.
        inline_bytes: the most bytes of weights in a graph's own file.

    Raises:
        ExportError: if the extra `export` is not installed, or a duration is not its own index.
        OSError: if the disk is full or not writable.
    """
    check_durations(transducer)
    encoder, step = (folder / f"{name}{SUFFIXES[False]}" for name in (ENCODER, STEP))
    write_encoder(model, transducer, encoder, inline_bytes=inline_bytes)
    write_step(transducer, step)


def check_durations(transducer: Transducer) -> None:
    """Check that durations are what other programs take them for.

    Raises:
        ExportError: if one is not its own index.
    """
    durations = transducer.joint.durations
    if durations != tuple(range(len(durations))):
        raise ExportError(
            f"Durations of an export must be 0, 1, 2 and so on, but are {durations} instead."
        )


def predictor_example(state: int) -> tuple[Tensor, ...]:
    """Return inputs of a `PredictorGraph` to trace it with."""
    tokens, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    return tokens, lengths, torch.zeros(1, 2, state), torch.zeros(1, 2, state)


def predictor_free(batch: object) -> Sequence[dict[int, object]]:
    """Return which dimensions of these inputs are free."""
    return {0: batch}, {0: batch}, {1: batch}, {1: batch}


GRAPH_ENDS: Mapping[str, Sequence[str]] = {
    ENCODER: (*NEMO_INPUTS, *ENCODER_OUTPUTS),
    STEP: (*STEP_INPUTS, *STEP_OUTPUTS),
}
"""Inputs and outputs of the graphs of `write_transducer_graphs`, by name."""
GRAPHS = graph_purposes(
    {
        ENCODER: "the encoder and the joint's projection of its frames",
        STEP: "one step of predictor and joint",
    }
)
"""What the files of `write_transducer_graphs` are."""
