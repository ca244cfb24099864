"""What the ledger shows to people and to scripts: rows, counts, tables. It prints nothing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import BUSY, Point
from sweep.snapshot import SweepSnapshot
from sweep.wer_labels import AGAINST_TEACHER, note_of

MANY_ROWS = 300
"""Above so many a table is plain lines: measuring each cell takes a millisecond."""
LAST_LINES = 12
"""Of a failed trial's log."""


def status_lines(values: Mapping[str, Any]) -> list[str]:
    """The same, to be read."""
    states = ("finished", "running", "waiting", "stopped", "failed")
    counts = ", ".join(f"{values[state]} {state}" for state in states if values[state])
    return [
        f"{values['name']} in {values['folder']} {_pace(values)}",
        f"{counts or 'nothing yet'}, of {values['trials']} trials",
        f"front: {values['front']} points, hypervolume {values['hypervolume']:.3f}",
    ]


def _pace(values: Mapping[str, Any]) -> str:
    """Whether a sweep goes on, could, or has come to its end."""
    if values["driver"]:
        return f"runs in process {values['driver']}"
    begun = values["waiting"] + values["running"]
    ended = values["finished"] + values["stopped"] + values["failed"]
    return "is complete" if ended >= values["trials"] and not begun else "does not run"


TRIAL_HEADINGS = (
    *("trial", "state", "method", "target\n(%)", "removed\n(%)", "WER\n(%)", "GFLOPs"),
    *("latency\n(ms)", "tries", "step"),
)


def trials_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All trials for the terminal; those on the front stand out."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", collapse_padding=True)
    for name in TRIAL_HEADINGS:
        justify: Literal["left", "right"] = "left" if name in ("state", "method") else "right"
        table.add_column(name, justify=justify, vertical="bottom")
    for row in rows:
        table.add_row(*_cells(row), style="bold green" if row["on_front"] else "")
    table.caption = _against(rows)
    return table


def _against(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What is to be said of a column called WER; nothing of a plain one."""
    is_own = any(row.get("wer_against") == "teacher" for row in rows)
    return f"WER (%) is the {AGAINST_TEACHER}" if is_own else None


def trial_lines_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The same as plain lines, a thousand trials in the time of one of the table's hundreds."""
    yield from _aligned(TRIAL_HEADINGS, map(_cells, rows), [row["on_front"] for row in rows])
    yield from filter(None, [_against(rows)])


def front_lines_of(points: Sequence[Point]) -> Iterator[str]:
    """The front's table likewise; the knee stands out."""
    from sweep.report.front_files import COLUMNS, KNEE, rows  # as below

    knee = front.knee(points)
    cells = [[row[column] for column in COLUMNS] for row in rows(points)]
    yield from _aligned(list(COLUMNS.values()), cells, [point == knee for point in points])
    yield KNEE


def _aligned(
    headings: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[bool]
) -> Iterator[str]:
    told = [[heading.replace("\n", " ") for heading in headings], *rows]
    widths = [max(map(len, column)) for column in zip(*told, strict=True)]
    for cells, is_marked in zip(told, (False, *marked), strict=True):
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield f"{line} {'*' * is_marked}".rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['trial']}.{row['outcome']}" if row["outcome"] else str(row["trial"]),
        *(row["state"], row["method"]),
        *(_number(row["target_sparsity"], 100, 1), _number(row["realised_sparsity"], 100, 1)),
        *(_number(row["wer"], 100, 2), _number(row["gflops"], 1, 4)),
        f"{_number(row['latency_ms'], 1, 1)}{BUSY if row['latency_busy'] else ''}",
        str(row["attempts"]),
        f"{row['steps']}/{row['total_steps']}" if row["total_steps"] else "",
    )


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def confirmed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Front points and how they did again, cheapest first."""
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


def trial_lines(seen: SweepSnapshot, record: TrialRecord) -> list[str]:
    """One trial, whole: what was tried, what came of it, and why not if it failed."""
    lines = [
        f"trial {record.number} of {seen.config.sweep.name}: {record.state}",
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
        lines += [f"  {line}" for line in last_lines(seen.folder, record.number)]
    return lines


def last_lines(folder: Path, number: int) -> list[str]:
    """The end of a trial's log, if it has one."""
    path = folder / "logs" / f"trial-{number:04}.log"
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
