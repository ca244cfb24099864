"""Commands that run a sweep: demo, run, resume, extend, confirm, warm-start, stop."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sweep.cli.options import (
    RESUMABLE,
    Address,
    Hours,
    Json,
    Space,
    Sweep,
    Trials,
    end,
    out,
    place,
    print_table,
)

DEMO_FOLDER = Path("demo-sweep")


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where to.")] = DEMO_FOLDER,
) -> None:
    """The whole story on this machine: speech, teacher, sweep, front. Minutes; goes on if there."""
    from sweep.config.sweep import CONFIG_FILE

    if not (folder / CONFIG_FILE).exists():
        _create("demo", folder, None, None)
    _run(folder, None)


def run(
    space: Space,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where to; runs/NAME, or s3://...", parser=place)
    ] = None,
    trials: Trials = None,
    hours: Hours = None,
    address: Address = None,
) -> None:
    """Start a sweep; if the directory holds it already, go on with it."""
    from sweep.config.sweep import CONFIG_FILE, find

    folder = folder or Path("runs") / find(space).stem
    if (folder / CONFIG_FILE).exists():
        _adopt(space, folder.resolve(), trials, hours)
    else:
        _create(space, folder, trials, hours)
    _run(folder, address)


def resume(
    folder: Sweep,
    address: Address = None,
    retry_failed: Annotated[bool, typer.Option(help="Failed trials are tried again, too.")] = False,
) -> None:
    """Go on with a sweep, whatever ended it."""
    _run(folder, address, should_retry=retry_failed)


def extend(
    folder: Sweep,
    trials: Annotated[int | None, typer.Option(help="So many more.", min=1)] = None,
    hours: Annotated[float | None, typer.Option(help="So many more.", min=0)] = None,
    trial: Annotated[int | None, typer.Option(help="One finished trial, by --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Tune it on by so many.", min=1)] = None,
    address: Address = None,
) -> None:
    """More of a sweep, finished or not: trials, hours, or steps of one trial."""
    if (trial is None) != (steps is None):
        raise ValueError("`--trial` and `--steps` must be given together: which trial, how far on.")
    if trials is None and hours is None and trial is None:
        raise ValueError("`extend` must be told by how much: --trials, --hours, --trial --steps.")
    folder = folder.resolve()
    if trial is not None and steps is not None:
        _tune_on(folder, trial, steps)
    if trials is not None or hours is not None:
        _enlarge(folder, trials, hours)
    _run(folder, address)


def _tune_on(folder: Path, trial: int, steps: int) -> None:
    from sweep.ledger.ledger import Ledger
    from sweep.snapshot import load_snapshot
    from sweep.storage.lock import sweep_lock

    load_snapshot(folder).record(trial)  # complains if there is none
    with sweep_lock(folder):
        ledger = Ledger.open(folder, is_writer=True)
        try:
            ledger.tune_further(trial, steps)
        finally:
            ledger.close()


def _enlarge(folder: Path, trials: int | None, hours: float | None) -> None:
    from sweep.config.sweep import rewrite
    from sweep.search.budget import extended_budget
    from sweep.snapshot import load_snapshot
    from sweep.storage.lock import sweep_lock

    seen = load_snapshot(folder)
    values = extended_budget(seen.records, seen.config, trials=trials, hours=hours)
    with sweep_lock(folder):
        rewrite(folder, seen.config.with_budget(**values))


def confirm(
    folder: Sweep,
    seeds: Annotated[int, typer.Option(help="Fresh ones a point.", min=1)] = 3,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Train the front's points again with fresh seeds, and say what was luck."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.streams import outlive_readers
    from sweep.cli.output.tables import confirmed_table
    from sweep.ledger.ledger import Ledger
    from sweep.run.driver import run as run_segment
    from sweep.search.confirm import confirmations, plan, summarize_confirmations
    from sweep.snapshot import load_snapshot

    seen = load_snapshot(folder)
    if not seen.front:
        raise ValueError(f"`{folder}` must have a finished trial to confirm, but has none.")
    place = plan(seen, seeds=seeds)
    outlive_readers()
    code = run_segment(place, address=address)
    ledger = Ledger.open(place)
    found = summarize_confirmations(seen.front, ledger.records(), confirmations(ledger))
    rows = [asdict(each) for each in found]
    ledger.close()
    if as_json:
        out.print(to_json(rows), markup=False)
    else:
        print_table(confirmed_table(rows))
    sys.exit(code)


def warm_start(
    folder: Annotated[
        Path, typer.Argument(metavar="NEW", help="The new sweep's directory.", parser=place)
    ],
    olds: Annotated[
        list[Path], typer.Option("--from", help="An old one's; may be repeated.", parser=place)
    ],
    space: Annotated[
        str | None, typer.Option(help="Its search space; by default the first old one's.")
    ] = None,
    trials: Trials = None,
    hours: Hours = None,
    address: Address = None,
) -> None:
    """Start a sweep whose sampler knows what others found, with their teacher."""
    from sweep.config.consent import check_consent, give_consent
    from sweep.config.sweep import check_new, create, find, load, open_config
    from sweep.search.warm_start import begin, check
    from sweep.snapshot import load_snapshot

    seen = [load_snapshot(old) for old in olds]
    given = _given(trials=trials, hours=hours, name=folder.resolve().name)
    if not space:
        check_consent(olds[0], open_config(olds[0]))
    config = (load(space) if space else open_config(olds[0])).with_budget(**given)
    for old in seen:
        check(config, old)
    original = find(space).read_text(encoding="utf-8") if space else config.toml()
    check_new(folder)
    give_consent(folder, config)
    count = begin(folder.resolve(), config, seen)
    create(folder.resolve(), config, original)
    out.print(f"begins with {count} outcomes of {len(seen)} sweeps", markup=False)
    _run(folder, address)


def stop(
    folder: Sweep,
    wait: Annotated[float, typer.Option(help="Seconds until its end at most.", min=0)] = 60.0,
) -> None:
    """End a live sweep in order, from here or from another machine; `resume` goes on with it."""
    from sweep.config.sweep import open_config
    from sweep.storage.lock import driver_pid, request_stop
    from sweep.storage.working_copy import display_name

    folder = folder.resolve()
    open_config(folder)
    if driver_pid(folder) is None:
        out.print(f"{display_name(folder)} does not run", markup=False)
        return
    request_stop(folder)
    deadline = time.monotonic() + wait
    while driver_pid(folder) is not None:
        if time.monotonic() > deadline:
            end(
                f"`{display_name(folder)}` was asked to stop, but still runs after {wait:g} s.",
                RESUMABLE,
            )
        time.sleep(0.2)
    out.print(f"stopped; conformer-sweep resume {display_name(folder)} goes on", markup=False)


def _create(space: str, folder: Path, trials: int | None, hours: float | None) -> None:
    from sweep.config.consent import give_consent
    from sweep.config.sweep import create, find, load
    from sweep.wer_labels import refuse_sweep

    config = load(space).with_budget(**_given(trials=trials, hours=hours))
    refuse_sweep(config.space.base.corpus)
    create(folder.resolve(), config, find(space).read_text(encoding="utf-8"))
    give_consent(folder, config)


def _adopt(space: str, folder: Path, trials: int | None, hours: float | None) -> None:
    """Go on with a sweep by the space it is given now; the driver says what differs."""
    from sweep.config.consent import give_consent
    from sweep.config.diff import changes, check
    from sweep.config.sweep import load, open_config, rewrite
    from sweep.storage.lock import sweep_lock

    before = open_config(folder)
    given = _given(trials=trials, hours=hours, name=before.sweep.name)
    config = load(space).with_budget(**given)
    found = changes(before, config)
    check(found)
    if found:
        with sweep_lock(folder):
            rewrite(folder, config)
    give_consent(folder, config)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _run(folder: Path, address: str | None, *, should_retry: bool = False) -> None:
    from sweep.cli.output.streams import outlive_readers
    from sweep.run.driver import run as run_segment

    outlive_readers()
    code = run_segment(folder, address=address, should_retry=should_retry)
    _show_end(folder.resolve(), code)
    sys.exit(code)


def _show_end(folder: Path, code: int) -> None:
    from sweep.cli.output.tables import status_lines, status_values
    from sweep.report.front_files import front_table
    from sweep.snapshot import load_snapshot
    from sweep.storage.working_copy import display_name

    seen, place = load_snapshot(folder), display_name(folder)
    if seen.front:
        print_table(front_table(seen.front, title="Pareto front"))
        out.print(f"page     {place}/front/front.html", markup=False)
        out.print(f"picture  {place}/front/front.png", markup=False)
        out.print(f"MLflow   conformer-sweep ui {place}", markup=False)
    for line in status_lines(status_values(seen)):
        out.print(line, markup=False)
    if code == RESUMABLE:
        out.print(f"interrupted; conformer-sweep resume {place} goes on", markup=False)
