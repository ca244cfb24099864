"""Commands that read a sweep: status, trials, show, pareto, listen and ui."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import Json, SweepToRead, out, print_table, write


def status(
    folder: SweepToRead,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the status again every two seconds.")
    ] = False,
) -> None:
    """Show how far a sweep has come."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import status_lines
    from sweep.snapshot import load_snapshot
    from sweep.summary import status_values

    while True:
        values = status_values(load_snapshot(folder))
        lines = [to_json(values)] if as_json else status_lines(values)
        out.print("\n".join(lines), markup=False)
        if not watch:
            return
        time.sleep(2)


def trials(folder: SweepToRead, as_json: Json = False) -> None:
    """List all trials of a sweep; those on the front are highlighted."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import MANY_ROWS, trials_as_lines, trials_table
    from sweep.snapshot import load_snapshot
    from sweep.summary import trial_rows

    rows = trial_rows(load_snapshot(folder))
    if as_json:
        # Not through rich, which would measure a line of many megabytes for its width.
        write([to_json(rows)])
    elif len(rows) > MANY_ROWS:
        write(trials_as_lines(rows))
    else:
        print_table(trials_table(rows))


def show(
    folder: SweepToRead,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Number of the trial, from 0.")],
    as_json: Json = False,
) -> None:
    """Show everything about one trial; for a failed one, the reason."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import trial_lines
    from sweep.snapshot import load_snapshot
    from sweep.summary import trial_rows

    snapshot = load_snapshot(folder)
    record = snapshot.record(trial)
    if as_json:
        rows = [row for row in trial_rows(snapshot) if row["trial"] == trial]
        out.print(to_json(rows), markup=False)
    else:
        out.print("\n".join(trial_lines(snapshot, record)), markup=False)


MaxWer = Annotated[
    float | None, typer.Option(help="Largest word error rate, as a fraction: 0.05 is 5 %.")
]
MaxGflops = Annotated[float | None, typer.Option(help="Largest cost of one utterance, in GFLOPs.")]
MaxLatencyMs = Annotated[
    float | None, typer.Option(help="Largest latency of one utterance, in milliseconds.")
]
Knee = Annotated[
    bool, typer.Option("--knee", help="Show only the knee, the point where the front bends.")
]
Compare = Annotated[
    Path | None,
    typer.Option(metavar="DIR2", help="Second sweep, to compare the fronts of both."),
]


def pareto(
    folder: SweepToRead,
    max_wer: MaxWer = None,
    max_gflops: MaxGflops = None,
    max_params: Annotated[float | None, typer.Option(help="Largest number of parameters.")] = None,
    max_latency_ms: MaxLatencyMs = None,
    knee: Knee = False,
    compare: Compare = None,
    html: Annotated[Path | None, typer.Option(help="File for the interactive page.")] = None,
    svg: Annotated[Path | None, typer.Option(help="File for the chart, as SVG.")] = None,
    png: Annotated[Path | None, typer.Option(help="File for the chart, as PNG.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for all outcomes, as CSV.")] = None,
    as_json: Json = False,
) -> None:
    """Show the Pareto front of a sweep: the outcomes that no other outcome beats."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import MANY_POINTS, front_as_lines
    from sweep.pareto import front
    from sweep.report.export_files import write_copies
    from sweep.report.front_files import front_table
    from sweep.snapshot import load_snapshot
    from sweep.summary import pareto_values

    limits = {
        "max_wer": max_wer,
        "max_gflops": max_gflops,
        "max_params": max_params,
        "max_latency_ms": max_latency_ms,
    }
    copies = {"html": html, "svg": svg, "png": png, "csv": csv}
    outputs = {kind: path for kind, path in copies.items() if path is not None}
    if compare is not None:
        if knee or csv is not None:
            raise ValueError(
                "`--compare` must be without `--knee` and `--csv`, but is not; omit them."
            )
        _compare((folder, compare), limits, outputs, as_json=as_json)
        return
    snapshot = load_snapshot(folder)
    allowed = front.feasible(snapshot.points, **limits)
    points = front.pareto_front(allowed, snapshot.config.sweep.objectives)
    points = [front.knee(points)] if knee and points else points
    write_copies(snapshot, outputs)
    if as_json:
        write([to_json(pareto_values(snapshot, points))])
    elif len(points) > MANY_POINTS:
        write(front_as_lines(points))
    elif points:
        print_table(front_table(points))
    else:
        out.print("no finished trial within these limits yet")


def _compare(
    folders: tuple[Path, Path],
    limits: dict[str, float | None],
    outputs: dict[str, Path],
    *,
    as_json: bool,
) -> None:
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.pareto.comparison import compare, unlike, values
    from sweep.report.compare_charts import draw_copies, labels, side, tables
    from sweep.snapshot import load_snapshot
    from sweep.wer_labels import against_note

    one, other = (load_snapshot(folder) for folder in folders)
    first, second = labels(one, other)
    compared = compare(side(first, one, limits), side(second, other, limits))
    draw_copies(compared, outputs)
    differences = unlike(one.config, other.config)
    if as_json:
        out.print(to_json({**values(compared), "unlike": differences}), markup=False)
        return
    for table in tables(compared):
        print_table(table)
    for name, snapshot in ((first, one), (second, other)):
        note = against_note(point.result for point in snapshot.points)
        differences += [f"the WER of {name}. {note}"] if note else []
    for line in differences:
        out.print(f"not alike: {line}", markup=False)


def listen(
    folder: SweepToRead,
    trial: Annotated[
        int | None, typer.Option(help="Number of one trial, instead of the front.")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", help="File for the page; by default DIR/front/listening.html."),
    ] = None,
) -> None:
    """Write a page that plays utterances next to the transcripts of teacher and pruned models."""
    from sweep.report.export_files import write_listening
    from sweep.snapshot import load_snapshot

    snapshot = load_snapshot(folder)
    file = to or snapshot.folder / "front" / "listening.html"
    audio = write_listening(snapshot, file, trial=trial)
    reason = audio.unavailable_reason
    out.print(f"nothing to play: {reason}" if reason else str(file), markup=False)


def ui(
    folder: SweepToRead,
    port: Annotated[int, typer.Option(help="Port of the local MLflow server.")] = 5000,
) -> None:
    """Serve the MLflow pages of a sweep on this machine, and print the link to the front."""
    from sweep.config.sweep import open_config
    from sweep.storage.working_copy import refresh
    from sweep.tracking.mlflow_server import ui_command
    from sweep.tracking.tracker import Tracker

    folder = folder.resolve()
    refresh(folder, is_whole=True)
    config = open_config(folder)
    uri = config.tracking.uri
    # A server of one's own has pages already; of a database the pages are served here.
    is_served = uri.startswith("http")
    tracker = Tracker(folder, config.sweep.name, uri)
    base = uri if is_served else f"http://127.0.0.1:{port}"
    out.print(tracker.link(base), markup=False)
    out.print(f"front and audio samples: {tracker.front_link(base)}", markup=False)
    if not is_served:
        sys.exit(subprocess.run(ui_command(folder, port), check=False).returncode)  # noqa: S603
