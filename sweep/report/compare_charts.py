"""Two fronts in one picture, one page and one table, with the band that their seeds span."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly import graph_objects as go
from rich import box
from rich.table import Table

from core.config.base import ConfigError
from sweep.pareto import (
    comparison,
    front,
)
from sweep.pareto.comparison import Comparison, FrontSide, StepCurve
from sweep.pareto.front import Point
from sweep.report import (
    chart_data,
    html_chart,
    static_chart,
)
from sweep.report.chart_data import BLUE, VERMILION
from sweep.search import (
    confirm,
)
from sweep.snapshot import SweepSnapshot

COLORS = (BLUE, VERMILION)
SYMBOLS = ("circle", "square")
MARKERS = ("o", "s")

Rows = list[dict[str, str]]


def labels(one: SweepSnapshot, other: SweepSnapshot) -> tuple[str, str]:
    """Return labels of two sweeps: their names, or the shortest distinct ends of their folders."""
    if one.config.sweep.name != other.config.sweep.name:
        return one.config.sweep.name, other.config.sweep.name
    if one.folder.name != other.folder.name:
        return one.folder.name, other.folder.name
    return str(one.folder), str(other.folder)


def side(name: str, seen: SweepSnapshot, limits: Mapping[str, float | None]) -> FrontSide:
    """A sweep as one of the two, within limits.

    Raises:
        ConfigError: if it has no finished trial within them.
    """
    points = front.feasible(seen.points, **limits)
    if not points:
        raise ConfigError(
            f"`{seen.folder}` must have a finished trial within the limits, but has none."
        )
    feasible_runs = [front.feasible(run, **limits) for run in confirm.runs(seen)]
    return FrontSide(name=name, points=points, runs=[run for run in feasible_runs if run])


def draw_copies(compared: Comparison, files: Mapping[str, Path]) -> None:
    """Draw it, in the kinds wanted, where they are wanted."""
    if "html" in files:
        files["html"].write_text(render(compared), encoding="utf-8")
    if "svg" in files or "png" in files:
        draw(compared, svg=files.get("svg"), png=files.get("png"))


def tables(compared: Comparison) -> list[Table]:
    """For the terminal: who covers how much, and the best WER at some budgets."""
    drawn = []
    for rows in (side_rows(compared), budget_rows(compared)):
        table = Table(box=box.SIMPLE_HEAD, header_style="bold")
        for index, heading in enumerate(rows[0]):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row.values())
        drawn.append(table)
    return drawn


def side_rows(compared: Comparison) -> Rows:
    """A row a sweep."""
    values = zip(
        compared.sides,
        compared.hypervolumes,
        compared.run_hypervolumes,
        compared.covers,
        strict=True,
    )
    return [
        {
            "sweep": side.name,
            "front": f"{len(side.front)} points",
            "hypervolume": f"{hypervolume:.4f}",
            "of its seeds": f"{min(runs):.4f} to {max(runs):.4f}" if runs else "",
            "covers of the other": f"{100 * covers:.0f} %",
        }
        for side, hypervolume, runs, covers in values
    ]


def budget_rows(compared: Comparison) -> Rows:
    """A row a budget."""
    names = [side.name for side in compared.sides]
    return [
        {
            "FLOPs removed": f"{100 * removed:.0f} % or more",
            **{
                f"{name}: WER (%)": "" if wer is None else f"{100 * wer:.2f}"
                for name, wer in zip(names, wers, strict=True)
            },
        }
        for removed, _, wers in comparison.budgets(compared)
    ]


def draw(compared: Comparison, *, svg: Path | None, png: Path | None) -> None:
    """As a picture."""
    with mpl.rc_context(static_chart.STYLE):
        figure = Figure(figsize=(9.6, 6.0), layout="constrained")
        axes = figure.add_subplot()
        figure.suptitle(_title(compared), x=0.012, ha="left", fontsize=14, fontweight="bold")
        static_chart.frame(axes, compared.worst_gflops, **_extent(compared), wers=_wers(compared))
        for side, color, marker in zip(compared.sides, COLORS, MARKERS, strict=True):
            _draw_side(axes, side, color, marker)
        figure.legend(frameon=False, loc="outside right upper", fontsize=9.5)
        if svg is not None:
            figure.savefig(svg, format="svg", metadata={"Date": None})
        if png is not None:
            figure.savefig(png, format="png", dpi=160, metadata={"Software": None})


def _draw_side(axes: Axes, side: FrontSide, color: str, marker: str) -> None:
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    x, y = _steps(comparison.step_curve(side.front), right, top)
    name = f"{side.name}: front of {len(side.front)}"
    axes.plot(x, y, drawstyle="steps-post", color=color, linewidth=1.6, label=name)
    places = [p.gflops for p in side.front], [100 * p.wer for p in side.front]
    axes.scatter(*places, color=color, marker=marker, s=36, zorder=5)
    if not side.has_band:
        errors = _errors(side.front)
        axes.errorbar(*places, yerr=errors, fmt="none", ecolor=color, capsize=2, alpha=0.6)
        return
    band = comparison.band(side.runs)
    # Both surfaces on the corners of both, or the area between them could not be filled.
    corners = sorted({gflops for gflops, _ in (*band.best, *band.worst)})
    low, high = (
        [_level(surface, at, top) for at in (*corners, right)]
        for surface in (band.best, band.worst)
    )
    axes.fill_between(
        [*corners, right],
        low,
        high,
        step="post",
        color=color,
        alpha=0.18,
        linewidth=0,
        label=f"{side.name}: any to all of {len(side.runs)} seeds",
    )
    x, y = _steps(band.median, right, top)
    axes.plot(x, y, drawstyle="steps-post", color=color, linewidth=1, linestyle="--")


def render(compared: Comparison) -> str:
    """As a page."""
    chart = _figure(compared).to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="chart",
        default_height="68vh",
        config={"displaylogo": False, "responsive": True, "scrollZoom": False},
    )
    tables = [_page_table(rows) for rows in (side_rows(compared), budget_rows(compared))]
    return html_chart.render_page(_title(compared), _summary(compared), chart, tables, notes=NOTES)


NOTES = (
    "Each point is a trained, dense model. Bars are bootstrap intervals of the WER over utterances;"
    " a band lies between what any and what all seeds attain, a dashed line at what half of them do"
    " (the front's own seed is not among them). The hypervolume is a share, by one corner for both:"
    " a WER of 1 at the larger unpruned model's FLOPs. To cover is to be at least as good in both."
)


def _figure(compared: Comparison) -> go.Figure:
    drawn = go.Figure()
    for side, color, symbol in zip(compared.sides, COLORS, SYMBOLS, strict=True):
        for trace in _traces(compared, side, color, symbol):
            drawn.add_trace(trace)
    # plotly draws no axis without a trace: this empty one is for the axis of the share removed, on
    # top.
    drawn.add_trace(go.Scatter(x=[None], y=[None], xaxis="x2", showlegend=False, hoverinfo="skip"))
    drawn.update_layout(html_chart.layout(compared.worst_gflops, **_extent(compared)))
    return drawn


def _traces(compared: Comparison, side: FrontSide, color: str, symbol: str) -> list[go.Scatter]:
    right, top = _extent(compared)["right"], max(_wers(compared))
    traces = _band_traces(side, color, right, top) if side.has_band else []
    x, y = _steps(comparison.step_curve(side.front), right, top)
    line: dict[str, Any] = {"shape": "hv", "color": color, "width": 2}
    words: dict[str, Any] = {"hoverinfo": "skip", "legendgroup": side.name, "showlegend": False}
    traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, **words))
    low, high = _errors(side.front)
    traces.append(
        go.Scatter(
            x=[p.gflops for p in side.front],
            y=[100 * p.wer for p in side.front],
            mode="markers",
            name=html.escape(f"{side.name}: front of {len(side.front)}"),
            legendgroup=side.name,
            marker={"color": color, "symbol": symbol, "size": 10},
            error_y={
                "type": "data",
                "array": high,
                "arrayminus": low,
                "thickness": 1,
                "visible": not side.has_band,
            },
            text=[
                html.escape(f"{side.name}, trial {p.name} ({p.result.method})") for p in side.front
            ],
            hovertemplate="<b>%{text}</b><br>WER: %{y:.2f} %<br>GFLOPs: %{x:.4~g}<extra></extra>",
        )
    )
    return traces


def _band_traces(side: FrontSide, color: str, right: float, top: float) -> list[go.Scatter]:
    band = comparison.band(side.runs)
    common: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "legendgroup": side.name}
    edge: dict[str, Any] = {"shape": "hv", "width": 0, "color": color}
    x, y = _steps(band.best, right, top)
    best = go.Scatter(x=x, y=y, line=edge, showlegend=False, **common)
    x, y = _steps(band.worst, right, top)
    name = html.escape(f"{side.name}: any to all of {len(side.runs)} seeds")
    # "tonexty" fills up to the trace before, so `best` has to be added first.
    fill = {"fill": "tonexty", "fillcolor": html_chart.fade(color, 0.18)}
    worst = go.Scatter(x=x, y=y, line=edge, name=name, **fill, **common)
    x, y = _steps(band.median, right, top)
    dashed = {"shape": "hv", "width": 1, "color": color, "dash": "dash"}
    return [best, worst, go.Scatter(x=x, y=y, line=dashed, showlegend=False, **common)]


def _title(compared: Comparison) -> str:
    one, other = compared.sides
    return f"{one.name} and {other.name}"


def _summary(compared: Comparison) -> str:
    (one, other), (ours, theirs) = compared.sides, compared.hypervolumes
    if ours == theirs:
        return f"Both cover a hypervolume of {ours:.4f}."
    better, worse = (one, other) if ours > theirs else (other, one)
    gain = abs(ours - theirs)
    return f"{better.name} covers {gain:.4f} more hypervolume than {worse.name}."


def _extent(compared: Comparison) -> dict[str, Any]:
    """Return the ranges and scales of the axes."""
    shown = [p for side in compared.sides for p in (*side.front, *_all_of(side.runs))]
    wers = [p.wer for p in shown]
    return {
        "right": 1.04 * max(compared.worst_gflops, *(p.gflops for p in shown)),
        "is_logarithmic": min(wers) > 0 and max(wers) / min(wers) > chart_data.WIDE,
    }


def _wers(compared: Comparison) -> list[float]:
    """All that is drawn, in percent: fronts, their intervals, and the seeds' points."""
    wers = [100 * p.wer for side in compared.sides for p in (*side.front, *_all_of(side.runs))]
    return wers + [100 * p.result.wer_high for side in compared.sides for p in side.front]


def _all_of(runs: Sequence[Sequence[Point]]) -> list[Point]:
    return [point for run in runs for point in run]


def _steps(corners: StepCurve, right: float, top: float) -> tuple[list[float], list[float]]:
    """From the top down to the first corner, on to the last, and to the right edge; in percent."""
    wers = [100 * wer for _, wer in corners]
    # Corners (2, 0.3) and (5, 0.1), right edge 10, top 40: x = [2, 2, 5, 10], y = [40, 30, 10, 10].
    # The first two points are the vertical line: below 2 GFLOPs the front attains nothing.
    x = [corners[0][0], *(gflops for gflops, _ in corners), max(right, corners[-1][0])]
    return x, [max(top, wers[0]), *wers, wers[-1]]


def _level(corners: StepCurve, gflops: float, top: float) -> float:
    """The WER of a surface at so many GFLOPs, in percent; the top where it attains nothing."""
    # With the corners above, 30 at 4 GFLOPs and the top, 40, at 1.
    return min((100 * wer for at, wer in corners if at <= gflops), default=top)


def _errors(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return the lengths of the error bars below and above the points, in percent."""
    # A bootstrap interval need not contain the point itself, and matplotlib refuses negative bars.
    low = [100 * max(0.0, p.wer - p.result.wer_low) for p in points]
    return low, [100 * max(0.0, p.result.wer_high - p.wer) for p in points]


def _page_table(rows: Rows) -> html_chart.PageTable:
    return html_chart.PageTable(
        headings=tuple(rows[0]),
        rows=tuple(html_chart.PageRow(cells=tuple(row.values())) for row in rows),
    )
