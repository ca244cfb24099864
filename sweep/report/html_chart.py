"""The front as an interactive page: one file, drawn by plotly, that needs no network."""

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly import graph_objects as go

from core.report import Outcome
from sweep.pareto.front import Point
from sweep.report.audio_page import TEMPLATES, AudioComparison, audio_values
from sweep.report.chart_data import BLACK, Scene
from sweep.templates import render_html, safe_html
from sweep.wer_labels import against_note

# Under this policy a browser makes no request, whatever a script tries.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; worker-src blob:;"
    " style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data:"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRow:
    """A row of a table on the page."""

    cells: tuple[str, ...]
    is_knee: bool = False
    is_audible: bool = False
    """Whether its first cell links to the audio samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageTable:
    """A table on the page."""

    headings: tuple[str, ...]
    rows: tuple[PageRow, ...]


# Columns of the numbers behind a point's hover text, in this order; sampled numbers follow.
FIRST_NUMBER = 9
WER_HOVER = "<b>%{y:.2f} %</b>, interval %{customdata[2]:.2f} to %{customdata[3]:.2f}"


def render(
    scene: Scene, *, rows: Sequence[Mapping[str, str]], audio: AudioComparison | None = None
) -> str:
    """Returns the page of a sweep; `rows` are its front as in every other table."""
    chart = ""
    if scene.points:
        chart = figure(scene).to_html(
            full_html=False,
            include_plotlyjs=True,
            div_id="chart",
            default_height="68vh",
            config={"displaylogo": False, "responsive": True, "scrollZoom": False},
        )
    tables = [_table(scene, rows, audio.names if audio else frozenset())] if rows else []
    return render_page(scene.title, scene.summary, chart, tables, notes=_notes(scene), audio=audio)


def render_page(
    title: str,
    summary: str,
    chart: str,
    tables: Sequence[PageTable],
    *,
    notes: str,
    audio: AudioComparison | None = None,
) -> str:
    """Returns the page of one front, or of two, as HTML.

    Args:
        title: heading of the page.
        summary: line below the heading.
        chart: HTML that plotly made.
        tables: tables below the chart.
        notes: small print below the tables.
        audio: samples to play, if there are any.
    """
    values: dict[str, Any] = {
        "policy": POLICY,
        "title": title,
        "summary": summary,
        "chart": safe_html(chart),
    }
    values |= {"tables": tables, "notes": notes}
    samples = audio_values(audio) if audio else {"audio": None}
    return render_html(TEMPLATES, "front.html.j2", values | samples)


def figure(scene: Scene) -> go.Figure:
    drawn = go.Figure()
    drawn.add_trace(_front_line(scene))
    on_front = {(p.trial, p.outcome) for p in scene.front}
    for method in scene.marks:
        mine = [p for p in scene.shown if p.result.method == method]
        beaten = [p for p in mine if (p.trial, p.outcome) not in on_front]
        best = [p for p in mine if (p.trial, p.outcome) in on_front]
        drawn.add_trace(_cloud(scene, method, beaten, is_front=False))
        drawn.add_trace(_cloud(scene, method, best, is_front=True))
    for trace in _landmarks(scene):
        drawn.add_trace(trace)
    drawn.update_layout(_layout(scene))
    return drawn


def _front_line(scene: Scene) -> go.Scatter:
    gflops = [p.gflops for p in scene.front]
    wers = [100 * p.wer for p in scene.front]
    worst = max(100 * p.wer for p in scene.shown)
    return go.Scatter(
        # "hv" goes right first and then down: on from each point, its WER can be had for any larger
        # budget, until the next point improves on it. The first x stands twice for the vertical
        # line at the left.
        x=[gflops[0], *gflops, max(scene.unpruned_gflops, gflops[-1])],
        y=[max(worst, wers[0]), *wers, wers[-1]],
        mode="lines",
        line={"shape": "hv", "color": BLACK, "width": 1.8},
        name="Pareto front",
        hoverinfo="skip",
    )


def _cloud(scene: Scene, method: str, points: list[Point], *, is_front: bool) -> go.Scatter:
    mark = scene.marks[method]
    numbers, words = _sampled_names(scene, points)
    has_words = bool(words) or any(_latency_note(point.result) for point in points)
    few = scene.is_sparse
    # plotly writes numpy arrays as base64 of their bytes: 4 bytes a number, where a list of floats
    # would take some 18 letters each. Seven digits are enough for what the page shows.
    y = np.array([100 * p.wer for p in points], dtype=np.float32)
    low = np.array([100 * p.result.wer_low for p in points], dtype=np.float32)
    high = np.array([100 * p.result.wer_high for p in points], dtype=np.float32)
    return go.Scatter(
        x=np.array([p.gflops for p in points], dtype=np.float32),
        y=y,
        mode="markers",
        name=html.escape(f"{method} ({scene.count(method)})"),
        legendgroup=method,
        showlegend=is_front or not any(p.result.method == method for p in scene.front),
        marker={
            "color": mark.color,
            "symbol": mark.symbol,
            "size": 11 if is_front else (8 if few else 5),
            "opacity": 1 if is_front else (0.6 if few else 0.4),
            "line": {"color": BLACK, "width": 1.2 if is_front else 0},
        },
        error_y={
            "type": "data",
            "array": np.maximum(0, high - y),
            "arrayminus": np.maximum(0, y - low),
            "thickness": 1,
            "width": 3,
            "color": fade(mark.color, 0.5),
            "visible": scene.has_intervals(is_front=is_front),
        },
        customdata=np.array([_hover_numbers(scene, p, numbers) for p in points], dtype=np.float32),
        text=[_hover_texts(scene, p, words) for p in points] if has_words else None,
        hovertemplate=_hover(scene, method, numbers, is_front=is_front, has_words=has_words),
    )


def _sampled_names(scene: Scene, points: list[Point]) -> tuple[list[str], list[str]]:
    """The sampled parameters that are numbers in all these trials, and the others.

    Method and target are left out: they are told of every point, sampled or not.
    """
    names: dict[str, bool] = {}
    for point in points:
        for name, value in scene.params.get(point.trial, {}).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # A parameter that is a number in some trials and a text in others is shown as text.
            names[name] = names.get(name, True) and is_number
    names.pop("pruning.method", None)
    names.pop("pruning.target_sparsity", None)
    return sorted(n for n in names if names[n]), sorted(n for n in names if not names[n])


def _hover_numbers(scene: Scene, point: Point, numbers: list[str]) -> list[float]:
    result, sampled = point.result, scene.params.get(point.trial, {})
    return [
        point.trial,
        point.outcome,
        100 * result.wer_low,
        100 * result.wer_high,
        100 * result.flops_sparsity,
        100 * result.params_sparsity,
        result.params / 1e6,
        result.latency_ms,
        100 * result.target_sparsity,
        *(float(sampled.get(name, np.nan)) for name in numbers),
    ]


def _hover_texts(scene: Scene, point: Point, words: list[str]) -> str:
    sampled = scene.params.get(point.trial, {})
    return _latency_note(point.result) + "".join(
        f"<br>{html.escape(name)}: {html.escape(str(sampled.get(name, '')))}" for name in words
    )


def _latency_note(result: Outcome) -> str:
    """How far a latency can be believed, and how many times as fast it is."""
    if result.latency_busy:
        return "<br>latency measured while the machine was busy"
    if result.latency_idle is False:
        return "<br>latency measured beside trials"
    if result.speedup is None:
        return ""
    low, high = result.speedup_low, result.speedup_high
    return f"<br>{result.speedup:.2f} times as fast as the unpruned model ({low:.2f} to {high:.2f})"


def _hover(
    scene: Scene, method: str, numbers: list[str], *, is_front: bool, has_words: bool
) -> str:
    lines = [
        f"<b>trial %{{customdata[0]:.0f}}</b> ({html.escape(method)})"
        + (", on the front" if is_front else ""),
        f"{scene.wer_name}: {WER_HOVER}",
        "GFLOPs: <b>%{x:.4~g}</b>, %{customdata[4]:.1f} % removed",
        "parameters: %{customdata[6]:.3~f} M, %{customdata[5]:.1f} % removed",
        "latency: %{customdata[7]:.1f} ms",
        "target: %{customdata[8]:.1f} %",
        *(
            f"{html.escape(name)}: %{{customdata[{FIRST_NUMBER + index}]:.3~g}}"
            for index, name in enumerate(numbers)
        ),
    ]
    return "<br>".join(lines) + ("%{text}" if has_words else "") + "<extra></extra>"


def _landmarks(scene: Scene) -> list[go.Scatter]:
    """Ring around the knee; star and level of the teacher. On top an axis needs one trace."""
    whole = scene.unpruned_gflops
    traces = [go.Scatter(x=[None], y=[None], xaxis="x2", showlegend=False, hoverinfo="skip")]
    if scene.knee is not None and len(scene.front) > 2:
        ring = {"symbol": "circle-open", "size": 22, "color": BLACK, "line": {"width": 1.6}}
        traces.append(
            go.Scatter(
                x=[scene.knee.gflops],
                y=[100 * scene.knee.wer],
                mode="markers",
                marker=ring,
                name=f"knee (trial {scene.knee.name})",
                hoverinfo="skip",
            )
        )
    if scene.teacher_wer is not None:
        wer = 100 * scene.teacher_wer
        star = {"symbol": "star", "size": 17, "color": "white", "line": {"width": 1.4}}
        traces.append(
            go.Scatter(
                # A level line with two ends, of which "opacity" [0, 1] shows the right marker only.
                x=[0, whole],
                y=[wer, wer],
                mode="lines+markers",
                line={"color": BLACK, "width": 1, "dash": "dash"},
                marker=star | {"opacity": [0, 1]},
                name=f"teacher ({wer:.2f} %)",
                hovertemplate=f"teacher: {wer:.2f} % WER at {whole:.4g} GFLOPs<extra></extra>",
            )
        )
    return traces


def _layout(scene: Scene) -> dict[str, Any]:
    whole = scene.unpruned_gflops
    right = 1.04 * max(whole, *(p.gflops for p in scene.shown))
    is_logarithmic, wer = scene.is_logarithmic, scene.wer_in_full
    return layout(whole, right=right, is_logarithmic=is_logarithmic, wer=wer)


def layout(
    whole: float, *, right: float, is_logarithmic: bool, wer: str = "word error rate"
) -> dict[str, Any]:
    """Axes and buttons of WER over GFLOPs.

    Args:
        whole: GFLOPs of the unpruned model.
        right: GFLOPs at the right edge.
        is_logarithmic: whether the WER axis is.
        wer: its name.
    """
    shares = range(0, 101, 10)
    grid = {"gridcolor": "#e8e8e8", "zeroline": False, "linecolor": "#999", "ticks": "outside"}
    return {
        "template": "plotly_white",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#333"},
        "margin": {"l": 64, "r": 16, "t": 60, "b": 90},
        "hoverlabel": {"bgcolor": "white", "align": "left", "font": {"size": 13}},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.16, "yanchor": "top"},
        "autosize": True,
        "xaxis": grid
        | {"title": {"text": "GFLOPs for one utterance"}, "range": [0, right], "showline": True},
        "xaxis2": {
            "overlaying": "x",
            "matches": "x",
            "side": "top",
            "title": {"text": "FLOPs removed (%)"},
            # With whole = 10 GFLOPs, 0 % removed is at 10, 10 % at 9 and 50 % at 5.
            "tickvals": [whole * (1 - share / 100) for share in shares],
            "ticktext": [str(share) for share in shares],
            "tickangle": 0,
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": grid
        | {
            "title": {"text": f"{wer} on dev (%)"},
            "type": "log" if is_logarithmic else "linear",
            "rangemode": "tozero",
            "showline": True,
            "tickformat": "~g",
        },
        "updatemenus": [_scales(is_logarithmic=is_logarithmic)],
    }


def _scales(*, is_logarithmic: bool) -> dict[str, Any]:
    """Two buttons that change the scale of the WER axis."""
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.0,
        "yanchor": "bottom",
        "pad": {"b": 26},
        "active": int(is_logarithmic),
        "font": {"size": 11},
        "buttons": [
            {
                "label": kind,
                "method": "relayout",
                "args": [{"yaxis.type": kind, "yaxis.autorange": True}],
            }
            for kind in ("linear", "log")
        ],
    }


def _table(
    scene: Scene, rows: Sequence[Mapping[str, str]], audible: Collection[str] = ()
) -> PageTable:
    return PageTable(
        headings=tuple(rows[0]),
        rows=tuple(
            PageRow(
                cells=tuple(row.values()),
                is_knee=point == scene.knee and len(rows) > 2,
                is_audible=point.name in audible,
            )
            for point, row in zip(scene.front, rows, strict=True)
        ),
    )


def _notes(scene: Scene) -> str:
    hidden = len(scene.points) - len(scene.shown)
    notes = (
        "Each point is a trained, dense model. Bars are bootstrap intervals of the WER over"
        " utterances. 1 multiply-add = 2 FLOPs. Nobody on the front beats another."
        " The hypervolume is a share: no errors at no FLOPs would be 1."
    )
    against = against_note(point.result for point in scene.points)
    notes = f"{notes} {against}" if against else notes
    return f"{notes} {hidden} points far from the front are not drawn." if hidden else notes


def fade(color: str, opacity: float) -> str:
    red, green, blue = (int(color[index : index + 2], 16) for index in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
