"""How fast a recogniser is on this machine's CPU, in each runtime that it can be given to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from core.conformer.model import Conformer
from core.deploy.onnx import export_onnx
from core.deploy.quantise import quantise_dynamic
from core.deploy.runtime import Graph
from core.evaluation.speed import batch_seconds

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One model in one runtime."""

    runtime: str
    latency_ms: float
    """Median of a forward pass over one utterance."""
    real_time_factor: float
    """That over the utterance's length."""
    audio_seconds_per_second: float
    """Of a batch of such utterances."""


def speeds(
    models: Mapping[str, nn.Module], *, utterance_seconds: float, batch: int, repeats: int
) -> list[Speed]:
    """Of each model by its runtime's name; threads are those that each was given."""
    alone, together = (
        batch_seconds(
            models,
            utterances=count,
            utterance_seconds=utterance_seconds,
            repeats=repeats,
            device=CPU,
        )
        for count in (1, batch)
    )
    return [
        Speed(
            runtime=name,
            latency_ms=1000 * alone[name],
            real_time_factor=alone[name] / utterance_seconds,
            audio_seconds_per_second=batch * utterance_seconds / together[name],
        )
        for name in models
    ]


def in_onnxruntime(
    model: Conformer, folder: Path, *, threads: int, is_int8: bool = False
) -> dict[str, nn.Module]:
    """The model as a graph, and if asked for in 8-bit integers beside it, written into a folder.

    Raises:
        ExportError: if the extra `export` is not installed.
    """
    file = folder / "model.onnx"
    export_onnx(model, file)
    graphs: dict[str, nn.Module] = {"onnxruntime": Graph(file, threads=threads)}
    if is_int8:
        small = folder / "model.int8.onnx"
        quantise_dynamic(file, small)
        graphs["onnxruntime int8"] = Graph(small, threads=threads)
    return graphs
