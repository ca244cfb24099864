"""The sensitivity of each part as a heat map and a page."""

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
from matplotlib.ticker import FuncFormatter

from sweep.report.chart_data import GREY
from sweep.report.static_chart import STYLE, svg_element, svg_text, write_chart_page
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
"""Share of an axis's units whose KL the heat map shows."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of units whose KL the page shows."""
SMALLEST_KL = 1e-9
"""Smaller values have this color: a logarithmic scale has no 0."""


def write_sensitivity(rows: Sequence[Mapping[str, Any]], folder: Path, *, title: str) -> None:
    """Write `sensitivity.svg`, `sensitivity.png` and `sensitivity.html`, all or none.

    Args:
        rows: contents of `sensitivity.json`.
        folder: of the results.
        title: of the page.
    """
    figure = draw_sensitivity(rows)
    page = {
        "title": title,
        "picture": safe_html(svg_element(svg_text(figure))),
        "shares": SHARES,
        "rows": [{**row, "levels": [kl_of_share(row, share) for share in SHARES]} for row in rows],
    }
    html = render_html(TEMPLATES, "sensitivity.html.j2", page)
    write_chart_page(folder, "sensitivity", figure, html)


def kl_of_share(row: Mapping[str, Any], share: float) -> float:
    """Return the KL in nats a frame after a share of an axis's units is removed.

    It is that of the first level that removes as many or more: of levels 3, 6, 9 and 12 of 12
    units, half is that of 6.
    """
    count = math.ceil(share * row["units"])
    level = next((i for i, removed in enumerate(row["counts"]) if removed >= count), -1)
    return float(row["kl"][level])


def heat_map_cells(
    sensitivity: Sequence[Mapping[str, Any]],
) -> dict[tuple[int, int], float]:
    """Return the KL after half of an axis's units is removed, by block and column."""
    cells = {}
    for row in sensitivity:
        block, _, part = row["axis"].removeprefix("blocks.").partition(".")
        if part in COLUMNS:
            cells[int(block), list(COLUMNS).index(part)] = kl_of_share(row, REMOVED)
    return cells


def draw_sensitivity(sensitivity: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the KL after half of each part's units are removed, one row for each block."""
    cells = heat_map_cells(sensitivity)
    if not cells:
        return Figure(figsize=(6.8, 0.4))
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
