"""Export of a transducer to sherpa-onnx, as its kind with a stateless predictor.

It takes RNN-T with the features of models that are trained here, and says at most one token at a
frame, where `transcribe` says up to ten.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.conformer.shape import TransducerShape
from core.decoders.transducer import Transducer
from core.export.onnx.conversion import LARGEST_INLINE, graph_purposes
from core.export.onnx.quantization import quantize_graphs
from core.export.onnx.transducer import STATELESS_ENDS, write_stateless
from core.export.sherpa import SPEC, TOKENS, Precision
from core.inference.graph_interface import ExportError

MOST_SYMBOLS = 1
"""Tokens that sherpa-onnx says at one frame."""
LOADER = "from_transducer"
PURPOSES = graph_purposes(
    {
        "encoder": "the encoder and the joint's projection of its frames",
        "decoder": "the predictor, from its last tokens",
        "joiner": "the joint",
    }
)
"""What its files are."""


def check_stateless(model: Conformer) -> Transducer:
    """Return the transducer of a model that sherpa-onnx can load.

    Raises:
        ExportError: naming the part that it cannot, and what can be done instead.
    """
    transducer, shape = model.transducer, model.shape.transducer
    assert transducer is not None
    assert shape is not None
    if model.frontend_spec.features == "nemo":
        raise ExportError(
            "A transducer for sherpa-onnx must read Kaldi's features, but reads NeMo's instead;"
            " `export --to onnx-asr` takes those."
        )
    for name, (needed, value) in _needed_and_found(model, shape).items():
        if value != needed:
            raise ExportError(
                f"A transducer for sherpa-onnx must have the {name} `{needed}`, but has `{value}`"
                ' instead; train one with `[trial.model] decoder = "rnnt"`, or export the CTC'
                " head of a hybrid."
            )
    return transducer


def _needed_and_found(model: Conformer, shape: TransducerShape) -> dict[str, tuple[object, object]]:
    return {
        "decoder": ("RNN-T", "TDT" if shape.durations else "RNN-T"),
        "predictor": ("stateless", "LSTM" if shape.units else "stateless"),
        "features": ("kaldi", model.frontend_spec.features),
        "subsampling": (4, model.frontend_spec.subsampling),
    }


def write_sherpa_transducer(
    opened: Bundle, folder: Path, *, is_int8: bool = False, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write the graphs, and `sherpa.json` with the loader and its arguments.

    Raises:
        ExportError: if the model has no such export, or the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    transducer = check_stateless(opened.model)
    write_stateless(opened.model, transducer, folder, inline_bytes=inline_bytes)
    suffixes: dict[Precision, str] = {"float": ".onnx"}
    if is_int8:
        suffixes["int8"] = ".int8.onnx"
        ends = {name: (*inputs, *outputs) for name, (inputs, outputs) in STATELESS_ENDS.items()}
        quantize_graphs(folder, ends, inline_bytes=inline_bytes)
    (folder / SPEC).write_text(json.dumps(_spec(suffixes), indent=1) + "\n")


def _spec(suffixes: Mapping[Precision, str]) -> dict[str, Any]:
    arguments = {
        precision: {name: f"{name}{suffix}" for name in STATELESS_ENDS} | {"tokens": TOKENS}
        for precision, suffix in suffixes.items()
    }
    return {"loader": LOADER, "arguments": arguments["float"], "precisions": arguments}
