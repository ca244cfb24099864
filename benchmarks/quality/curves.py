"""WER against FLOPs removed, a line a method: results/paper_claim.json as a picture beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sweep.report.chart_data import BLACK, assign
from sweep.report.static_chart import STYLE

RESULTS = Path(__file__).parents[1] / "results"

Row = Mapping[str, Any]


def main() -> None:
    rows = json.loads((RESULTS / "paper_claim.json").read_text())["rows"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.4), layout="constrained")
        axes = figure.add_subplot()
        _frame(axes)
        _unpruned(axes, [row for row in rows if not row["target"]])
        pruned = [row for row in rows if row["target"].endswith("flops")]
        names = list(dict.fromkeys(row["name"] for row in pruned))
        marks = assign(set(names))
        for place, name in enumerate(names):
            # Side by side, or the intervals would hide each other.
            shift = 0.3 * (place - (len(names) - 1) / 2)
            mine = [row for row in pruned if row["name"] == name]
            _line(axes, mine, shift, color=marks[name].color, marker=marks[name].marker, label=name)
        figure.legend(frameon=False, loc="outside right upper", fontsize=9.5)
        figure.savefig(RESULTS / "paper_claim.svg", metadata={"Date": None})
        figure.savefig(RESULTS / "paper_claim.png", dpi=160, metadata={"Software": None})


def _frame(axes: Axes) -> None:
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_xlabel("FLOPs removed (%)")
    axes.set_ylabel("word error rate on dev and test (%), with 95 % intervals")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _unpruned(axes: Axes, rows: list[Row]) -> None:
    for row, dashes in zip(rows, ((4, 3), (1, 2)), strict=True):
        label = f"{row['name']} ({100 * row['wer']:.2f} %)"
        look: Any = {"color": BLACK, "linewidth": 1, "linestyle": (0, dashes)}
        axes.axhline(100 * row["wer"], **look, label=label)


def _line(axes: Axes, rows: list[Row], shift: float, **look: Any) -> None:
    places = [100 * row["flops_removed"] + shift for row in rows]
    below = [100 * (row["wer"] - row["wer_low"]) for row in rows]
    above = [100 * (row["wer_high"] - row["wer"]) for row in rows]
    wers = [100 * row["wer"] for row in rows]
    axes.errorbar(places, wers, (below, above), linewidth=1.2, elinewidth=0.8, capsize=2, **look)


if __name__ == "__main__":
    main()
