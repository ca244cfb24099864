"""The front of `prune --audio` as a picture and a page, with the sensitivity of each part."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from core.files import replaced_files
from sweep.report.chart_data import BLUE, GREY
from sweep.report.static_chart import STYLE
from sweep.templates import render_html, safe_html

TEMPLATES = Path(__file__).parent / "templates"
COLUMNS = {
    "ff1.inner": "feed-\nforward 1",
    "attention.head": "attention\nheads",
    "convolution.channel": "convolution\nchannels",
    "ff2.inner": "feed-\nforward 2",
}
"""Columns of the heat map, by the end of an axis's name."""
REMOVED = 0.5
"""Share of an axis's units whose price the heat map shows."""
SMALLEST_KL = 1e-9
"""Smaller prices have this color: a logarithmic scale has no 0."""


def write_pruned_front(values: Mapping[str, Any], folder: Path, *, title: str) -> None:
    """Write `front.svg`, `front.png` and `front.html`, all or none.

    Args:
        values: contents of `front.json`.
        folder: of the results.
        title: of the page and the picture.
    """
    models, sensitivity = values["models"], values["sensitivity"]
    figure = draw_models(models, title)
    picture = svg_text(figure)
    page = {
        "title": title,
        "values": values,
        "front_svg": safe_html(svg_element(picture)),
        "sensitivity_svg": safe_html(svg_element(svg_text(draw_sensitivity(sensitivity)))),
    }
    with replaced_files(folder) as temporary:
        (temporary / "front.svg").write_text(picture, encoding="utf-8")
        with mpl.rc_context(STYLE):
            figure.savefig(temporary / "front.png", dpi=160, metadata={"Software": None})
        html = render_html(TEMPLATES, "pruned_front.html.j2", page)
        (temporary / "front.html").write_text(html, encoding="utf-8")


def draw_models(models: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw changed words over remaining GFLOPs; the first model is the unpruned one."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = figure.add_subplot()
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        x = [model["gflops"] for model in models]
        y = [100 * model["words_changed"] for model in models]
        axes.plot(x, y, color=BLUE, marker="o", linewidth=1.5)
        for model, left, top in zip(models, x, y, strict=True):
            removed = f"{100 * model['flops_sparsity']:.0f} % removed"
            axes.annotate(
                removed if model["folder"] else "unpruned",
                (left, top),
                xytext=(6, 8),
                textcoords="offset points",
                fontsize=9,
                color="#333333",
            )
        axes.set_xlabel("GFLOPs an utterance")
        axes.set_ylabel("words changed on held-out speech (%)")
        axes.set_xlim(0, 1.18 * max(x))
        axes.set_ylim(-0.02 * max(1.0, *y), 1.2 * max(1.0, *y))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(color="#EEEEEE")
    return figure


def draw_sensitivity(sensitivity: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what half of each part's units are worth, a row a block."""
    cells = heat_map_cells(sensitivity)
    depth = 1 + max((row for row, _ in cells), default=0)
    height = 0.85 + 0.36 * depth
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, height))
        axes = figure.add_axes((0.11, 0.15 / height, 0.7, 1 - 0.85 / height))
        grid = np.full((depth, len(COLUMNS)), np.nan)
        for (row, column), kl in cells.items():
            grid[row, column] = max(kl, SMALLEST_KL)
        _draw_cells(axes, grid, figure)
        axes.set_yticks(range(depth), [f"block {number + 1}" for number in range(depth)])
    return figure


def heat_map_cells(
    sensitivity: Sequence[Mapping[str, Any]],
) -> dict[tuple[int, int], float]:
    """Return the price in nats of half of an axis's units, by block and column.

    The price of the first level that removes half or more: of levels 3, 6, 9 and 12 of 12 units it
    is that of 6.
    """
    cells = {}
    for table in sensitivity:
        block, _, part = table["axis"].removeprefix("blocks.").partition(".")
        if part in COLUMNS:
            half = math.ceil(REMOVED * table["units"])
            level = next((i for i, count in enumerate(table["counts"]) if count >= half), -1)
            cells[int(block), list(COLUMNS).index(part)] = table["kl"][level]
    return cells


def svg_text(figure: Figure) -> str:
    """Return a figure as the contents of an SVG file."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def svg_element(picture: str) -> str:
    """Return the element of an SVG file, as a page holds it, without the file's head."""
    return picture[picture.index("<svg") :]


def _draw_cells(axes: Axes, grid: np.ndarray, figure: Figure) -> None:
    low, high = np.nanmin(grid), np.nanmax(grid)
    norm = LogNorm(low, max(high, 10 * low))
    # Edges, one more than cells: cell (row, column) is centered at its numbers.
    edges = (np.arange(grid.shape[1] + 1) - 0.5, np.arange(grid.shape[0] + 1) - 0.5)
    cells = np.ma.masked_invalid(grid)
    axes.pcolormesh(*edges, cells, cmap="Blues", norm=norm, edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    for (row, column), kl in np.ndenumerate(grid):
        is_dark = np.isfinite(kl) and norm(kl) > 0.6
        text = f"{kl:.2g}" if np.isfinite(kl) else "-"
        color = "white" if is_dark else GREY if text == "-" else "#222222"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(norm, "Blues"), cax=figure.add_axes((0.85, 0.2, 0.025, 0.5))
    )
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda kl, _: f"{kl:g}"))
    bar.set_label("nats a frame")
    bar.outline.set_visible(False)
