"""Commands that run a sweep: demo, run, resume, extend, stop, confirm and warm-start."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

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
    print_table,
    sweep_dir,
)

DEMO_FOLDER = Path("demo-sweep")


def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Directory of the demo's sweep.")
    ] = DEMO_FOLDER,
    decoder: Annotated[
        Literal["ctc", "rnnt", "tdt"] | None,
        typer.Option(help="CTC, or a transducer: RNN-T or TDT. By default CTC."),
    ] = None,
) -> None:
    """Run speech, teacher, sweep and front on this machine in minutes, or continue if begun."""
    from core.config.base import ConfigError
    from sweep.config.sweep import CONFIG_FILE, open_config
    from sweep.run.start import create_demo

    if not (folder / CONFIG_FILE).exists():
        create_demo(folder, decoder or "ctc")
    begun = open_config(folder).space.base.model.decoder
    if decoder not in (None, begun):
        raise ConfigError(
            f"`--decoder` must be that of the sweep in `{folder}`, {begun}, but is {decoder}"
            " instead; give another `--dir`."
        )
    _run(folder, None)


def run(
    space: Space,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Directory of the sweep, or s3://...; by default runs/NAME.",
            parser=sweep_dir,
        ),
    ] = None,
    trials: Trials = None,
    hours: Hours = None,
    address: Address = None,
) -> None:
    """Start a sweep, or continue it if its directory holds it already."""
    from sweep.config.sweep import find
    from sweep.run.start import create_or_adopt_sweep

    folder = folder or Path("runs") / find(space).stem
    create_or_adopt_sweep(space, folder, trials=trials, hours=hours)
    _run(folder, address)


def resume(
    folder: Sweep,
    address: Address = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials again, too.")
    ] = False,
) -> None:
    """Continue a sweep, whatever ended it."""
    _run(folder, address, should_retry=retry_failed)


def extend(
    folder: Sweep,
    trials: Annotated[int | None, typer.Option(help="Number of trials to add.", min=1)] = None,
    hours: Annotated[float | None, typer.Option(help="Hours to add to the budget.", min=0)] = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of a finished trial to tune further, with --steps.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Tuning steps to add to --trial.", min=1)
    ] = None,
    address: Address = None,
) -> None:
    """Add trials or hours to a sweep, or tuning steps to one trial, and continue it."""
    if (trial is None) != (steps is None):
        raise ValueError(
            "`--trial` and `--steps` must be given together: which trial, and how many steps."
        )
    if trials is None and hours is None and trial is None:
        raise ValueError(
            "`extend` must have `--trials`, `--hours`, or `--trial` with `--steps`, but has none."
        )
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

    load_snapshot(folder).record(trial)  # raises if there is none
    # Only one process writes a ledger: on a running sweep this raises LockedError.
    with sweep_lock(folder):
        ledger = Ledger.open(folder, is_writer=True)
        try:
            ledger.tune_further(trial, steps)
        finally:
            ledger.close()


def _enlarge(folder: Path, trials: int | None, hours: float | None) -> None:
    from sweep.config.sweep import open_config, rewrite
    from sweep.search.budget import extended_budget
    from sweep.snapshot import load_snapshot
    from sweep.storage.lock import sweep_lock

    open_config(folder)  # raises where there is no sweep, before the lock leaves a file
    # Read under the lock: of two commands, the second adds to what the first wrote.
    with sweep_lock(folder):
        snapshot = load_snapshot(folder)
        # From the records as well as the plan: what "5 more" means depends on whether the sweep is
        # over.
        values = extended_budget(snapshot.records, snapshot.config, trials=trials, hours=hours)
        rewrite(folder, snapshot.config.with_budget(**values))


def confirm(
    folder: Sweep,
    seeds: Annotated[int, typer.Option(help="New seeds for each point of the front.", min=1)] = 3,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Train the points of the front again with new seeds, and show how their WER varies."""
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.cli.output.streams import outlive_readers
    from sweep.cli.output.tables import confirmations_table
    from sweep.ledger.ledger import Ledger
    from sweep.run.driver import run as run_segment
    from sweep.search.confirm import confirmations, plan, summarize_confirmations
    from sweep.snapshot import load_snapshot

    snapshot = load_snapshot(folder)
    if not snapshot.front:
        raise ValueError(f"`{folder}` must have a finished trial to confirm, but has none.")
    inner = plan(snapshot, seeds=seeds)
    # Before the long part: `conformer-sweep run ... | head` ends the printing, not the sweep.
    outlive_readers()
    code = run_segment(inner, address=address)
    ledger = Ledger.open(inner)
    confirmed = summarize_confirmations(snapshot.front, ledger.records(), confirmations(ledger))
    rows = [asdict(point) for point in confirmed]
    ledger.close()
    if as_json:
        out.print(to_json(rows), markup=False)
    else:
        print_table(confirmations_table(rows))
    sys.exit(code)


def warm_start(
    folder: Annotated[
        Path, typer.Argument(metavar="NEW", help="Directory of the new sweep.", parser=sweep_dir)
    ],
    olds: Annotated[
        list[Path],
        typer.Option(
            "--from", help="Directory of an earlier sweep; repeat for several.", parser=sweep_dir
        ),
    ],
    space: Annotated[
        str | None,
        typer.Option(help="Search space of the new sweep; by default that of the first --from."),
    ] = None,
    trials: Trials = None,
    hours: Hours = None,
    address: Address = None,
) -> None:
    """Start a sweep whose sampler begins with the results of earlier sweeps and their teacher."""
    from sweep.config.consent import check_consent, give_consent
    from sweep.config.sweep import check_new, create, find, load, open_config
    from sweep.search.warm_start import begin, check
    from sweep.snapshot import load_snapshot

    snapshots = [load_snapshot(old) for old in olds]
    budget = _without_none(trials=trials, hours=hours, name=folder.resolve().name)
    # Without a file of the user's own, the older sweep's directory is all that sets `corpus.allow`.
    if not space:
        check_consent(olds[0], open_config(olds[0]))
    config = (load(space) if space else open_config(olds[0])).with_budget(**budget)
    for snapshot in snapshots:
        check(config, snapshot)
    original = find(space).read_text(encoding="utf-8") if space else config.toml()
    # Before the consent and the copies, so that a folder in use is left as it is. `create` comes
    # last: only then is it a sweep.
    check_new(folder)
    give_consent(folder, config)
    count = begin(folder.resolve(), config, snapshots)
    create(folder.resolve(), config, original)
    out.print(f"starts with {count} outcomes of {len(snapshots)} sweeps", markup=False)
    _run(folder, address)


def stop(
    folder: Sweep,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the sweep to end, at most.", min=0)
    ] = 60.0,
) -> None:
    """Stop a running sweep in order, from any machine; `resume` continues it."""
    from sweep.config.sweep import open_config
    from sweep.storage.addresses import display_name
    from sweep.storage.lock import driver_pid, request_stop

    folder = folder.resolve()
    open_config(folder)
    if driver_pid(folder) is None:
        out.print(f"{display_name(folder)} is not running", markup=False)
        return
    request_stop(folder)
    deadline = time.monotonic() + wait
    # The lock is the answer: it is free once the driver's process has ended and all is written.
    while driver_pid(folder) is not None:
        if time.monotonic() > deadline:
            end(
                f"`{display_name(folder)}` was asked to stop, but still runs after {wait:g} s.",
                RESUMABLE,
            )
        time.sleep(0.2)
    out.print(f"stopped; conformer-sweep resume {display_name(folder)} continues it", markup=False)


def _without_none(**values: Any) -> dict[str, Any]:
    # None would replace a value of the file; a missing name leaves it.
    return {name: value for name, value in values.items() if value is not None}


def _run(folder: Path, address: str | None, *, should_retry: bool = False) -> None:
    from sweep.cli.output.streams import outlive_readers
    from sweep.run.driver import run as run_segment

    outlive_readers()
    code = run_segment(folder, address=address, should_retry=should_retry)
    _show_end(folder.resolve(), code)
    sys.exit(code)


def _show_end(folder: Path, code: int) -> None:
    from sweep.cli.output.tables import status_lines
    from sweep.report.front_files import front_table
    from sweep.snapshot import load_snapshot
    from sweep.storage.addresses import display_name
    from sweep.summary import status_values

    # Read anew, because the segment has written the ledger since the command began.
    snapshot, name = load_snapshot(folder), display_name(folder)
    if snapshot.front:
        print_table(front_table(snapshot.front, title="Pareto front"))
        out.print(f"page     {name}/front/front.html", markup=False)
        out.print(f"picture  {name}/front/front.png", markup=False)
        out.print(f"MLflow   conformer-sweep ui {name}", markup=False)
    for line in status_lines(status_values(snapshot)):
        out.print(line, markup=False)
    if code == RESUMABLE:
        out.print(f"interrupted; conformer-sweep resume {name} continues it", markup=False)
