"""Wall time of `status` and `pareto` on many trials: this program against an older one.

`--old` is a git worktree of the older program (`git worktree add --detach PATH COMMIT`). Each
program first makes a sweep of the same trials in its own format; then both read their sweeps in
turn, so that what else the machine does slows both.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.measurement import arguments, emit

COMMANDS = ("status", "status --json", "pareto", "pareto --json")
ROOT = Path(__file__).parents[2]
MAKE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
try:
    from benchmarks.lib import recorded_sweep as recorded
    from benchmarks.lib.tiny_spaces import RECORDED as SPACE
except ImportError:  # before 0.2
    import recorded_sweep as recorded
    from recorded_sweep import SPACE
from pathlib import Path
folder, count = Path(sys.argv[2]), int(sys.argv[3])
recorded.create(folder, recorded.parse(SPACE, source="many"), SPACE)
recorded.Ledger.create(folder, ("wer", "gflops")).close()
recorded.grow(folder, count, should_copy_runs=False)
"""
READ = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import runpy
runpy.run_module("sweep", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--old", type=Path, required=True, help="worktree of the older program")
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="read-only-") as scratch:
        trees = {"old": args.old.resolve(), "new": ROOT}
        folders = {name: Path(scratch) / name for name in trees}
        for name, tree in trees.items():
            python(MAKE, tree, str(folders[name]), str(args.trials))
        rows = [compare(command, trees, folders, args.repeats) for command in COMMANDS]
    values = {"trials": args.trials, **{row["name"]: row for row in rows}}
    emit("read_only_speed", rows, values, args)


def compare(
    command: str, trees: dict[str, Path], folders: dict[str, Path], repeats: int
) -> dict[str, Any]:
    """Returns the median wall times of both programs in seconds, and new over old."""
    name, *options = command.split()
    walls: dict[str, list[float]] = {key: [] for key in trees}
    for _ in range(repeats + 1):
        for key, tree in trees.items():
            began = time.perf_counter()
            printed = python(READ, tree, name, str(folders[key]), *options)
            walls[key].append(time.perf_counter() - began)
            if options and not json.loads(printed):
                raise ValueError(f"`{command}` must print values, but does not")
    old, new = (statistics.median(walls[key][1:]) for key in ("old", "new"))  # the first warms up
    return {"name": command, "old_seconds": old, "new_seconds": new, "ratio": new / old}


def python(code: str, tree: Path, *words: str) -> str:
    command = [sys.executable, "-P", "-c", code, str(tree), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tree)  # noqa: S603
    return done.stdout


if __name__ == "__main__":
    main()
