"""The front of a finished sweep, kept for the README: table, and picture with --save.

Run the sweep first: `conformer-sweep run search_spaces/commands.toml --dir runs/commands`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import RESULTS, arguments, emit

from core import bundle
from sweep.report.export_files import write_copies
from sweep.snapshot import load_snapshot
from sweep.summary import trial_rows

KEPT = (
    *("method", "params", "gflops", "params_sparsity", "flops_sparsity"),
    *("wer", "wer_low", "wer_high", "test_wer", "test_wer_low", "test_wer_high"),
)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/commands"))
    args = parser.parse_args()
    seen = load_snapshot(args.dir)
    teacher = bundle.load(seen.folder / "teacher" / "model").report["outcome"]
    found = [row for row in trial_rows(seen) if row["state"] == "finished"]
    shown = sorted((r for r in found if r["on_front"]), key=lambda row: float(row["gflops"]))
    control = next(row for row in found if row["method"] == "dense")
    rows = [
        row_of("teacher", teacher),
        row_of("teacher, trained on", control),
        *(row_of(f"trial {row['trial']}", row) for row in reversed(shown) if row is not control),
    ]
    values = {"sweep": seen.config.sweep.name, "trials": len(found), "front": len(shown)}
    emit(f"front_{seen.config.sweep.name}", rows, values, args)
    if args.save:
        write_copies(seen, {"png": RESULTS / f"front_{seen.config.sweep.name}.png"})


def row_of(name: str, outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name} | {key: outcome[key] for key in KEPT}


if __name__ == "__main__":
    main()
