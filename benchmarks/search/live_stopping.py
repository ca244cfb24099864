"""Early stopping at work: sweeps of each kind over the very trials that were recorded unstopped.

Proposals of the recorded space hang on seed and number alone, so the first so many recorded trials
are what a sweep without stopping would have run. Teacher and features are those of the recorded
sweep's directory.
"""

import argparse
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.replay import recorded
from benchmarks.search.early_stopping import ANY, GOOD, covered
from sweep.config.sweep import create, parse
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.run import driver
from sweep.snapshot import load_snapshot

SPACE = Path(__file__).parent / "recorded.toml"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--source", type=Path, default=Path("runs/recorded"))
    parser.add_argument("--dir", type=Path, default=Path("runs/live_stopping"))
    parser.add_argument("--kinds", nargs="+", default=["pareto", "stratified"])
    args = parser.parse_args()
    unstopped = sorted(recorded(), key=lambda trial: trial.number)[: args.trials]
    rows = [row("none, as recorded", unstopped, unstopped)]
    for kind in args.kinds:
        trials = swept(args.dir.resolve() / kind, kind, args)
        assert [t.params for t in trials] == [t.params for t in unstopped], "not the same trials"
        rows.append(row(f"{kind}, live", trials, unstopped))
    emit("live_stopping", rows, {"trials": args.trials}, args)


def swept(folder: Path, kind: str, args: argparse.Namespace) -> list[TrialRecord]:
    """A sweep's trials at its end; one that was cut short goes on."""
    if not folder.exists():
        text = SPACE.read_text()
        known = tomllib.loads(text)["sweep"]["trials"]
        text = text.replace(f"trials = {known}", f"trials = {args.trials}")
        text += f'\n[early_stopping]\nkind = "{kind}"\n'
        create(folder, parse(text, source=str(SPACE)), text)
        for part in ("teacher", "features"):
            shutil.copytree(args.source / part, folder / part)
    if driver.run(folder) != driver.DONE:
        raise SystemExit(f"the sweep did not end well; see {folder}")
    return list(load_snapshot(folder).records)


def row(
    name: str, trials: Sequence[TrialRecord], unstopped: Sequence[TrialRecord]
) -> dict[str, Any]:
    before, now = front.points(unstopped), front.points(trials)

    def share(worst_wer: float) -> float:
        whole = covered(before, unstopped, worst_wer=worst_wer)
        return covered(now, unstopped, worst_wer=worst_wer) / whole

    return {
        "name": name,
        "steps_ratio": steps(trials) / steps(unstopped),
        "hypervolume_ratio": share(ANY),
        "of_good_models": share(GOOD),
        "finished": sum(trial.state == "finished" for trial in trials),
        "stopped": sum(trial.state == "stopped" for trial in trials),
    }


def steps(trials: Sequence[TrialRecord]) -> int:
    return sum(trial.curve[-1].step for trial in trials)


if __name__ == "__main__":
    main()
