"""What benchmarks share: arguments, the machine's kind, a table for people, JSON for scripts."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from core.features.spec import NATIVE

RESULTS = Path(__file__).parents[1] / "results"
MANY_COLUMNS = 10_000
"""Of a terminal: more than any table takes."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one object, last on stdout")
    parser.add_argument("--save", action="store_true", help="keep the object under results/")
    return parser


def emit(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    args: argparse.Namespace,
) -> None:
    """Print the table, keep the object if asked for, and print it last if asked for."""
    _print(_table(name, rows))
    whole = {"benchmark": name, **values, "rows": list(rows), "provenance": provenance()}
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    if args.json:
        print(json.dumps(whole))


def provenance() -> dict[str, Any]:
    names = ["torch", "torchaudio", "ray", "optuna", "mlflow", "lhotse"]
    names += ["onnxruntime"] if find_spec("onnxruntime") else []  # an extra
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "date": time.strftime("%Y-%m-%d"),
    }


def machine() -> str:
    """The kind of machine, not its name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {_processor()}"


def interleaved(runs: Mapping[str, Callable[[], None]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, so that drift of the machine meets all alike; after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def on_one_utterance(
    models: Mapping[str, nn.Module], seconds: float, *, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each model's forward passes over one utterance of noise, in turn."""
    frames = round(100 * seconds)
    features, num_frames = torch.randn(1, frames, NATIVE.mels), torch.tensor([frames])
    runs = {name: partial(model, features, num_frames) for name, model in models.items()}
    return interleaved(runs, repeats=repeats)


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column each that any row has."""
    table = Table(title=f"{name} ({machine()})")
    columns = dict.fromkeys(column for row in rows for column in row)
    for column in columns:
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    return table


def _print(table: Table) -> None:
    """As wide as it is: many columns squeezed into a narrow terminal cannot be read at all."""
    console = Console()
    unbounded = console.options.update(width=MANY_COLUMNS)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
