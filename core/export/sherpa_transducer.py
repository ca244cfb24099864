"""Export of a transducer to sherpa-onnx, as one of its two kinds.

Its own kind takes an RNN-T with a stateless predictor and Kaldi's features, as they are trained
here, and says at most one token at a frame. The kind for NeMo's models takes RNN-T and TDT with any
predictor, and computes features that are nearly NeMo's. `transcribe` says up to ten at a frame.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.conformer.shape import TransducerShape
from core.decoders.greedy import MOST_SYMBOLS
from core.decoders.transducer import Transducer
from core.export.onnx.conversion import LARGEST_INLINE, graph_purposes
from core.export.onnx.quantization import quantize_graphs
from core.export.onnx.sherpa_graphs import write_nemo, write_stateless
from core.export.sherpa import SPEC, TOKENS, Precision, tokens_text
from core.inference.graph_interface import NEMO_ENDS, STATELESS_ENDS, ExportError

LOADER = "from_transducer"
MOST_OF_TDT = 5
"""Tokens of a TDT that sherpa-onnx says at one frame."""
PURPOSES = graph_purposes(
    {
        "encoder": "the encoder and the joint's projection of its frames",
        "decoder": "the predictor, from its last tokens or its states",
        "joiner": "the joint",
    }
)
"""What its files are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SherpaKind:
    """How sherpa-onnx takes a transducer."""

    most_symbols: int
    """Tokens that it says at one frame."""
    is_nemo: bool
    is_exact: bool = True
    """Whether it computes exactly the features that the model was trained on."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Arguments of its loader beside the files."""


def choose_kind(model: Conformer) -> SherpaKind:
    """Return the kind as which sherpa-onnx takes a model with a transducer.

    Raises:
        ExportError: if there is none, naming the part, and what can be done instead.
    """
    spec, shape = model.frontend_spec, model.shape.transducer
    assert shape is not None
    if spec.features == "sherpa":
        raise ExportError(
            "A transducer for sherpa-onnx must read the features that it computes for one, but"
            " reads those that it computes for CTC; `import --for-sherpa --decoder transducer`"
            " makes one that does."
        )
    if spec.features != "kaldi":
        return SherpaKind(
            most_symbols=MOST_OF_TDT if shape.durations else MOST_SYMBOLS,
            is_nemo=True,
            is_exact=spec.features == "sherpa_transducer",
            options={"model_type": "nemo_transducer"},
        )
    _check_own_kind(model, shape)
    return SherpaKind(most_symbols=1, is_nemo=False)


def _check_own_kind(model: Conformer, shape: TransducerShape) -> None:
    for name, (needed, value) in _needed_and_found(model, shape).items():
        if value != needed:
            raise ExportError(
                f"A transducer of Kaldi's features for sherpa-onnx must have the {name}"
                f" `{needed}`, but has `{value}` instead; train one with"
                ' `[trial.model] decoder = "rnnt"`, or export the CTC head of a hybrid.'
            )


def _needed_and_found(model: Conformer, shape: TransducerShape) -> dict[str, tuple[object, object]]:
    return {
        "decoder": ("RNN-T", "TDT" if shape.durations else "RNN-T"),
        "predictor": ("stateless", "LSTM" if shape.units else "stateless"),
        "subsampling": (4, model.frontend_spec.subsampling),
    }


def write_sherpa_transducer(
    opened: Bundle,
    transducer: Transducer,
    kind: SherpaKind,
    folder: Path,
    *,
    is_int8: bool = False,
    inline_bytes: int = LARGEST_INLINE,
) -> None:
    """Write the graphs, the tokens, and `sherpa.json` with the loader and its arguments.

    Raises:
        ExportError: if the model has no such export, or the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    write, ends = (write_nemo, NEMO_ENDS) if kind.is_nemo else (write_stateless, STATELESS_ENDS)
    write(opened.model, transducer, folder, inline_bytes=inline_bytes)
    suffixes: dict[Precision, str] = {"float": ".onnx"}
    if is_int8:
        suffixes["int8"] = ".int8.onnx"
        names = {name: (*inputs, *outputs) for name, (inputs, outputs) in ends.items()}
        quantize_graphs(folder, names, inline_bytes=inline_bytes)
    tokens = tokens_text(opened.tokenizer, is_blank_last=kind.is_nemo)
    (folder / TOKENS).write_text(tokens, encoding="utf-8")
    (folder / SPEC).write_text(json.dumps(_spec(list(ends), suffixes, kind), indent=1) + "\n")


def _spec(
    graphs: Sequence[str], suffixes: Mapping[Precision, str], kind: SherpaKind
) -> dict[str, Any]:
    arguments = {
        precision: {name: f"{name}{suffix}" for name in graphs} | {"tokens": TOKENS}
        for precision, suffix in suffixes.items()
    }
    return {
        "loader": LOADER,
        "arguments": arguments["float"] | dict(kind.options),
        "precisions": arguments,
        "options": dict(kind.options),
    }
