"""How fast a recogniser is on this machine's CPU, in each runtime that can run it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from core import bundle
from core.conformer.model import Conformer
from core.evaluation.timer import noise, pass_seconds
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_weights
from core.inference.exported_model import (
    ExportedRecognizer,
    GraphNetwork,
    Recognizer,
    Runtime,
    graph_file,
    is_export,
)
from core.inference.onnx_session import Graph
from core.pruning.space import whole_cost
from core.stages import Announce, be_silent

SUFFIX = ".onnx"
MOST_SECONDS = 60.0
"""For all passes of one size of batch: beyond it a median is of fewer of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """A model in one runtime."""

    runtime: str
    latency_ms: float
    """Median of a forward pass over one utterance."""
    real_time_factor: float
    """That over the utterance's length."""
    audio_seconds_per_second: float
    """Of a batch of such utterances."""
    passes: tuple[int, int]
    """That the medians are of: of one utterance, and of a batch."""


def benchmark_model(
    place: Path,
    *,
    utterance_seconds: float,
    batch: int,
    threads: int,
    repeats: int,
    is_int8: bool,
    announce: Announce = be_silent,
) -> dict[str, Any]:
    """Sizes and speeds as plain values, of a bundle in all runtimes, or of a graph in its one.

    Of an export, its graph in floats is timed, and with `is_int8` that in 8-bit integers, too.

    Args:
        place: a bundle's folder, a graph, or an export.
        utterance_seconds: length of an utterance.
        batch: utterances at a time for throughput.
        threads: of each runtime.
        repeats: the most passes that a median is of; of a slow model they are fewer.
        is_int8: whether 8-bit integers are timed, too.
        announce: told what begins.

    Raises:
        BundleError, GraphError: if there is no such thing, or it is damaged.
        ExportError: if the extra `export` is not installed, or an export has no such graph.
    """
    sizes: dict[str, float | None] = {"params": None, "gflops": None}
    models: dict[str, nn.Module]
    if place.suffix == SUFFIX:
        models = {"onnxruntime": Graph(place, threads=threads)}
    elif is_export(place):
        files = {"onnxruntime": graph_file(place, is_int8=False)}
        if is_int8:
            files["int8"] = graph_file(place, is_int8=True)
        models = {name: Graph(file, threads=threads) for name, file in files.items()}
    else:
        announce("reading the model")
        model = bundle.load(place).model
        names: tuple[Runtime, ...] = ("torch", "onnxruntime", "int8")
        with TemporaryDirectory() as folder:
            models = {
                name: load_in_runtime(model, name, Path(folder), threads, announce=announce)
                for name in names[: 2 + is_int8]
            }
        cost = whole_cost(model, utterance_seconds)
        sizes = {"params": int(cost.params), "gflops": float(cost.flops) / 1e9}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = speeds(
            models,
            utterance_seconds=utterance_seconds,
            batch=batch,
            repeats=repeats,
            announce=announce,
        )
    finally:
        torch.set_num_threads(before)
    setting = {"seconds": utterance_seconds, "batch": batch, "threads": threads}
    return {**sizes, **setting, "rows": [asdict(row) for row in rows]}


def speeds(
    models: Mapping[str, nn.Module],
    *,
    utterance_seconds: float,
    batch: int,
    repeats: int,
    announce: Announce = be_silent,
) -> list[Speed]:
    """Of each model by its runtime's name.

    Args:
        models: by their runtimes' names.
        utterance_seconds: length of an utterance.
        batch: utterances at a time for throughput.
        repeats: the most passes that a median is of.
        announce: told what begins.
    """
    cpu = torch.device("cpu")
    alone, together = (
        pass_seconds(
            models,
            speech=noise(count, utterance_seconds, cpu),
            repeats=repeats,
            device=cpu,
            most_seconds=MOST_SECONDS,
            announce=announce,
        )
        for count in (1, batch)
    )
    return [
        Speed(
            runtime=name,
            latency_ms=1000 * median(alone[name]),
            real_time_factor=median(alone[name]) / utterance_seconds,
            audio_seconds_per_second=batch * utterance_seconds / median(together[name]),
            passes=(len(alone[name]), len(together[name])),
        )
        for name in models
    ]


def load_in_runtime(
    model: Conformer,
    runtime: Runtime,
    folder: Path,
    threads: int = 1,
    *,
    announce: Announce = be_silent,
) -> nn.Module:
    """The model as that runtime runs it.

    Args:
        model: dense.
        runtime: its name.
        folder: where the graphs that it needs are written.
        threads: of ONNX Runtime.
        announce: told what begins.

    Raises:
        ExportError: if the extra `export` is not installed and the runtime needs it.
    """
    if runtime == "torch":
        return model
    graph = folder / f"model{SUFFIX}"
    if not graph.exists():
        announce("writing the graph")
        export_onnx(model, graph)
    if runtime == "int8":
        whole, graph = graph, folder / f"model.int8{SUFFIX}"
        announce("writing the graph in 8-bit integers")
        quantize_weights(whole, graph)
    announce(f"loading `{graph.name}`")
    return Graph(graph, threads=threads)


def recognizer_in(opened: Recognizer, runtime: Runtime | None, *, threads: int) -> Recognizer:
    """The recognizer as that runtime runs it; an export, or where none is named, as it is.

    Raises:
        ExportError: if the extra `export` is not installed and the runtime needs it.
    """
    if isinstance(opened, ExportedRecognizer) or runtime in (None, "torch"):
        return opened
    with TemporaryDirectory(prefix="conformer-sweep-graph-") as folder:
        graph = load_in_runtime(opened.model, runtime, Path(folder), threads)
    assert isinstance(graph, Graph)
    network = GraphNetwork(graph, opened.model.frontend_spec, opened.tokenizer.size).eval()
    return ExportedRecognizer(model=network, tokenizer=opened.tokenizer, report=opened.report)
