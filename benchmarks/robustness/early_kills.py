"""SIGKILL of a whole process group at random moments of every command that writes.

A kill while a ledger, a database or a folder comes into being must cost nothing: the command again,
or `resume`, goes on, the sweep ends whole, and the next command empties the temporary directory.
Moments are uniform over the first 20 s of `run`, and over the whole length of the other commands.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlflow import MlflowClient

from benchmarks.lib.measurement import arguments, emit
from benchmarks.lib.tiny_spaces import EARLY_KILLS
from benchmarks.robustness.kills import ServerBed
from sweep.identity import identity
from sweep.ledger.ledger import Ledger
from sweep.tracking.mlflow_server import database_uri

PROGRAM = (sys.executable, "-P", "-m", "sweep")
RUN_SECONDS = 20.0
KILLS_A_SWEEP = 4
"""Of `run`, one after another, before the sweep may go to its end."""
PATIENCE_SECONDS = 900.0
ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "models" / "fastconformer-8x.nemo"
OVER, TAKEN = 0, 2
"""Exit codes: all is done; it was done before the kill, and what is there is not overwritten."""


@dataclass(kw_only=True, slots=True)
class Row:
    """What became of one command's kills."""

    name: str
    kills: int = 0
    failures: int = 0
    """Commands that did not go on afterwards, or left something undone."""
    leftovers: int = 0
    """Temporary files that were still there at the end."""
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Bench:
    """Where commands run, and what they begin with."""

    folder: Path
    base: Path
    """A finished sweep."""
    temporary: Path
    """The temporary directory of every command: its name is short, as paths of sockets are."""
    log: Path
    uri: str = ""
    """Of a served MLflow."""
    database: str = ""
    postgres: str = ""
    seconds: float = RUN_SECONDS
    """Of a command that runs trials: moments are uniform over its first ones."""
    archive: Path

    def start(self, *words: object) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(map(str, words))}\n".encode())
            log.flush()
            return subprocess.Popen(  # noqa: S603  (our own command)
                [*PROGRAM, *map(str, words)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def ended(self, *words: object) -> int:
        """A command's exit code when nobody hurts it."""
        return self.start(*words).wait(timeout=PATIENCE_SECONDS)

    def killed(self, seconds: float, *words: object) -> int | None:
        """Kill a command and all it started after so many seconds; its code if it ended before."""
        process = self.start(*words)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    def leftovers(self, *folders: Path) -> list[str]:
        """What the next command leaves in the temporary directory, and hidden in these folders."""
        self.ended("status", self.base)
        hidden = (path for folder in folders for path in folder.rglob(".*"))
        return [str(path) for path in (*self.temporary.iterdir(), *hidden)]


Case = Callable[[Bench, Path, random.Random, Row, int], None]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=100, help="kills, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help="of `run`, of a start")
    parser.add_argument("--dir", type=Path, required=True, help="goes on with what is there")
    parser.add_argument("--postgres", default="", help="address of a server; else without")
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="a .nemo file to import")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    rows = []
    with bench_in(args.dir.resolve(), args) as bench:
        shares = {kind: SHARES[kind] for kind in args.kinds}
        for kind, share in shares.items():
            is_postgres, is_import = kind == "run postgresql", kind == "import"
            if (is_postgres and not args.postgres) or (is_import and not args.archive.is_file()):
                continue
            count = max(1, round(args.n * share / sum(shares.values())))
            rows.append(campaign(bench, kind, count, args.seed))
            print(json.dumps(asdict(rows[-1])), flush=True)
    totals: dict[str, float] = {
        name: sum(getattr(row, name) for row in rows) for name in ("kills", "failures")
    }
    totals |= {"leftovers": sum(row.leftovers for row in rows), "seconds": args.seconds}
    plain = [
        {name: value for name, value in asdict(row).items() if name != "notes"} for row in rows
    ]
    emit("early_kills", plain, {**totals, "seed": args.seed}, args)
    sys.exit(bool(totals["failures"] or totals["leftovers"]))


@contextmanager
def bench_in(folder: Path, args: argparse.Namespace) -> Iterator[Bench]:
    """A finished sweep to begin with, and a served MLflow."""
    temporary = Path("/tmp") / f"k{os.getpid() % 1000}"  # noqa: S108  # short, and ours alone
    temporary.mkdir()
    (folder / "server").mkdir(exist_ok=True)
    server = ServerBed(folder / "server")
    bench = Bench(
        folder=folder,
        base=folder / "base",
        temporary=temporary,
        log=folder / "commands.log",
        uri=server.uri,
        database=server.database,
        postgres=args.postgres,
        seconds=args.seconds,
        archive=args.archive,
    )
    try:
        space = written_space(folder / "base.toml")
        assert bench.ended("run", space, "--dir", bench.base) == OVER, bench.log
        yield bench
    finally:
        server.stop()
        shutil.rmtree(temporary, ignore_errors=True)


def campaign(bench: Bench, kind: str, count: int, seed: int) -> Row:
    """So many kills of one kind; what an earlier run of the same seed has done is not repeated."""
    kept = bench.folder / f"{kind.replace(' ', '-')}-{seed}.json"
    row = Row(**json.loads(kept.read_text())) if kept.exists() else Row(name=kind)
    chance = random.Random(f"{seed} {kind} {row.kills}")  # noqa: S311
    for number in range(10 * count):
        if row.kills >= count:
            break
        place = bench.folder / f"{kind.replace(' ', '-')}-{seed}-{row.kills}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        CASES[kind](bench, place, chance, row, count - row.kills)
        if not row.notes or str(place) not in row.notes[-1]:
            shutil.rmtree(place)
        kept.write_text(json.dumps(asdict(row)))
    return row


# ---- what is killed, and what must be true afterwards ----


def run_of(ledger: str = "", *, is_served: bool = False) -> Case:
    """Kill `run` again and again, then let it go to its end."""

    def case(bench: Bench, place: Path, chance: random.Random, row: Row, wanted: int) -> None:
        uri = bench.uri if is_served else ""
        kind = bench.postgres if ledger == "postgresql" else ledger
        space = written_space(place / "space.toml", ledger=kind, uri=uri, name=place.name)
        folder = place / "sweep"
        if chance.random() < 0.75:  # the others make speech and teacher themselves
            for name in ("teacher", "features"):
                shutil.copytree(bench.base / name, folder / name)
        for _ in range(min(KILLS_A_SWEEP, wanted)):
            moment = chance.uniform(0, bench.seconds)
            code = bench.killed(moment, "run", space, "--dir", folder)
            if code is not None:
                expect(row, place, code == OVER, f"ended with {code} before {moment:.2f} s")
                break
            row.kills += 1
        code = bench.ended("run", space, "--dir", folder)
        expect(row, place, code == OVER, f"run ended with {code}")
        expect_whole(row, place, folder, bench.database if is_served else database_uri(folder))
        expect_clean(row, place, bench.leftovers(folder))

    return case


def command_of(*words: str, more: Callable[[Bench, Path], None] = lambda _, __: None) -> Case:
    """Kill a command that makes `OUT` of the finished sweep `BASE`, then give it again."""

    def case(bench: Bench, place: Path, chance: random.Random, row: Row, wanted: int) -> None:
        del wanted
        more(bench, place)
        names = {"BASE": str(bench.base), "OUT": str(place / "out"), "NAME": place.name}
        names |= {"ARCHIVE": str(bench.archive)}
        command = [_filled(word, names) for word in words]
        code = bench.killed(chance.uniform(0, length(bench, row.name, command)), *command)
        if code is not None:
            expect(row, place, code == OVER, f"ended with {code}")
            return
        row.kills += 1
        code = bench.ended(*command)
        expect(row, place, code in (OVER, TAKEN), f"again ended with {code}")
        is_there = "OUT" not in words or (place / "out").exists()
        expect(row, place, is_there, "again left nothing")
        expect_clean(row, place, bench.leftovers(place))

    return case


def sweep_of(*words: str, again: Sequence[str], trials: Sequence[int]) -> Case:
    """Kill a command that runs trials in a copy of the finished sweep, then go on as users do."""

    def case(bench: Bench, place: Path, chance: random.Random, row: Row, wanted: int) -> None:
        del wanted
        copy = place / "copy"
        shutil.copytree(bench.base, copy, symlinks=True)
        names = {"BASE": str(bench.base), "COPY": str(copy), "OUT": str(place / "out")}
        command = [_filled(word, names) for word in words]
        moment = chance.uniform(0, bench.seconds)
        code = bench.killed(moment, *command)
        if code is not None:
            expect(row, place, code == OVER, f"ended with {code} before {moment:.2f} s")
            return
        row.kills += 1
        is_made = (place / "out" / "sweep.toml").exists() or "OUT" not in words
        last = [_filled(word, names) for word in again] if is_made else command
        code = bench.ended(*last)
        expect(row, place, code == OVER, f"{last[0]} ended with {code}")
        folder = Path(names[again[1]]) if again[0] == "resume" else copy / "confirm"
        num = expect_whole(row, place, folder, database_uri(folder))
        expect(row, place, num in trials, f"{num} trials")
        expect_clean(row, place, bench.leftovers(place))

    return case


def expect(row: Row, place: Path, is_so: bool, what: str) -> None:  # noqa: FBT001
    if not is_so:
        row.failures += 1
        row.notes.append(f"{place}: {what}")


def expect_clean(row: Row, place: Path, left: Sequence[str]) -> None:
    """The next command has cleared what killed ones left, and leaves nothing itself."""
    row.leftovers += len(left)
    if left:
        row.notes.append(f"{place}: left {', '.join(left)}")


def expect_whole(row: Row, place: Path, folder: Path, uri: str) -> int:
    """Every trial ended once, with one run in MLflow, over; gives how many trials."""
    try:
        ledger = Ledger.open(folder)
        ledger.close()
    except ValueError as error:
        expect(row, place, False, str(error))  # noqa: FBT003
        return 0
    states = Counter(record.state for record in ledger.records())
    expect(row, place, set(states) == {"finished"}, f"trials are {dict(states)}")
    lines = (folder / "events.jsonl").read_text().splitlines()
    ends = Counter(e["trial"] for e in map(json.loads, lines) if e["event"] == "finished")
    expect(row, place, set(ends.values()) <= {1}, f"trials ended {dict(ends)}")
    client = MlflowClient(uri)
    places = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(places, f"tags.`sweep.id` = '{identity(folder)}'")
    numbers = Counter(run.data.tags.get("sweep.trial", "parent") for run in runs)
    wanted = {"parent": 1, **{str(record.number): 1 for record in ledger.records()}}
    expect(row, place, numbers == wanted, f"runs are {dict(numbers)}")
    statuses = {run.info.status for run in runs}
    expect(row, place, statuses == {"FINISHED"}, f"runs are {statuses}")
    return len(ledger)


# ---- what commands begin with ----


def written_space(file: Path, *, ledger: str = "", uri: str = "", name: str = "early") -> Path:
    text = EARLY_KILLS.format(
        ledger=f'ledger = "{ledger}"' if ledger else "",
        tracking=f'[tracking]\nuri = "{uri}"' if uri else "",
    )
    file.write_text(text.replace('name = "early"', f'name = "{name}"'))
    return file


_LENGTHS: dict[str, float] = {}


def length(bench: Bench, name: str, command: Sequence[str]) -> float:
    """Seconds that a command takes when nobody hurts it, measured once."""
    if name not in _LENGTHS:
        out = bench.folder / "unhurt"
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True) if out.is_file() else None
        began = time.monotonic()
        words = [str(out) if word.endswith("/out") else word for word in command]
        assert bench.ended(*words) == OVER, f"{words}; see {bench.log}"
        _LENGTHS[name] = time.monotonic() - began
        with suppress(OSError):
            out.unlink()
    return _LENGTHS[name]


def packed(bench: Bench, place: Path) -> None:
    del place
    if not (bench.folder / "packed.tar.gz").exists():
        assert bench.ended("pack", bench.base, bench.folder / "packed.tar.gz") == OVER
    shutil.rmtree(bench.folder / "unhurt", ignore_errors=True)


def _filled(word: str, names: dict[str, str]) -> str:
    name, _, rest = word.partition("/")
    return "/".join(filter(None, (names.get(name, name), rest)))


PROMOTE = ("promote", "BASE", "0", "--name", "NAME", "--alias", "best")
PRUNE = (
    *("prune", "BASE/teacher/model", "--audio", "BASE/features/demo/train", "--minutes", "1"),
    *("--remove", "0.3", "0.5", "0.7", "--out", "OUT"),
)
CASES: dict[str, Case] = {
    "run sqlite": run_of(),
    "run journal": run_of("journal"),
    "run postgresql": run_of("postgresql"),
    "run served": run_of(is_served=True),
    "export": command_of("export", "BASE", "0", "--to", "onnx", "--out", "OUT"),
    "pack": command_of("pack", "BASE", "OUT"),
    "unpack": command_of("unpack", "BASE/../packed.tar.gz", "OUT", more=packed),
    "import": command_of("import", "ARCHIVE", "OUT"),
    "promote": command_of(*PROMOTE),
    "prune": command_of(*PRUNE),
    "extend": sweep_of(
        *("extend", "COPY", "--trials", "1"), again=("resume", "COPY"), trials=(1, 2)
    ),
    "confirm": sweep_of(
        *("confirm", "COPY", "--seeds", "1"), again=("confirm", "COPY", "--seeds", "1"), trials=(1,)
    ),
    "warm-start": sweep_of(
        *("warm-start", "OUT", "--from", "COPY", "--trials", "1"),
        again=("resume", "OUT"),
        trials=(1,),
    ),
}
SHARES = {
    "run sqlite": 15,
    "run journal": 8,
    "run postgresql": 8,
    "run served": 9,
    "export": 10,
    "pack": 8,
    "unpack": 8,
    "import": 8,
    "promote": 10,
    "prune": 10,
    "extend": 5,
    "confirm": 5,
    "warm-start": 6,
}


if __name__ == "__main__":
    main()
