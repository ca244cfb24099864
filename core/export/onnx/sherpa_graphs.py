"""A transducer as the three graphs that sherpa-onnx loads: encoder, predictor and joint.

sherpa-onnx has two kinds. Its own has a stateless predictor, and frames before channels. That of
NeMo's models has states, channels before frames, and the blank as last token; inputs and outputs go
by position there, and only their names are ours.

Shapes: N batch, M mel frames, T frames, D joint width, V vocabulary, blank included, S state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.decoders.joint import Joint
from core.decoders.predictor import Predictor, StatelessPredictor
from core.decoders.transducer import Transducer
from core.export.onnx.conversion import LARGEST_INLINE, Tracing, speech_example, write_graph
from core.export.onnx.transducer import (
    EncoderGraph,
    JoinerGraph,
    PredictorGraph,
    check_durations,
    predictor_example,
    predictor_free,
)
from core.inference.graph_interface import NEMO_ENDS, STATELESS_ENDS, Ends

_Parts = Mapping[
    str, tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...], Mapping[str, str | int]]
]
"""Of each graph: the module, inputs to trace it with, their free dimensions, and metadata."""


class FramesGraph(EncoderGraph):
    """The same for sherpa-onnx's stateless kind: frames come before channels."""

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time joint"], Int[Tensor, " batch"]]:
        encoded, lengths = super().forward(features.mT, num_frames)
        return encoded.mT, lengths


class ContextGraph(nn.Module):
    """The joint's projection of a stateless predictor's output, from its last tokens."""

    def __init__(self, predictor: StatelessPredictor, joint: Joint) -> None:
        super().__init__()
        self.predictor, self.projection = predictor, joint.predictor

    def forward(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch joint"]:
        outputs, _ = self.predictor.advance(tokens[:, -1:], (tokens[:, :-1],))
        return self.projection(outputs[:, 0])


class AddedGraph(nn.Module):
    """Logits of tokens, of a projected frame and a projected prediction."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joiner = JoinerGraph(joint)

    def forward(
        self, frame: Float[Tensor, "batch joint"], predicted: Float[Tensor, "batch joint"]
    ) -> Float[Tensor, "batch outputs"]:
        return self.joiner(frame[..., None], predicted[..., None])[:, 0, 0]


class BlankLastPredictor(PredictorGraph):
    """The same as one step of a predictor, for tokens whose blank is the last one."""

    def __init__(self, predictor: Predictor, joint: Joint, vocabulary: int) -> None:
        super().__init__(predictor, joint)
        self.vocabulary = vocabulary

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
        # Of five tokens theirs are 0 to 3 and the blank 4; ours are 1 to 4 and the blank 0.
        ours = torch.remainder(targets.long() + 1, self.vocabulary)
        return super().forward(ours, target_length, hidden, cell)


def blank_last(joint: Joint, vocabulary: int) -> JoinerGraph:
    """Return the joint's graph with the blank as the last token, before the durations."""
    joiner = JoinerGraph(joint)
    old = joint.output
    order = torch.arange(old.out_features)
    order[:vocabulary] = order[:vocabulary].roll(-1)
    joiner.output = nn.Linear(old.in_features, old.out_features)
    with torch.no_grad():
        joiner.output.weight.copy_(old.weight[order])
        joiner.output.bias.copy_(old.bias[order])
    return joiner


def write_stateless(
    model: Conformer, transducer: Transducer, folder: Path, *, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write the graphs `encoder`, `decoder` and `joiner` of sherpa-onnx's stateless kind.

    Args:
        model: the recognizer.
        transducer: of it; its predictor is stateless, and it has no durations.
        folder: for the graphs.
        inline_bytes: the most bytes of weights in a graph's own file.

    Raises:
        ExportError: if the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    predictor, joint, free = transducer.predictor, transducer.joint, {0: torch.export.Dim("batch")}
    assert isinstance(predictor, StatelessPredictor)
    width = joint.output.in_features
    tokens, row = torch.zeros(2, predictor.context, dtype=torch.int64), torch.zeros(2, width)
    speech, free_speech = speech_example(model.frontend_spec.mels, is_mels_first=False)
    parts: _Parts = {
        # The name by which sherpa-onnx selects encoders with these inputs and outputs.
        "encoder": (FramesGraph(model, joint), speech, free_speech, {"model_type": "zipformer2"}),
        "decoder": (
            ContextGraph(predictor, joint),
            (tokens,),
            (free,),
            {"vocab_size": model.vocabulary, "context_size": predictor.context},
        ),
        # Two tensors: one that was given twice would be traced as one input.
        "joiner": (AddedGraph(joint), (row, row.clone()), (free, free), {"joiner_dim": width}),
    }
    _write_parts(parts, STATELESS_ENDS, folder, inline_bytes=inline_bytes)


def write_nemo(
    model: Conformer, transducer: Transducer, folder: Path, *, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write the graphs `encoder`, `decoder` and `joiner` of sherpa-onnx's kind for NeMo's models.

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
    joint, batch = transducer.joint, torch.export.Dim("batch")
    predictor = BlankLastPredictor(transducer.predictor, joint, model.vocabulary)
    frame = torch.zeros(2, joint.output.in_features, 1)
    speech, free_speech = speech_example(model.frontend_spec.mels, is_mels_first=True)
    metadata = _nemo_metadata(model, joint, predictor.step.state)
    parts: _Parts = {
        "encoder": (EncoderGraph(model, joint), speech, free_speech, metadata),
        "decoder": (
            predictor,
            predictor_example(predictor.step.state),
            tuple(predictor_free(batch)),
            {},
        ),
        "joiner": (
            blank_last(joint, model.vocabulary),
            (frame, frame.clone()),
            ({0: batch}, {0: batch}),
            {},
        ),
    }
    _write_parts(parts, NEMO_ENDS, folder, inline_bytes=inline_bytes)


def _nemo_metadata(model: Conformer, joint: Joint, state: int) -> dict[str, str | int]:
    spec = model.frontend_spec
    return {
        "vocab_size": model.vocabulary - 1,  # without the blank
        "subsampling_factor": spec.subsampling,
        "normalize_type": "per_feature" if spec.normalization == "per_feature" else "",
        "feat_dim": spec.mels,
        # The units of all layers lie side by side, as in one.
        "pred_rnn_layers": 1,
        "pred_hidden": state,
        # By this alone sherpa-onnx knows that the joint gives durations, too.
        "url": "tdt" if joint.durations else "rnnt",
    }


def _write_parts(parts: _Parts, ends: Ends, folder: Path, *, inline_bytes: int) -> None:
    for name, (module, example, free, metadata) in parts.items():
        inputs, outputs = ends[name]
        tracing = Tracing(
            module=module.eval(), example=example, free=free, inputs=inputs, outputs=outputs
        )
        texts = {key: str(value) for key, value in metadata.items()}
        write_graph(tracing, folder / f"{name}.onnx", metadata=texts, inline_bytes=inline_bytes)
