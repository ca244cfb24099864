"""Commands that look at a sweep: status, trials, show, pareto, ui."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import Json, Sweep, out, print_table, write


def status(
    folder: Sweep,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option(help="Again every two seconds.")] = False,
) -> None:
    """How far a sweep has come."""
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


def trials(folder: Sweep, as_json: Json = False) -> None:
    """All trials of a sweep; those on the front stand out."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import MANY_ROWS, trial_lines_of, trials_table
    from sweep.snapshot import load_snapshot
    from sweep.summary import trial_rows

    rows = trial_rows(load_snapshot(folder))
    if as_json:
        write([to_json(rows)])
    elif len(rows) > MANY_ROWS:
        write(trial_lines_of(rows))
    else:
        print_table(trials_table(rows))


def show(
    folder: Sweep,
    trial: Annotated[int, typer.Argument(help="Its number, from 0.")],
    as_json: Json = False,
) -> None:
    """One trial, whole; of a failed one, why."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import trial_lines
    from sweep.snapshot import load_snapshot
    from sweep.summary import trial_rows

    seen = load_snapshot(folder)
    record = seen.record(trial)
    if as_json:
        out.print(to_json([row for row in trial_rows(seen) if row["trial"] == trial]), markup=False)
    else:
        out.print("\n".join(trial_lines(seen, record)), markup=False)


def pareto(
    folder: Sweep,
    max_wer: Annotated[float | None, typer.Option(help="A fraction: 0.05 is 5 %.")] = None,
    max_gflops: Annotated[float | None, typer.Option(help="An utterance.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="An utterance.")] = None,
    knee: Annotated[bool, typer.Option(help="Only the point where the front bends.")] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="DIR2", help="Another sweep, beside this one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page there.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture there.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture there.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all outcomes there.")] = None,
    as_json: Json = False,
) -> None:
    """The front of a sweep: outcomes that no other beats."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.tables import MANY_ROWS, front_lines_of
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
    wanted = {kind: path for kind, path in copies.items() if path is not None}
    if compare is not None:
        if knee or csv is not None:
            raise ValueError(
                "`--knee` and `--csv` are of one sweep; leave them or `--compare` out."
            )
        _compare((folder, compare), limits, wanted, as_json=as_json)
        return
    seen = load_snapshot(folder)
    points = front.pareto_front(front.feasible(seen.points, **limits), seen.config.sweep.objectives)
    points = [front.knee(points)] if knee and points else points
    write_copies(seen, wanted)
    if as_json:
        write([to_json(pareto_values(seen, points))])
    elif len(points) > MANY_ROWS:
        write(front_lines_of(points))
    elif points:
        print_table(front_table(points))
    else:
        out.print("no finished trial within these limits yet")


def _compare(
    folders: tuple[Path, Path],
    limits: dict[str, float | None],
    wanted: dict[str, Path],
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
    draw_copies(compared, wanted)
    found = unlike(one.config, other.config)
    if as_json:
        out.print(to_json({**values(compared), "unlike": found}), markup=False)
        return
    for table in tables(compared):
        print_table(table)
    for name, seen in ((first, one), (second, other)):
        note = against_note(point.result for point in seen.points)
        found += [f"the WER of {name}. {note}"] if note else []
    for line in found:
        out.print(f"not alike: {line}", markup=False)


def listen(
    folder: Sweep,
    trial: Annotated[int | None, typer.Option(help="Only this one; else the front.")] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="The page; DIR/front/listening.html.")
    ] = None,
) -> None:
    """A page on which to play utterances, and to read what teacher and pruned model heard."""
    from sweep.report.export_files import write_listening
    from sweep.snapshot import load_snapshot

    seen = load_snapshot(folder)
    file = to or seen.folder / "front" / "listening.html"
    found = write_listening(seen, file, trial=trial)
    told = f"nothing to hear: {found.silence}" if found.silence else str(file)
    out.print(told, markup=False)


def ui(
    folder: Sweep, port: Annotated[int, typer.Option(help="Of the local server.")] = 5000
) -> None:
    """Serve the sweep's MLflow pages to this machine, and say where the front is."""
    from sweep.config.sweep import open_config
    from sweep.storage.working_copy import refresh
    from sweep.tracking.mlflow_server import ui_command
    from sweep.tracking.tracker import Tracker

    folder = folder.resolve()
    refresh(folder, is_whole=True)
    config = open_config(folder)
    uri = config.tracking.uri
    is_served = uri.startswith("http")
    tracker = Tracker(folder, config.sweep.name, uri)
    base = uri if is_served else f"http://127.0.0.1:{port}"
    out.print(tracker.link(base), markup=False)
    out.print(f"the front, and what its models hear: {tracker.front_link(base)}", markup=False)
    if not is_served:
        sys.exit(subprocess.run(ui_command(folder, port), check=False).returncode)  # noqa: S603
