"""The whole path of a large model, command by command: time, peak memory, sizes, longest silence.

Every step is a command as a user gives it, in a process of its own. Memory is the largest sum of
the resident sizes of that process and all that it starts, asked every 50 ms, so pages of a weights
file that is mapped count, too. `silence` is the longest time without a line of output. The model
has random weights of the exact shape of a published one (large_source.py); texts mean nothing.
What was measured stays in --dir, so an interrupted run goes on; --again measures steps anew.

`python -m benchmarks.quality.large_models --shape 0.6b --save`, then `--shape 1.1b --save`; for
transducers `--shape tdt-0.6b-v2 --name large_transducers --save`.
`--steps "source,import,prune --audio" --name large_audio --save` makes the table of
docs/concepts/pruning-without-training.md, for either shape.
"""

import argparse
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

from benchmarks.lib.large_source import SHAPES, SPREAD, TRANSDUCERS
from benchmarks.lib.measurement import RESULTS, arguments, emit

NAME = "large_models"
LIMITS = {
    "import": 2.5,
    "prune": 2.5,
    "prune --audio": 2.5,
    "onnx": 4.0,
    "int8": 4.0,
    "sherpa": 4.0,
    "transformers": 4.0,
    "onnx-asr": 4.0,
}
"""Of peak memory, in sizes of the weights in single precision."""
STEPS = (
    "source",
    "import",
    "check",
    "prune",
    "prune --audio",
    "bench",
    "transcribe",
    "onnx",
    "int8",
    "sherpa",
    "transformers",
    "onnx-asr",
)
OF_TRANSDUCERS = (
    "source",
    "import",
    "check",
    "prune",
    "prune --audio",
    "bench",
    "transcribe",
    "onnx-asr",
    "sherpa",
    "transformers",
)
"""Those of a shape that is no CTC."""
SECONDS = 10.0
"""Of the speech that is transcribed."""
SPEECH = Path(__file__).parents[3] / "shared" / "data" / "commands" / "train-clean"
"""Calibrated on, ten minutes of it; noise where it is not there."""
SPACE = """\
[sweep]
trials = 4
seed = 7

[trial.corpus]
name = "{corpus}"

[trial.teacher]
bundle = "{bundle}"

[trial.pruning]
method = "magnitude"
repair = "none"
steps = 0
target_sparsity = {{ uniform = [0.2, 0.6] }}

[trial.tuning]
steps = 0
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A command's end, and what it took."""

    name: str
    shape: str
    seconds: float
    peak_gb: float
    weights: float
    """Peak memory in sizes of the weights in single precision."""
    silence: float
    """Longest time without output, in seconds."""
    written_gb: float
    """Of what the command leaves."""
    stages: dict[str, float]
    """Seconds of each stage that the command announced."""
    code: int
    error: str


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", help="some of them, by commas; by default all of the shape")
    parser.add_argument("--spread", type=float, default=SPREAD, help="of the random weights")
    parser.add_argument("--dir", type=Path, default=Path("runs/large_models"))
    parser.add_argument("--name", default=NAME, help="of the table; rows are of these steps alone")
    parser.add_argument("--again", action="store_true", help="also steps that were measured")
    args = parser.parse_args()
    root = (args.dir / f"{args.shape}-{args.spread:g}").resolve()
    root.mkdir(parents=True, exist_ok=True)
    usual = ",".join(OF_TRANSDUCERS if args.shape in TRANSDUCERS else STEPS[:-1])
    steps = [each.strip() for each in (args.steps or usual).split(",")]
    for step in steps:
        if step not in STEPS:
            parser.error(f"--steps must be some of {', '.join(STEPS)}, but has {step} instead")
        if args.again or not (root / f"{step}.json").is_file():
            measured = measure(step, args.shape, root, spread=args.spread)
            (root / f"{step}.json").write_text(json.dumps(asdict(measured), indent=1))
            print(f"{step}: {asdict(measured)}", file=sys.stderr, flush=True)
    wanted = STEPS if args.name == NAME else steps
    files = [root / f"{step}.json" for step in wanted]
    rows = merged(args, [json.loads(file.read_text()) for file in files if file.is_file()])
    emit(args.name, rows, verdict(rows), args)


def merged(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and those of other shapes that the file has."""
    file = RESULTS / f"{args.name}.json"
    others = json.loads(file.read_text())["rows"] if args.save and file.is_file() else []
    kept = [row for row in others if row["shape"] != args.shape]
    return sorted([*kept, *rows], key=lambda row: list(SHAPES).index(row["shape"]))


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether every command ended well, within its memory, and never silent for long."""
    over = [
        f"{row['shape']} {row['name']}"
        for row in rows
        if row["shape"] != "small" and row["weights"] > LIMITS.get(row["name"], float("inf"))
    ]
    failed = [f"{row['shape']} {row['name']}" for row in rows if row["code"] != 0]
    silences = [row["silence"] for row in rows if row["name"] != "source"]
    return {"over_memory": over, "failed": failed, "silence": max(silences, default=0.0)}


def measure(step: str, shape: str, root: Path, *, spread: float) -> Measured:
    """Run a step's command; what an export wrote is weighed and deleted."""
    out = root / step
    shutil.rmtree(out, ignore_errors=True)
    watched = watch(command(step, shape, root, out, spread=spread))
    weights = weights_size(root)
    measured = Measured(
        name=step,
        shape=shape,
        weights=watched.pop("peak") / weights,
        peak_gb=watched.pop("peak_gb"),
        written_gb=size_of(out) / 1e9,
        **watched,
    )
    if step not in ("source", "import"):
        shutil.rmtree(out, ignore_errors=True)
    return measured


def command(step: str, shape: str, root: Path, out: Path, *, spread: float) -> list[str]:
    """What a user would say; files that it needs are written here."""
    if step == "source":
        how = ["--shape", shape, "--spread", str(spread)]
        return [sys.executable, "-m", "benchmarks.lib.large_source", *how, str(out)]
    bundle, space, sound = str(root / "import"), root / "space.toml", root / "noise.wav"
    space.write_text(SPACE.format(corpus="none", bundle=bundle))
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(SECONDS * 16_000))
    soundfile.write(sound, samples, 16_000)
    export = ["export", bundle, "--out", str(out), "--to"]
    speech = str(SPEECH if SPEECH.is_dir() else sound)
    said = {
        "import": ["import", str(root / "source"), str(out)],
        "check": ["check", str(space)],
        "prune": ["prune", bundle, "--remove", "0.5", "--out", str(out)],
        "prune --audio": [
            *("prune", bundle, "--audio", speech, "--minutes", "10"),
            *("--remove", "0.3", "0.5", "0.7", "--out", str(out)),
        ],
        "bench": ["bench", bundle],
        "transcribe": ["transcribe", bundle, str(sound)],
        "int8": [*export, "onnx", "--int8"],
    }
    return [sys.executable, "-m", "sweep", *said.get(step, [*export, step])]


def watch(words: Sequence[str]) -> dict[str, Any]:
    """Run a command; its time, peak memory, longest silence, exit code and last error."""
    started = heard = time.monotonic()
    silence, peak, text = 0.0, 0, b""
    process = subprocess.Popen(  # noqa: S603 - our own commands
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            peak = max(peak, resident(process.pid))
            if not selector.select(0.05):
                continue
            said = os.read(process.stdout.fileno(), 1 << 16)
            silence, heard = max(silence, time.monotonic() - heard), time.monotonic()
            if not said:
                break
            text = (text + said)[-100_000:]
    code = process.wait()
    lines = text.decode(errors="replace").strip().splitlines()
    sys.stderr.write("".join(f"    {line}\n" for line in lines[-40:]))
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "stages": stage_seconds(lines, seconds),
        "silence": silence,
        "peak": peak,
        "peak_gb": peak / 1e9,
        "code": code,
        "error": "" if code == 0 else lines[-1] if lines else "",
    }


def stage_seconds(lines: Sequence[str], whole: float) -> dict[str, float]:
    """Seconds of each stage, from lines such as `removing 50 % of the FLOPs (136 s)`.

    Lines of progress, `measured 3 of 100 axes, ...`, belong to the stage that measures.
    """
    begins: dict[str, float] = {}
    for line in lines:
        if announced := re.fullmatch(r"(.*) \((\d+) s\)", line.strip()):
            title = "measuring" if announced[1].startswith("measur") else announced[1]
            begins.setdefault(title, float(announced[2]))
    ends = [*begins.values(), whole][1:]
    return {title: end - begin for (title, begin), end in zip(begins.items(), ends, strict=True)}


def resident(pid: int) -> int:
    """Bytes of memory of a process and all that it started."""
    total = 0
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
    except psutil.Error:
        return 0
    for each in family:
        try:
            total += each.memory_info().rss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


def weights_size(root: Path) -> int:
    return (root / "source" / "model.safetensors").stat().st_size


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
