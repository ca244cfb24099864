"""What is left of models as heat maps: a row a block, a column a kind of unit."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sweep.report.architecture import Left, Structure
from sweep.report.static_chart import STYLE

COLUMNS = ("feed-\nforward 1", "attention\nheads", "convolution\nchannels", "feed-\nforward 2")
MODULES = "whole\nmodules"
TRUNK = ("front\nend 1", "front\nend 2", "width")
SHORT, SHORT_TRUNK = ("FF 1", "heads", "conv", "FF 2", "parts"), ("front 1", "front 2", "width")
WIDTH = len(SHORT)
TRUNK_PLACES = (0, 2, 4)
"""Below which columns the trunk's three cells stand."""
COLORS = "Blues"
DARK = 0.6
"""Above this share a cell is so dark that its number is white."""
MOST_PANELS, PANELS_A_ROW = 12, 4
"""Models side by side; of a longer front an even choice."""
GAP = 6
"""Between two rows of models, in cells: trunk, names and title."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One model to be drawn."""

    title: str
    structure: Structure


def heatmap_svg(panel: Panel) -> str:
    """One model, large enough for counts in every cell."""
    depth = len(panel.structure.blocks)
    height = 2.1 + 0.36 * depth
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, height))
        axes = figure.add_axes((0.11, 0.55 / height, 0.72, 1 - 1.6 / height))
        figure.text(0.02, 1 - 0.45 / height, panel.title, fontsize=12, fontweight="bold")
        _draw(axes, [panel.structure], [(0, 0)], size=9.0, has_whole=True)
        axes.set_yticks(range(depth), [f"block {index}" for index in range(1, depth + 1)])
        axes.set_xticks(TRUNK_PLACES, TRUNK)
        _on_top(axes, (*COLUMNS, MODULES), size=10.0)
        _legend(figure, (0.86, 0.3, 0.025, 0.4))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()


# Units are cells: a block is a row of height 1, a model is `WIDTH` columns and an empty one, and
# inches follow from the number of cells. Five models take -(-5 // 4) = 2 rows; `divmod` gives model
# 4 the row 1 and the column 0. The y axis runs from bottom to top as rows count downwards, and
# begins 2.9 cells above the first block, for title and names.
def draw_front(panels: Sequence[Panel], *, svg: Path, png: Path) -> None:
    """Models side by side in rows, from the smallest to the largest."""
    shown = evenly(panels, MOST_PANELS)
    depth = max(len(panel.structure.blocks) for panel in shown)
    columns, rows = min(len(shown), PANELS_A_ROW), -(-len(shown) // PANELS_A_ROW)
    pitch = depth + GAP
    width, height = 1.4 + 2.3 * columns, 0.1 + 0.32 * pitch * rows
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.4 / width, 0.01, 1 - 1.4 / width, 0.98))
        corners = [divmod(number, PANELS_A_ROW) for number in range(len(shown))]
        begins = [(pitch * row, (WIDTH + 1) * column) for row, column in corners]
        _draw(axes, [panel.structure for panel in shown], begins, size=7.5, has_whole=False)
        for (y, x), panel in zip(begins, shown, strict=True):
            _label(axes, y, x, panel)
        axes.set_ylim(pitch * rows - 2.4, -2.9)
        axes.set_xticks([])
        axes.set_yticks([])
        _legend(figure, (1 - 0.75 / width, 0.5 - 0.9 / height, 0.16 / width, 1.8 / height))
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=130, metadata={"Software": None})


def _label(axes: Axes, y: int, x: int, panel: Panel) -> None:
    """Names around one of many."""
    depth = len(panel.structure.blocks)
    axes.text(x - 0.45, y - 1.15, panel.title, fontsize=8.5, va="bottom")
    grey: dict[str, Any] = {"fontsize": 7, "color": "#555555", "va": "center"}
    for index, name in enumerate(SHORT):
        axes.text(x + index, y - 0.85, name, ha="center", **grey)
    for index, name in zip(TRUNK_PLACES, SHORT_TRUNK, strict=True):
        axes.text(x + index, y + depth + 1.85, name, ha="center", **grey)
    for block in range(depth):
        axes.text(x - 0.6, y + block, str(block + 1), ha="right", **grey)


def evenly(panels: Sequence[Panel], count: int) -> list[Panel]:
    """At most so many, both ends among them."""
    if len(panels) <= count:
        return list(panels)
    places = np.linspace(0, len(panels) - 1, count).round().astype(int)
    return [panels[index] for index in places]


def _draw(
    axes: Axes,
    models: Sequence[Structure],
    begins: Sequence[tuple[int, int]],
    *,
    size: float,
    has_whole: bool,
) -> None:
    """Coloured cells with their counts in them: blocks above, the trunk below, a gap between."""
    cells = _place_cells(models, begins)
    shape = max(y for y, _ in cells) + 1, max(x for _, x in cells) + 1
    # One mesh for all models: cells between them stay NaN, are masked, and show the background.
    shares = np.full(shape, np.nan)
    for (y, x), cell in cells.items():
        shares[y, x] = cell.share
        axes.text(
            *(x, y, str(cell) if has_whole else str(cell.remaining)),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if cell.share > DARK else "#222222",
        )
    # Edges, one more than cells, so that cell (y, x) is centered at its number and texts meet it.
    edges = (np.arange(shape[1] + 1) - 0.5, np.arange(shape[0] + 1) - 0.5)
    axes.pcolormesh(
        *(*edges, np.ma.masked_invalid(shares)),
        cmap=COLORS,
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=1.5,
    )
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _place_cells(
    models: Sequence[Structure], begins: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Left]:
    """Row and column of every cell."""
    cells: dict[tuple[int, int], Left] = {}
    for model, (top, begin) in zip(models, begins, strict=True):
        for y, row in enumerate(model.blocks):
            cells |= {(top + y, begin + x): cell for x, cell in enumerate(row)}
        below = zip(TRUNK_PLACES, model.trunk, strict=True)
        cells |= {(top + len(model.blocks) + 1, begin + x): cell for x, cell in below}
    return cells


def _on_top(axes: Axes, names: Sequence[str], *, size: float) -> None:
    top = axes.secondary_xaxis("top")
    top.set_xticks(range(len(names)), names, fontsize=size)
    top.tick_params(length=0)
    top.spines[:].set_visible(False)


def _legend(figure: Figure, box: tuple[float, float, float, float]) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), COLORS), cax=figure.add_axes(box))
    bar.set_label("share kept")
    bar.outline.set_visible(False)
