"""What `bench` tells."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

HEADINGS = ("runtime", "latency (ms)", "real-time factor", "audio seconds a second")


def bench_title(found: Mapping[str, Any]) -> str:
    """The model's sizes, where they are known, and how it was measured."""
    setting = (
        f"{found['seconds']:g} s of audio, threads: {found['threads']};"
        f" throughput with {found['batch']} at a time"
    )
    fewest = [min(row["passes"][i] for row in found["rows"]) for i in range(2)]
    setting += f"; medians of {fewest[0]} passes, of {fewest[1]} for throughput"
    if found["params"] is None:
        return setting
    return f"{found['params']:,} parameters, {found['gflops']:.4f} GFLOPs; {setting}"


def bench_table(found: Mapping[str, Any]) -> Table:
    """A row a runtime."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in HEADINGS:
        table.add_column(name, justify="left" if name == "runtime" else "right")
    for row in found["rows"]:
        table.add_row(
            row["runtime"],
            f"{row['latency_ms']:.2f}",
            f"{row['real_time_factor']:.5f}",
            f"{row['audio_seconds_per_second']:.1f}",
        )
    return table
