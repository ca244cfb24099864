"""The speed of a recognizer on this machine's CPU, in each runtime that can run it."""

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
from core.evaluation.timer import mels_of, noise, pass_seconds
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_graphs, quantize_weights
from core.export.onnx.transducer import GRAPH_ENDS, write_transducer_graphs
from core.inference.exported_model import (
    ExportedRecognizer,
    GraphNetwork,
    Recognizer,
    Runtime,
    graph_file,
    is_encoder,
    is_export,
    load_export,
)
from core.inference.graph_interface import ENCODER
from core.inference.onnx_session import Graph
from core.inference.transducer_graphs import TransducerNetwork, open_graphs
from core.pruning.space import whole_cost
from core.stages import Announce, be_silent

SUFFIX = ".onnx"
MOST_SECONDS = 60.0
"""Longest time for all passes of one batch size; beyond it, medians are of fewer passes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The speed of a model in one runtime."""

    runtime: str
    latency_ms: float
    """Median of a forward pass over one utterance."""
    real_time_factor: float
    """Seconds of computing per second of audio, for one utterance."""
    audio_seconds_per_second: float
    """Throughput of a batch of such utterances."""
    passes: tuple[int, int]
    """Number of timed passes: of one utterance, and of a batch."""


def benchmark_model(
    path: Path,
    *,
    utterance_seconds: float,
    batch: int,
    threads: int,
    repeats: int,
    is_int8: bool,
    announce: Announce = be_silent,
) -> dict[str, Any]:
    """Return sizes and speeds of a bundle in all runtimes, or of a graph in ONNX Runtime.

    Of an export, the graph in floats is timed, and with `is_int8` that in 8-bit integers, too.

    Args:
        path: a bundle's folder, a graph, or an export.
        utterance_seconds: length of an utterance.
        batch: utterances at a time for throughput.
        threads: of each runtime.
        repeats: the largest number of timed passes; a slow model gets fewer.
        is_int8: whether 8-bit integers are timed, too.
        announce: called with what begins.

    Raises:
        BundleError, GraphError: if the model is missing or damaged.
        ExportError: if the extra `export` is not installed, or an export has no such graph.
    """
    sizes: dict[str, float | None] = {"params": None, "gflops": None}
    if path.suffix == SUFFIX or is_export(path):
        models = _open_graphs(path, threads, is_int8=is_int8)
    else:
        announce("reading the model")
        model = bundle.load(path).model
        models = _open_runtimes(model, threads, is_int8=is_int8, announce=announce)
        cost = whole_cost(model, utterance_seconds)
        sizes = {"params": int(cost.params), "gflops": float(cost.flops) / 1e9}
    # The number of threads is the whole process's: it is put back whatever happens.
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = measure_speeds(
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


def _open_graphs(path: Path, threads: int, *, is_int8: bool) -> dict[str, nn.Module]:
    """Return a graph, or the graphs of an export, by their runtimes."""
    if path.suffix == SUFFIX:
        return {"onnxruntime": Graph(path, threads=threads)}
    forms = {"onnxruntime": False, "int8": True} if is_int8 else {"onnxruntime": False}
    return {
        name: _open_export(path, threads, is_int8=is_integer) for name, is_integer in forms.items()
    }


def _open_export(folder: Path, threads: int, *, is_int8: bool) -> nn.Module:
    """Return what of an export is timed; a graph of CTC needs no other file for that."""
    file = graph_file(folder, is_int8=is_int8)
    if is_encoder(file):
        return load_export(folder, is_int8=is_int8, threads=threads).model
    return Graph(file, threads=threads)


def _open_runtimes(
    model: Conformer, threads: int, *, is_int8: bool, announce: Announce
) -> dict[str, nn.Module]:
    """Return a model as each runtime runs it; one with a transducer decodes."""
    names: tuple[Runtime, ...] = ("torch", "onnxruntime", "int8")
    # Graphs are in memory once they are loaded: their files may go before they are timed.
    with TemporaryDirectory() as folder:
        return {
            name: load_in_runtime(model, name, Path(folder), threads, announce=announce)
            # True counts as 1: the third runtime is there only with `is_int8`.
            for name in names[: 2 + is_int8]
        }


def measure_speeds(
    models: Mapping[str, nn.Module],
    *,
    utterance_seconds: float,
    batch: int,
    repeats: int,
    announce: Announce = be_silent,
) -> list[Speed]:
    """Measure the speed of each model.

    Args:
        models: by their runtimes' names.
        utterance_seconds: length of an utterance.
        batch: utterances at a time for throughput.
        repeats: the largest number of timed passes.
        announce: called with what begins.
    """
    cpu = torch.device("cpu")
    alone, together = (
        pass_seconds(
            models,
            speech=noise(count, utterance_seconds, cpu, mels=mels_of(models.values())),
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
    """Return the model as a module that runs in a runtime.

    Args:
        model: dense.
        runtime: its name.
        folder: for the graphs that it needs.
        threads: of ONNX Runtime.
        announce: called with what begins.

    Raises:
        ExportError: if the extra `export` is not installed and the runtime needs it.
    """
    if runtime == "torch":
        return model
    is_int8 = runtime == "int8"
    if model.transducer is not None:
        if not (folder / f"{ENCODER}{SUFFIX}").exists():
            announce("writing the graphs")
            write_transducer_graphs(model, model.transducer, folder)
        if is_int8:
            announce("writing the graphs in 8-bit integers")
            quantize_graphs(folder, GRAPH_ENDS)
        spec, size = model.frontend_spec, model.vocabulary
        return open_graphs(folder, spec, size, is_int8=is_int8, threads=threads).eval()
    graph = folder / f"model{SUFFIX}"
    if not graph.exists():
        announce("writing the graph")
        export_onnx(model, graph)
    if is_int8:
        whole, graph = graph, folder / f"model.int8{SUFFIX}"
        announce("writing the graph in 8-bit integers")
        quantize_weights(whole, graph)
    announce(f"loading `{graph.name}`")
    return Graph(graph, threads=threads)


def recognizer_in(opened: Recognizer, runtime: Runtime | None, *, threads: int) -> Recognizer:
    """Return the recognizer in a runtime; an export, or one without a runtime, is not changed.

    Raises:
        ExportError: if the extra `export` is not installed and the runtime needs it.
    """
    if isinstance(opened, ExportedRecognizer) or runtime in (None, "torch"):
        return opened
    with TemporaryDirectory(prefix="conformer-sweep-graph-") as folder:
        network = load_in_runtime(opened.model, runtime, Path(folder), threads)
    if isinstance(network, Graph):
        spec = opened.model.frontend_spec
        network = GraphNetwork(network, spec, opened.tokenizer.size).eval()
    assert isinstance(network, GraphNetwork | TransducerNetwork)
    return ExportedRecognizer(model=network, tokenizer=opened.tokenizer, report=opened.report)
