"""The front as page, picture and table."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Table

from core.files import replaced_files
from core.outside_files import read_json
from core.report import Outcome
from core.safe_text import csv_cell, markdown_text
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point, latency_text
from sweep.report import chart_data
from sweep.report.chart_data import Scene
from sweep.wer_labels import against_note

if TYPE_CHECKING:  # jiwer and torch take seconds that no table should wait for
    from sweep.report.audio_page import AudioComparison

COLUMNS = {
    "trial": "trial",
    "method": "method",
    "FLOPs removed (%)": "FLOPs\nremoved\n(%)",
    "GFLOPs": "GFLOPs",
    "parameters (M)": "params\n(M)",
    "WER (%)": "WER\n(%)",
    "interval (%)": "interval\n(%)",
    "test WER (%)": "test\nWER\n(%)",
    "latency (ms)": "latency\n(ms)",
}
"""What every table tells of a point; beside it as a terminal of 80 columns has room for it."""
KNEE = "* the knee: before it WER is cheap, after it dear"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontFiles:
    """Where the front was written; all paths are absolute."""

    html: Path
    """The page: one file that needs no network."""
    svg: Path
    png: Path
    csv: Path
    """Every finished outcome, on the front or not."""
    markdown: Path
    """The front as a table, to be read as text."""


def write_front(
    records: Iterable[TrialRecord],
    folder: Path,
    *,
    title: str,
    teacher_wer: float | None = None,
    audio: "AudioComparison | None" = None,
) -> FrontFiles:
    """Draw and table the finished trials into the folder, over what is there.

    Args:
        records: all trials of the sweep; only finished ones are drawn, all are counted.
        folder: is made if it is not there.
        title: the sweep's name.
        teacher_wer: of the unpruned model as it was trained, as a fraction; drawn if known.
        audio: samples of the front's models, for the page.
    """
    from sweep.report import html_chart, static_chart  # noqa: PLC0415  # seconds that no table should wait for

    folder = folder.absolute()
    shown = chart_data.compose(list(records), title=title, teacher_wer=teacher_wer)
    text = html_chart.render(shown, rows=rows(shown.front), audio=audio)
    # All five files are replaced together: a page never shows another front than the table next to
    # it.
    with replaced_files(folder) as tmp_path:
        files = _front_files(tmp_path)
        files.html.write_text(text, encoding="utf-8")
        static_chart.draw(shown, svg=files.svg, png=files.png)
        files.csv.write_text(csv_text(shown.points, shown.params), encoding="utf-8")
        files.markdown.write_text(markdown(shown), encoding="utf-8")
    return _front_files(folder)


def _front_files(folder: Path) -> FrontFiles:
    return FrontFiles(
        html=folder / "front.html",
        svg=folder / "front.svg",
        png=folder / "front.png",
        csv=folder / "front.csv",
        markdown=folder / "front.md",
    )


def teacher_wer(folder: Path) -> float | None:
    """The teacher's word error rate on dev, once a sweep's directory has a trained teacher."""
    try:
        report = read_json(folder / "teacher" / "model" / "report.json")
        return float(report["outcome"]["wer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rows(points: Sequence[Point]) -> list[dict[str, str]]:
    """Return a row of text for each point; the columns are `COLUMNS`."""
    return [_cells(point) for point in points]


def front_table(points: Sequence[Point], *, title: str = "") -> Table:
    """The points as a table for the terminal, in their order; the knee stands out."""
    table = Table(
        title=title or None, box=box.SIMPLE_HEAD, header_style="bold", collapse_padding=True
    )
    for column, heading in COLUMNS.items():
        justify: Literal["left", "right"] = "left" if column in ("trial", "method") else "right"
        table.add_column(heading, justify=justify, no_wrap=True, vertical="bottom")
    # One or two points have no bend: both ends of the chord are equally far from it.
    knee = front.knee(points) if len(points) > 2 else None
    notes = [KNEE if knee else None, against_note(point.result for point in points)]
    table.caption = "\n".join(filter(None, notes)) or None
    for point, cells in zip(points, rows(points), strict=True):
        is_knee = point == knee
        name = f"{cells['trial']} *" if is_knee else cells["trial"]
        others = [cells[column] for column in COLUMNS if column != "trial"]
        table.add_row(name, *others, style="bold green" if is_knee else "")
    return table


def markdown(shown: Scene) -> str:
    """Title, summary and the front as a Markdown table."""
    lines = [f"# {markdown_text(shown.title)}", "", markdown_text(shown.summary), ""]
    if shown.front:
        lines += [
            "| " + " | ".join(COLUMNS) + " |",
            "|" + "".join(" --- |" if c in ("trial", "method") else " ---: |" for c in COLUMNS),
            *(
                "| " + " | ".join(markdown_text(r[c]) for c in COLUMNS) + " |"
                for r in rows(shown.front)
            ),
            "",
        ]
        note = against_note(point.result for point in shown.front)
        lines += [note, ""] if note else []
    return "\n".join(lines)


def csv_text(points: Sequence[Point], params: Mapping[int, Mapping[str, Any]]) -> str:
    """Every point with its outcome and its trial's sampled parameters, in plain numbers."""
    on_front = {(p.trial, p.outcome) for p in front.pareto_front(points)}
    names = sorted({name for point in points for name in params.get(point.trial, {})})
    columns = [field.name for field in fields(Outcome)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "outcome", "on_front", *columns, *map(csv_cell, names)])
    for point in points:
        sampled = params.get(point.trial, {})
        writer.writerow(
            [
                *(point.trial, point.outcome, int((point.trial, point.outcome) in on_front)),
                *(csv_cell(getattr(point.result, name)) for name in columns),
                *(csv_cell(sampled.get(name)) for name in names),
            ]
        )
    return text.getvalue()


def _cells(point: Point) -> dict[str, str]:
    result = point.result
    return {
        "trial": point.name,
        "method": result.method,
        "FLOPs removed (%)": f"{100 * result.flops_sparsity:.1f}",
        # "#" keeps trailing zeros: 2 is 2.00, so that all have three digits.
        "GFLOPs": f"{result.gflops:#.3g}",
        "parameters (M)": f"{result.params / 1e6:#.3g}",
        "WER (%)": f"{100 * result.wer:.2f}",
        "interval (%)": f"{100 * result.wer_low:.2f} to {100 * result.wer_high:.2f}",
        "test WER (%)": f"{100 * result.test_wer:.2f}" if result.test_wer is not None else "",
        "latency (ms)": latency_text(asdict(result)),
    }
