"""Recognizers from exports: folders of `export --to onnx`, `sherpa` or `onnx-asr`, used as bundles.

The graphs run in ONNX Runtime; `features.json` in its folder states the features that it reads.
Exports without that file are read if their graph can only read features of one kind.
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
from core.conformer.model import Conformer
from core.conformer.output import Output
from core.data.tokenizer import FILE_NAME, Tokenizer
from core.features.spec import NATIVE, FrontendSpec, upgrade_format_1
from core.inference.graph_interface import ENCODER, SUFFIXES, ExportError
from core.inference.onnx_session import Graph
from core.inference.sherpa_graphs import ENCODER as SHERPA_ENCODER
from core.inference.sherpa_graphs import open_sherpa_graphs
from core.inference.transducer_graphs import TransducerNetwork, open_graphs
from core.report import upgrade_format_1 as upgrade_report

FEATURES_FILE = "features.json"
FEATURES_FORMAT = 2
"""The version of `features.json` that is written; 1 is read as well."""
FLOAT, INT8 = "model.onnx", "model.int8.onnx"
_NETWORKS = {ENCODER: open_graphs, SHERPA_ENCODER: open_sherpa_graphs}
"""How graphs of a transducer are read, by the name of that of its encoder."""
_ENCODERS = tuple(f"{name}{suffix}" for name in _NETWORKS for suffix in SUFFIXES.values())
Runtime = Literal["torch", "onnxruntime", "int8"]
"""Eager torch; ONNX Runtime in floats, or in 8-bit integers with ranges computed at run time."""
_PROBE = 64
"""Frames of features, which only our own front end reduces to 15."""


class GraphNetwork(nn.Module):
    """A graph with the interface of a `Conformer` in inference."""

    def __init__(self, graph: Graph, frontend_spec: FrontendSpec, vocabulary: int) -> None:
        """Wrap a graph.

        Args:
            graph: written by `export_onnx`, for sherpa-onnx or not.
            frontend_spec: the features that it reads.
            vocabulary: number of tokens, blank included.
        """
        super().__init__()
        self.graph, self.frontend_spec, self.vocabulary = graph, frontend_spec, vocabulary
        self.mels = frontend_spec.mels

    def forward(
        self, features: Float[Tensor, "batch mel_frames mels"], num_frames: Int[Tensor, " batch"]
    ) -> Output:
        """Return log-probabilities as logits, with the frames that the model itself outputs."""
        output: Output = self.graph(features, num_frames)
        if not self.graph.repeats_frames:
            return output
        # A graph for sherpa-onnx repeats each frame for all features that it was computed from.
        # Example: 10 mel frames and subsampling 4 give 0 0 0 0 1 1 1 1 2 2, of which every fourth
        # is 0 1 2.
        logits = output.logits[:, :: self.frontend_spec.subsampling]
        frames = torch.arange(logits.shape[1])
        is_frame = frames < self.frontend_spec.output_frames(num_frames.cpu())[:, None]
        return Output(ctc_logits=logits, is_frame=is_frame, hidden=())


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRecognizer:
    """A recognizer whose model runs in ONNX Runtime."""

    model: GraphNetwork | TransducerNetwork
    tokenizer: Tokenizer
    report: Mapping[str, Any]
    """The report of its bundle, as plain values."""


Network = Conformer | GraphNetwork | TransducerNetwork
Recognizer = Bundle | ExportedRecognizer


def open_recognizer(folder: Path, runtime: Runtime | None = None, *, threads: int) -> Recognizer:
    """Open a bundle or an export.

    Args:
        folder: of either.
        runtime: of an export, `onnxruntime` unless it is `int8`; a bundle is opened in the same
            way for every runtime.
        threads: of ONNX Runtime.

    Raises:
        BundleError: if it is neither a complete bundle nor a complete export for ONNX Runtime.
        CorpusError: if its tokenizer is missing or damaged.
        ExportError: if the extra `export` is not installed, or the export has no such graph.
        GraphError: if its graph is damaged or refused.
    """
    if not is_export(folder):
        return bundle.load(folder)
    if runtime == "torch":
        raise ExportError(
            f"`--runtime` of the export `{folder}` must be `onnxruntime` or `int8`, but is `torch`"
            " instead; torch runs the bundle that it was made from"
        )
    return load_export(folder, is_int8=runtime == "int8", threads=threads)


def is_export(folder: Path) -> bool:
    """Whether a folder holds a graph and is no bundle."""
    is_bundle = (folder / "checksums.json").exists()
    return not is_bundle and any((folder / name).is_file() for name in (FLOAT, INT8, *_ENCODERS))


def is_encoder(file: Path) -> bool:
    """Whether a graph is the encoder of a transducer, and not that of CTC."""
    return file.name in _ENCODERS


def load_export(folder: Path, *, is_int8: bool = False, threads: int = 1) -> ExportedRecognizer:
    """Read an export for ONNX Runtime or sherpa-onnx; only its graph is run.

    Raises:
        BundleError: naming the file that is missing or invalid.
        CorpusError: if its tokenizer is missing or damaged.
        ExportError: if the extra `export` is not installed, or there is no graph of that kind.
        GraphError: if the graph is damaged or refused.
    """
    file = graph_file(folder, is_int8=is_int8)
    tokenizer = Tokenizer.load(folder / FILE_NAME)
    file_report = folder / "report.json"
    report = upgrade_report(bundle.read_table(file_report)) if file_report.exists() else {}
    network: GraphNetwork | TransducerNetwork
    if is_encoder(file):
        spec, size = read_features(folder / FEATURES_FILE), tokenizer.size
        read = _NETWORKS[file.name.split(".")[0]]
        network = read(folder, spec, size, is_int8=is_int8, threads=threads)
    else:
        network = _open_network(file, tokenizer.size, threads=threads)
    return ExportedRecognizer(model=network.eval(), tokenizer=tokenizer, report=report)


def _open_network(file: Path, num_pieces: int, *, threads: int) -> GraphNetwork:
    """Read a graph of CTC, and its features beside it."""
    folder, graph = file.parent, Graph(file, threads=threads)
    frontend_spec = (
        read_features(folder / FEATURES_FILE)
        if (folder / FEATURES_FILE).exists()
        else probe_frontend(graph)
    )
    if (outputs := graph.vocabulary) != num_pieces:
        raise BundleError(
            f"`{folder}/{FILE_NAME}` must have {outputs} pieces, as the graph has outputs, but has"
            f" {num_pieces} instead."
        )
    return GraphNetwork(graph, frontend_spec, num_pieces)


def graph_file(folder: Path, *, is_int8: bool) -> Path:
    """Return the file of an export's graph; of a transducer, that of its encoder.

    Raises:
        ExportError: if there is none of that kind.
    """
    there = [name for name in _ENCODERS if (folder / name).is_file()]
    suffix = SUFFIXES[is_int8]
    file = folder / (f"{there[0].split('.')[0]}{suffix}" if there else (FLOAT, INT8)[is_int8])
    if not file.is_file():
        flags = " --int8" * is_int8
        raise ExportError(
            f"`{folder}` must have the graph {file.name}, but has none; `conformer-sweep export"
            f" BUNDLE --to onnx{flags} --out FOLDER` writes one"
        )
    return file


def features_text(frontend_spec: FrontendSpec) -> str:
    """Return the contents of `features.json`."""
    return json.dumps({"format": FEATURES_FORMAT, **frontend_spec.to_plain()}, indent=1) + "\n"


def read_features(file: Path) -> FrontendSpec:
    """Read the features from a file that `features_text` wrote.

    Raises:
        BundleError: naming the file, and what in it is invalid.
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
        raise BundleError(f"`{file}` must state the features of a graph, but: {error}") from None


def probe_frontend(graph: Graph) -> FrontendSpec:
    """Find the features of a graph whose folder does not name them, from its numbers of frames.

    Only our own front end makes 15 frames of 64, and it only reads Kaldi's features.

    Raises:
        BundleError: if it is another front end, as such graphs read features of several kinds.
    """
    if not graph.is_mels_first:
        # Two strides of 2 without padding: 64, 31, 15. With padding: 64, 32, 16, and 8 after a
        # third.
        output = graph(torch.zeros(1, _PROBE, NATIVE.mels), torch.tensor([_PROBE]))
        if int(output.num_frames[0]) == NATIVE.output_frames(_PROBE):
            return NATIVE
    raise BundleError(
        f"`{graph.file.parent}` must have a {FEATURES_FILE} that states the features of its graph,"
        " but was exported by a version that wrote none; export the model again"
    )
