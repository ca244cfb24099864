"""Rows, counts and tables of a sweep, for people and for scripts. Prints nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point, latency_text
from sweep.snapshot import SweepSnapshot
from sweep.wer_labels import AGAINST_TEACHER, note_of

MANY_POINTS = 60
"""Points above which the front is printed as plain lines; a screen shows fewer."""
MANY_ROWS = 300
"""Rows above which a table is printed as plain lines: rich takes a millisecond per cell."""
LAST_LINES = 12
"""Number of lines that are shown from the log of a failed trial."""


def status_lines(values: Mapping[str, Any]) -> list[str]:
    """Returns the values of `status_values` as lines of text."""
    states = ("finished", "running", "waiting", "stopped", "failed")
    counts = ", ".join(f"{values[state]} {state}" for state in states if values[state])
    return [
        f"{values['name']} in {values['folder']} {_progress(values)}",
        f"{counts or 'nothing yet'}, of {values['trials']} trials",
        f"front: {values['front']} points, hypervolume {values['hypervolume']:.3f}",
    ]


def _progress(values: Mapping[str, Any]) -> str:
    """Returns whether a sweep runs, is complete, or could continue."""
    if values["driver"]:
        return f"runs in process {values['driver']}"
    # 8 of 8 ended is complete; 8 of 8 of which one waits again is not. Nor need all trials have
    # begun: hours that are spent complete a sweep, too.
    begun = values["waiting"] + values["running"]
    return "is complete" if values["limit"] and not begun else "is not running"


TRIAL_HEADINGS = (
    *("trial", "state", "method", "target\n(%)", "removed\n(%)", "WER\n(%)", "GFLOPs"),
    *("latency\n(ms)", "tries", "step"),
)


def trials_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of all trials for a terminal; those on the front are highlighted."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", collapse_padding=True)
    for name in TRIAL_HEADINGS:
        justify: Literal["left", "right"] = "left" if name in ("state", "method") else "right"
        table.add_column(name, justify=justify, vertical="bottom")
    for row in rows:
        table.add_row(*_cells(row), style="bold green" if row["on_front"] else "")
    table.caption = _wer_note(rows)
    return table


def _wer_note(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns a note on the WER column if it is measured against the teacher, else None."""
    is_own = any(row.get("wer_against") == "teacher" for row in rows)
    return f"WER (%) is the {AGAINST_TEACHER}" if is_own else None


def trials_as_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the table of all trials as plain lines, about ten times faster than rich."""
    yield from _align(TRIAL_HEADINGS, map(_cells, rows), [row["on_front"] for row in rows])
    yield from filter(None, [_wer_note(rows)])


def front_as_lines(points: Sequence[Point]) -> Iterator[str]:
    """Yields the table of the front as plain lines; the knee is marked."""
    from sweep.report.front_files import COLUMNS, KNEE, rows

    knee = front.knee(points)
    cells = [[row[column] for column in COLUMNS] for row in rows(points)]
    yield from _align(list(COLUMNS.values()), cells, [point == knee for point in points])
    yield KNEE


def _align(
    headings: Sequence[str], rows: Iterable[Sequence[str]], marks: Sequence[bool]
) -> Iterator[str]:
    # "WER\n(%)" is two lines in a table of rich's and "WER (%)" here.
    table = [[heading.replace("\n", " ") for heading in headings], *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells, is_marked in zip(table, (False, *marks), strict=True):
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield f"{line} {'*' * is_marked}".rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        # Trial 7 with three outcomes has the rows 7, 7.1 and 7.2.
        f"{row['trial']}.{row['outcome']}" if row["outcome"] else str(row["trial"]),
        *(row["state"], row["method"]),
        *(_number(row["target_sparsity"], 100, 1), _number(row["realised_sparsity"], 100, 1)),
        *(_number(row["wer"], 100, 2), _number(row["gflops"], 1, 4)),
        "" if row["latency_ms"] is None else latency_text(row),
        str(row["attempts"]),
        f"{row['steps']}/{row['total_steps']}" if row["total_steps"] else "",
    )


def _number(value: float | None, scale: float, digits: int) -> str:
    # _number(0.0512, 100, 2) is "5.12": fractions inside, percent in tables.
    return "" if value is None else f"{scale * value:.{digits}f}"


def confirmations_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of the front and its repeated trainings, cheapest point first."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", title="Front, confirmed")
    for name in ("trial", "method", "GFLOPs", "params", "WER (%)", "again", "+-", "test", "seeds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        table.add_row(
            *(str(row["trial"]), row["method"], f"{row['gflops']:.4f}", f"{row['params']:,.0f}"),
            *(_number(row[key], 100, 2) for key in ("wer", "again_wer", "again_deviation")),
            *(_number(row["test_wer"], 100, 2), str(row["seeds"])),
        )
    table.caption = note_of((row["wer_against"], row["test_wer_against"]) for row in rows)
    return table


def trial_lines(snapshot: SweepSnapshot, record: TrialRecord) -> list[str]:
    """Returns everything about one trial as lines of text; for a failed one, the reason."""
    lines = [
        f"trial {record.number} of {snapshot.config.sweep.name}: {record.state}",
        f"  step {record.steps} of {record.total_steps}",
        f"  {record.seconds:.0f} s in {record.attempts} attempts",
        *(f"  {name} = {value}" for name, value in record.params.items()),
    ]
    for outcome in record.outcomes:
        lines.append("outcome")
        lines += [f"  {name} = {value}" for name, value in asdict(outcome).items()]
    if record.mlflow_run_id:
        lines.append(f"MLflow run {record.mlflow_run_id}")
    if record.error:
        lines.append(f"{'stopped' if record.state == 'stopped' else 'failed'}: {record.error}")
        lines += [f"  {line}" for line in last_lines(snapshot.folder, record.number)]
    return lines


def last_lines(folder: Path, number: int) -> list[str]:
    """Returns the last lines of a trial's log, if it has one."""
    path = folder / "logs" / f"trial-{number:04}.log"
    if not path.is_file():
        return []
    # A log holds the output of libraries, which need not be UTF-8.
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
