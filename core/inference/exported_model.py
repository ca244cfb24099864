"""Exports at work: a folder that `export --to onnx` or `sherpa` wrote, taken as a bundle is.

The graph runs in ONNX Runtime; what features it wants, `features.json` in its folder says. Exports
of before that file are read where their graph can only be of one kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core import bundle
from core.bundle import Bundle, BundleError
from core.conformer.model import Conformer, Output
from core.conformer.shape import MELS
from core.data.tokenizer import FILE_NAME, Tokenizer
from core.features.spec import NATIVE, FrontendSpec, upgrade_format_1
from core.inference.graph_interface import ExportError
from core.inference.onnx_session import Graph
from core.report import upgrade_format_1 as upgrade_report

FEATURES_FILE = "features.json"
FEATURES_FORMAT = 2
"""The version of `features.json` that is written; 1 is read as well."""
FLOAT, INT8 = "model.onnx", "model.int8.onnx"
Runtime = Literal["torch", "onnxruntime", "int8"]
"""Eager torch; ONNX Runtime in floats, or in 8-bit integers whose ranges are found as it runs."""
_PROBE = 64
"""Frames of features of which only our own front end leaves 15."""


class GraphNetwork(nn.Module):
    """A graph that answers as a `Conformer` does that is only asked what it hears."""

    def __init__(self, graph: Graph, frontend_spec: FrontendSpec, vocabulary: int) -> None:
        """Wrap a graph.

        Args:
            graph: of `export_onnx`, for sherpa-onnx or not.
            frontend_spec: from which features it hears.
            vocabulary: tokens that it tells apart.
        """
        super().__init__()
        self.graph, self.frontend_spec, self.vocabulary = graph, frontend_spec, vocabulary

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Log-probabilities as logits, one frame for each that the model itself would give."""
        output: Output = self.graph(features, num_frames)
        if not self.graph.is_mels_first:
            return output
        # As NeMo's models are read: a frame is repeated for each of the features it was made of.
        logits = output.logits[:, :: self.frontend_spec.subsampling]
        frames = torch.arange(logits.shape[1])
        is_frame = frames < self.frontend_spec.output_frames(num_frames.cpu())[:, None]
        return Output(logits=logits, is_frame=is_frame, hidden=())


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRecognizer:
    """What a bundle is, of a model that runs in ONNX Runtime."""

    model: GraphNetwork
    tokenizer: Tokenizer
    report: Mapping[str, Any]
    """What was measured of it, as plain values."""


Network = Conformer | GraphNetwork
Recognizer = Bundle | ExportedRecognizer


def open_recognizer(folder: Path, runtime: Runtime | None = None, *, threads: int) -> Recognizer:
    """Open a bundle or an export.

    Args:
        folder: of either.
        runtime: what runs an export, `onnxruntime` unless it is `int8`; a bundle is opened as it
            is, whatever runs it.
        threads: of ONNX Runtime.

    Raises:
        BundleError: if it is no whole bundle and no whole export, or one for another program.
        CorpusError: if its tokenizer is missing or damaged.
        ExportError: if the extra `export` is not installed, or the export has no such graph.
        GraphError: if its graph is damaged, or has what is refused.
    """
    if not is_export(folder):
        return bundle.load(folder)
    if runtime == "torch":
        raise ExportError(
            f"`--runtime` of the export `{folder}` must be `onnxruntime` or `int8`, but is `torch`"
            " instead; torch runs the bundle that it was made of"
        )
    return load_export(folder, is_int8=runtime == "int8", threads=threads)


def is_export(folder: Path) -> bool:
    """Whether a folder holds graphs and is no bundle."""
    is_bundle = (folder / "checksums.json").exists()
    return not is_bundle and any((folder / name).is_file() for name in (FLOAT, INT8))


def load_export(folder: Path, *, is_int8: bool = False, threads: int = 1) -> ExportedRecognizer:
    """Read an export for ONNX Runtime or sherpa-onnx; nothing in it is run but its graph.

    Raises:
        BundleError: naming the file that is missing or says what cannot be.
        CorpusError: if its tokenizer is missing or damaged.
        ExportError: if the extra `export` is not installed, or there is no graph of that kind.
        GraphError: if the graph is damaged, or has what is refused.
    """
    file = graph_file(folder, is_int8=is_int8)
    tokenizer = Tokenizer.load(folder / FILE_NAME)
    file_report = folder / "report.json"
    report = upgrade_report(bundle.read_table(file_report)) if file_report.exists() else {}
    graph = Graph(file, threads=threads)
    frontend_spec = (
        read_features(folder / FEATURES_FILE)
        if (folder / FEATURES_FILE).exists()
        else probe_frontend(graph)
    )
    if (outputs := graph.vocabulary) != tokenizer.size:
        raise BundleError(
            f"`{folder}/{FILE_NAME}` must have {outputs} pieces, as the graph has outputs, but has"
            f" {tokenizer.size} instead."
        )
    network = GraphNetwork(graph, frontend_spec, tokenizer.size).eval()
    return ExportedRecognizer(model=network, tokenizer=tokenizer, report=report)


def graph_file(folder: Path, *, is_int8: bool) -> Path:
    """The file of an export's graph.

    Raises:
        ExportError: if there is none of that kind.
    """
    file = folder / (INT8 if is_int8 else FLOAT)
    if not file.is_file():
        flags = " --int8" * is_int8
        raise ExportError(
            f"`{folder}` must have the graph {file.name}, but has none; `conformer-sweep export"
            f" BUNDLE --to onnx{flags} --out FOLDER` writes one"
        )
    return file


def features_text(frontend_spec: FrontendSpec) -> str:
    """The contents of `features.json`."""
    return json.dumps({"format": FEATURES_FORMAT, **frontend_spec.to_plain()}, indent=1) + "\n"


def read_features(file: Path) -> FrontendSpec:
    """Read back what `features_text` wrote.

    Raises:
        BundleError: naming the file, and what in it cannot be.
    """
    plain = bundle.read_table(file)
    written = plain.pop("format", None)
    if written not in (1, FEATURES_FORMAT):
        raise BundleError(
            f"`{file}` must be of format 1 or {FEATURES_FORMAT}, but is of {str(written)[:40]}"
            " instead; a newer version of conformer-sweep may read it."
        )
    try:
        return FrontendSpec.from_plain(upgrade_format_1(plain) if written == 1 else plain)
    except ValueError as error:
        raise BundleError(f"`{file}` must say what features a graph wants, but: {error}") from None


def probe_frontend(graph: Graph) -> FrontendSpec:
    """The features of a graph whose folder does not name them, by what its front end leaves.

    Only our own front end leaves 15 frames of 64, and only Kaldi's features go through it.

    Raises:
        BundleError: if it is another front end: such graphs hear features of several kinds.
    """
    if not graph.is_mels_first:
        output = graph(torch.zeros(1, _PROBE, MELS), torch.tensor([_PROBE]))
        if int(output.num_frames[0]) == NATIVE.output_frames(_PROBE):
            return NATIVE
    raise BundleError(
        f"`{graph.file.parent}` must have a {FEATURES_FILE} that says what its graph hears,"
        " but was exported by a version that wrote none; export the model again."
    )
