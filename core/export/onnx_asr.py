"""Export to onnx-asr: the files that its NeMo models are loaded from, and its transcripts.

onnx-asr computes NeMo's features itself, normalized per feature. It takes CTC, RNN-T and TDT. The
package is that of the extra `onnx-asr`, and it runs in a process of its own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from core.bundle import Bundle
from core.conformer.model import Conformer
from core.decoders.greedy import MOST_SYMBOLS
from core.export import onnx_asr_worker
from core.export.onnx.conversion import (
    LARGEST_INLINE,
    Tracing,
    speech_example,
    write_graph,
)
from core.export.onnx.model import Inference
from core.export.onnx.quantization import quantize_graphs
from core.export.onnx.transducer import GRAPH_ENDS, GRAPHS, write_transducer_graphs
from core.export.sherpa import tokens_text
from core.export.worker_process import RuntimeTranscripts, needs_package, transcribe_in_process
from core.inference.graph_interface import (
    CTC_OUTPUTS,
    NEMO_INPUTS,
    ExportError,
)

Kind = Literal["nemo-conformer-ctc", "nemo-conformer-rnnt", "nemo-conformer-tdt"]
CONFIG, VOCABULARY = "config.json", "vocab.txt"
MODEL = "model"
"""Name of the graph of CTC, without its suffix."""
PURPOSES = {
    CONFIG: "the kind of the model, and the sizes that onnx-asr must know",
    VOCABULARY: "each token's symbol and id",
    **GRAPHS,
}
"""What its files are, where other exports have no file of the name."""


def needs_onnx_asr() -> None:
    """Check that onnx-asr is installed.

    Raises:
        ExportError: if it is not, with the command that installs it.
    """
    needs_package("onnx_asr", "onnx-asr")


def model_kind(model: Conformer) -> Kind:
    """Return what onnx-asr calls such a model.

    Raises:
        ExportError: if it reads other features.
    """
    spec, transducer = model.frontend_spec, model.shape.transducer
    usual = ("nemo", "per_feature", 0.97, "hann")
    if (spec.features, spec.normalization, spec.preemphasis, spec.window) != usual:
        raise ExportError(
            "A model for onnx-asr must read NeMo's features, normalized per feature, with a"
            f" pre-emphasis of 0.97 and a window `hann`, but reads `{spec.features}`,"
            f" `{spec.normalization}`, {spec.preemphasis:g} and `{spec.window}` instead."
        )
    if transducer is None:
        return "nemo-conformer-ctc"
    return "nemo-conformer-tdt" if transducer.durations else "nemo-conformer-rnnt"


class CtcGraph(Inference):
    """CTC's log-probabilities, with mels before frames in the features."""

    def forward(
        self, features: Float[Tensor, "batch mels mel_frames"], num_frames: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch time vocabulary"], Int[Tensor, " batch"]]:
        return super().forward(features.mT, num_frames)


def write_onnx_asr(
    opened: Bundle, folder: Path, *, is_int8: bool = False, inline_bytes: int = LARGEST_INLINE
) -> None:
    """Write the graphs, the tokens and the configuration.

    Raises:
        ExportError: if the model has no such export, or the extra `export` is not installed.
        OSError: if the disk is full or not writable.
    """
    model, kind = opened.model, model_kind(opened.model)
    ends: Mapping[str, Sequence[str]]
    if model.transducer is None:
        speech, free = speech_example(model.mels, is_mels_first=True)
        tracing = Tracing(
            module=CtcGraph(model),
            example=speech,
            free=free,
            inputs=NEMO_INPUTS,
            outputs=CTC_OUTPUTS,
        )
        write_graph(tracing, folder / f"{MODEL}.onnx", inline_bytes=inline_bytes)
        ends = {MODEL: (*NEMO_INPUTS, *CTC_OUTPUTS)}
    else:
        write_transducer_graphs(model, model.transducer, folder, inline_bytes=inline_bytes)
        ends = GRAPH_ENDS
    if is_int8:
        quantize_graphs(folder, ends, inline_bytes=inline_bytes)
    (folder / VOCABULARY).write_text(tokens_text(opened.tokenizer), encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(_config(model, kind), indent=1) + "\n")


def _config(model: Conformer, kind: Kind) -> dict[str, Any]:
    return {
        "model_type": kind,
        "features_size": model.mels,
        "subsampling_factor": model.frontend_spec.subsampling,
        "max_tokens_per_step": MOST_SYMBOLS,
    }


def with_its_spaces(text: str) -> str:
    """Return a transcript with the spaces that onnx-asr writes: none before what is no letter.

    Example: the unknown token in `N ⁇ E` follows `N` without a space, `N⁇ E`.
    """
    return re.sub(r"\s\B", "", text)


def transcribe_with_onnx_asr(
    folder: Path, sounds: Sequence[Float[Tensor, " _"]], *, is_int8: bool = False
) -> RuntimeTranscripts:
    """Transcribe sounds with an export, in a process of its own.

    Raises:
        ExportError: if onnx-asr is not installed, or cannot load or run the export.
    """
    needs_onnx_asr()
    kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
    request = {
        "kind": kind,
        "folder": str(folder),
        "quantization": "int8" if is_int8 else None,
    }
    rule = f"onnx-asr must load and run the export as `{kind}`"
    return transcribe_in_process(onnx_asr_worker.__file__, request, sounds, rule=rule)
