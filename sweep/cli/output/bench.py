"""The output of `bench`: a title and a table."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

HEADINGS = ("runtime", "latency (ms)", "real-time factor", "audio seconds a second")


def bench_title(measured: Mapping[str, Any]) -> str:
    """Returns the sizes of the model, where known, and how it was measured."""
    setting = (
        f"{measured['seconds']:g} s of audio, threads: {measured['threads']};"
        f" throughput with {measured['batch']} at a time"
    )
    # A slow runtime is stopped after a minute with fewer passes; the title states the fewest of
    # all.
    fewest = [min(row["passes"][i] for row in measured["rows"]) for i in range(2)]
    setting += f"; medians of {fewest[0]} passes, of {fewest[1]} for throughput"
    if measured["params"] is None:
        return setting
    return f"{measured['params']:,} parameters, {measured['gflops']:.4f} GFLOPs; {setting}"


def bench_table(measured: Mapping[str, Any]) -> Table:
    """Returns a table with one row per runtime."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "runtime" else "right")
    for row in measured["rows"]:
        table.add_row(
            row["runtime"],
            f"{row['latency_ms']:.2f}",
            f"{row['real_time_factor']:.5f}",
            f"{row['audio_seconds_per_second']:.1f}",
        )
    return table
