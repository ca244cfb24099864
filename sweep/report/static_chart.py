"""The front as a picture, drawn by matplotlib without a screen or global state."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from core.files import replaced_files
from sweep.pareto.front import Point
from sweep.report.chart_data import BLACK, Scene

STYLE: Any = {  # matplotlib types the keys one by one
    "font.size": 10.5,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "conformer-sweep",  # equal sweeps give equal files
}
MAX_LABELS = 14
"""Front points that carry their trial's number, at most."""


def draw(scene: Scene, *, svg: Path, png: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.0), layout="constrained")
        axes = figure.add_subplot()
        figure.suptitle(scene.title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        if scene.points:
            _frame(axes, scene)
            _front_line(axes, scene)
            _cloud(axes, scene)
            _landmarks(axes, scene)
            figure.legend(frameon=False, loc="outside right upper", fontsize=9.5)
        else:
            axes.set_axis_off()
            axes.text(0.5, 0.5, scene.summary, ha="center", color="#555555", fontsize=12)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=160, metadata={"Software": None})


def _frame(axes: Axes, scene: Scene) -> None:
    """Axes, their scales and names, around all that is drawn."""
    whole = scene.unpruned_gflops
    wers = [100 * p.wer for p in scene.shown] + [100 * p.result.wer_high for p in scene.front]
    if scene.teacher_wer is not None:
        wers.append(100 * scene.teacher_wer)
    right = 1.04 * max(whole, *(p.gflops for p in scene.shown))
    frame(axes, whole, right=right, wers=wers, is_logarithmic=scene.is_logarithmic)
    axes.set_ylabel(f"{scene.wer_in_full} on dev (%)")


def frame(
    axes: Axes, whole: float, *, right: float, wers: Sequence[float], is_logarithmic: bool
) -> None:
    """WER in percent over GFLOPs; on top the share removed of the unpruned model's `whole`.

    Args:
        axes: still without a scale.
        whole: GFLOPs of the unpruned model.
        right: GFLOPs at the right edge.
        wers: all that are drawn, in percent; the WER axis holds them.
        is_logarithmic: whether the WER axis is.
    """
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_xlabel("GFLOPs for one utterance (1 multiply-add = 2 FLOPs)")
    axes.set_ylabel("word error rate on dev (%)")
    axes.set_xlim(0, right)
    if is_logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(0.8 * min(filter(None, wers)), 1.25 * max(wers))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.05 * max(*wers, 0.5))
        axes.yaxis.set_major_locator(MaxNLocator(7))

    def removed_share(gflops: Any) -> Any:
        return 100 * (1 - gflops / whole)

    def left_gflops(share: Any) -> Any:
        return whole * (1 - share / 100)

    # Each function undoes the other: with whole = 10, removed_share(9) is 10, left_gflops(10) is 9.
    removed = axes.secondary_xaxis("top", functions=(removed_share, left_gflops))
    removed.set_xlabel("FLOPs removed (%)")
    removed.set_xticks(range(0, 101, 10))


def _front_line(axes: Axes, scene: Scene) -> None:
    """Draw the best WER for at most so many FLOPs as steps, and shade the dominated region."""
    gflops = [p.gflops for p in scene.front]
    wers = [100 * p.wer for p in scene.front]
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    # The step curve attains nothing left of its first point, hence the vertical line down from the
    # top.
    x = [gflops[0], *gflops, right]
    y = [top, *wers, wers[-1]]
    axes.fill_between(x, y, top, step="post", color=BLACK, alpha=0.035, linewidth=0)
    axes.plot(x, y, drawstyle="steps-post", color=BLACK, linewidth=1.4, label="Pareto front")


def _cloud(axes: Axes, scene: Scene) -> None:
    on_front = {(p.trial, p.outcome) for p in scene.front}
    for method, mark in scene.marks.items():
        mine = [p for p in scene.shown if p.result.method == method]
        beaten = [p for p in mine if (p.trial, p.outcome) not in on_front]
        best = [p for p in mine if (p.trial, p.outcome) in on_front]
        look: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "linewidths": 0.8}
        few = scene.is_sparse
        if scene.has_intervals(is_front=True):
            _intervals(axes, best, mark.color, alpha=0.7)
        if scene.has_intervals(is_front=False):
            _intervals(axes, beaten, mark.color, alpha=0.25)
        axes.scatter(
            *_places(beaten), **look, s=26 if few else 9, alpha=0.55 if few else 0.35, zorder=3
        )
        axes.scatter(*_places(best), **look, s=52, edgecolors=BLACK, zorder=5)
        # An empty scatter for the legend: one entry a method, although its points are drawn in two
        # calls.
        axes.scatter([], [], **look, s=40, label=f"{method} ({scene.count(method)})")


def _intervals(axes: Axes, points: list[Point], color: str, *, alpha: float) -> None:
    if not points:
        return
    x, y = _places(points)
    low = np.maximum(0, y - np.array([100 * p.result.wer_low for p in points]))
    high = np.maximum(0, np.array([100 * p.result.wer_high for p in points]) - y)
    axes.errorbar(
        x, y, yerr=(low, high), fmt="none", ecolor=color, elinewidth=0.9, capsize=2, alpha=alpha
    )


def _landmarks(axes: Axes, scene: Scene) -> None:
    """The teacher, the knee, and by number the trials on the front."""
    if scene.teacher_wer is not None:
        wer = 100 * scene.teacher_wer
        axes.axhline(wer, color=BLACK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        star: dict[str, Any] = {
            "marker": "*",
            "s": 190,
            "color": "white",
            "edgecolors": BLACK,
            "zorder": 6,
        }
        axes.scatter([scene.unpruned_gflops], [wer], **star, label=f"teacher ({wer:.2f} %)")
    if scene.knee is not None and len(scene.front) > 2:
        ring: dict[str, Any] = {
            "s": 230,
            "facecolors": "none",
            "edgecolors": BLACK,
            "linewidths": 1.2,
        }
        axes.scatter(
            *_places([scene.knee]), **ring, zorder=6, label=f"knee (trial {scene.knee.name})"
        )
    for point in scene.front if len(scene.front) <= MAX_LABELS else ():
        axes.annotate(
            point.name,
            (point.gflops, 100 * point.wer),
            xytext=(-4, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8.5,
            color="#444444",
        )


def _places(points: list[Point]) -> tuple[Any, Any]:
    return np.array([p.gflops for p in points]), np.array([100 * p.wer for p in points])


def svg_text(figure: Figure) -> str:
    """Return a figure as the contents of an SVG file."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write_chart_page(folder: Path, stem: str, figure: Figure, html: str) -> None:
    """Write a chart as `STEM.svg` and `STEM.png`, and its page as `STEM.html`, all or none."""
    with replaced_files(folder) as temporary:
        (temporary / f"{stem}.svg").write_text(svg_text(figure), encoding="utf-8")
        with mpl.rc_context(STYLE):
            figure.savefig(temporary / f"{stem}.png", dpi=160, metadata={"Software": None})
        (temporary / f"{stem}.html").write_text(html, encoding="utf-8")


def svg_element(picture: str) -> str:
    """Return the element of an SVG file, as a page holds it, without the file's head."""
    return picture[picture.index("<svg") :]
