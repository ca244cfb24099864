"""Random kills over small sweeps: of the driver, of workers, of nodes, of the tracking server.

Whatever dies when: every trial ends once, has one MLflow run that is not left running and whose
steps only rise, finds what it finds in an unbroken sweep, and loses one checkpoint interval at
most. All by SIGKILL; outcomes are compared with those of a sweep of the same seed that nobody hurt.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.audit import FAULTS, Faults, audited
from benchmarks.lib.measurement import RESULTS, arguments, emit
from sweep.config.sweep import create, load
from sweep.run import driver
from sweep.tracking.mlflow_server import database_uri
from tests.support.lossy_cluster import LocalCluster, local_cluster

INTERVAL = 10
"""Steps between checkpoints, and between reports."""
SPACE = """
[sweep]
name = "kills"
trials = 5
seed = 3

[search]
sampler = "qmc"

[resources]
cpus = 1

[trial.corpus]
tokens = "word"
vocabulary = 64

[trial.corpus.demo]
train_utterances = {train}
dev_utterances = {held_out}
test_utterances = {held_out}

[trial.model]
{model}

[trial.teacher]
steps = 20

[trial.pruning]
target_sparsity = {{ uniform = [0.2, 0.8] }}
steps = 30

[trial.pruning.l0]
lambda_lr = {{ log_uniform = [0.03, 0.3] }}

[trial.tuning]
steps = 50

[trial.training]
batch_seconds = 15.0

[trial.evaluation]
bootstrap_samples = 100
latency_repeats = 1

[trial.runtime]
report_steps = {interval}
checkpoint_steps = {interval}
"""
SIZES = {
    "tiny": {"train": 200, "held_out": 40, "model": 'size = "tiny"'},
    "least": {
        "train": 40,
        "held_out": 8,
        "model": "blocks = 1\nwidth = 16\ninner = 32\nheads = 2\nchannels = 16\nkernel = 7",
    },
}
"""Of models and corpora; `least` is what the test suite has time for."""

SPACE_FILE = "space.toml"
SHARES = {"driver": 2, "worker": 2, "node": 1, "server": 1}
"""Of all kills, in sixths."""
KILLS_A_SWEEP = 5
NODES = 3
PATIENCE_SECONDS = 600.0
"""A sweep that takes longer after its last kill, or until its first trial, hangs."""
EARLY = 0.2
"""So many kills come while a driver still starts; the others while trials run."""
START_SECONDS = 15.0
"""About what a driver takes from its start to its first trial."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=60, help="kills, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--add", action="store_true", help="to the kept rows of other kinds")
    parser.add_argument("--size", default="tiny", choices=list(SIZES))
    parser.add_argument("--dir", type=Path, help="keep the sweeps there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        rows = campaigns(args, (args.dir or Path(scratch)).resolve())
    if args.add:
        rows += [row for row in kept_rows() if row["name"] not in args.kinds]
        rows.sort(key=lambda row: list(SHARES).index(row["name"]))
    totals = {name: sum(row[name] for row in rows) for name in list(rows[0])[1:]}
    values = {**totals, "seed": args.seed, "interval_steps": INTERVAL}
    emit("kills", rows, values, args)
    sys.exit(any(totals[field.name] for field in FAULTS))


def kept_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / "kills.json").read_text())["rows"]
    return rows


def campaigns(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    text = SPACE.format(**SIZES[args.size], interval=INTERVAL)
    unbroken = begun(folder / "unbroken", text)
    with running(unbroken, Bed()) as process:
        assert process.wait() == driver.DONE, "the sweep must end when nobody hurts it"
    rows = []
    for kind in args.kinds:
        count = max(1, round(args.n * SHARES[kind] / sum(SHARES.values())))
        rows.append(campaign(kind, count, unbroken, random.Random(f"{args.seed} {kind}")))  # noqa: S311
        print(json.dumps(rows[-1]), flush=True)
    return rows


def campaign(kind: str, count: int, unbroken: Path, chance: random.Random) -> dict[str, Any]:
    """So many kills of a kind, over as many sweeps as they need."""
    kills = sweeps = 0
    text = (unbroken / SPACE_FILE).read_text()
    faults = Faults()
    with ExitStack() as stack:
        bed = stack.enter_context(BEDS[kind](unbroken.parent / f"{kind}-bed"))
        while kills < count:
            folder = begun(unbroken.parent / f"{kind}-{sweeps}", text, unbroken, uri=bed.uri)
            wanted = min(KILLS_A_SWEEP, count - kills)
            made, code = hurt(folder, bed, wanted, chance)
            kills, sweeps = kills + made, sweeps + 1
            faults += audited(
                folder, unbroken, uri=bed.database or database_uri(folder), interval=INTERVAL
            )
            faults.lost += code != driver.DONE
    return {"name": kind, "kills": kills, "sweeps": sweeps, **asdict(faults)}


def begun(folder: Path, text: str, like: Path | None = None, *, uri: str = "") -> Path:
    """A sweep's directory, with the speech and the teacher of another."""
    folder.mkdir(parents=True)
    space = folder / SPACE_FILE
    space.write_text(text + (f'\n[tracking]\nuri = "{uri}"\n' if uri else ""))
    create(folder, load(str(space)), space.read_text())
    if like:
        for name in ("teacher", "features"):
            shutil.copytree(like / name, folder / name)
    return folder


# ---- what is hurt, and how ----


class Bed:
    """Where sweeps run and what dies there: at first the driver itself."""

    address: str | None = None
    environment: Mapping[str, str] = {}  # nobody changes it
    """What a driver needs beside its own, to get in."""
    uri = ""
    """Of the tracking server, if there is one."""
    database = ""
    """Where the server keeps its runs."""
    pause = (0.0, 8.0)
    """Seconds of running trials until the next kill."""

    def kill(self, process: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
        """Kill one of what is to be killed; False if there is none at the moment."""
        del chance
        process.kill()
        process.wait()
        return True

    def mend(self, chance: random.Random) -> None:
        """Put right what a kill broke and the program cannot."""


class WorkerBed(Bed):
    """Processes that run a trial die; each driver has a Ray of its own."""

    pause = (1.0, 6.0)

    def kill(self, process: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [each for each in family if _is_trial(each)]
        if not workers:
            return False
        chance.choice(workers).kill()
        return True


class NodeBed(Bed):
    """Whole nodes of a cluster of three die, and others come."""

    pause = (3.0, 12.0)

    def __init__(self, cluster: LocalCluster) -> None:
        self.address = cluster.address
        self.environment = cluster.environment
        self._cluster = cluster

    def kill(self, process: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
        del process
        # Without the head, 0, there is no cluster to lose a node of.
        self._cluster.kill_node(chance.choice(sorted(self._cluster.processes.keys() - {0})))
        return True

    def mend(self, chance: random.Random) -> None:
        time.sleep(chance.uniform(0, 4))
        self._cluster.add_node()


class ServerBed(Bed):
    """The MLflow server dies, and comes back on the same port."""

    pause = (2.0, 8.0)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.database = f"sqlite:///{folder}/mlflow.db"
        self.start()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self._port), "--workers", "1"),
            *("--backend-store-uri", self.database),
            *("--artifacts-destination", str(self._folder / "artifacts")),
        ]
        # Eight more processes otherwise, which serve chat applications.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own command)
                command, stdout=log, stderr=log, env=environment
            )
        _wait(self._is_up, "the MLflow server")

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):  # noqa: S310
                return True
        except OSError:
            return False

    def kill(self, process: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
        del process, chance
        self.stop()
        return True

    def mend(self, chance: random.Random) -> None:
        time.sleep(chance.uniform(0, 5))
        self.start()

    def stop(self) -> None:
        for each in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
            each.kill()
        self._process.wait()


@contextmanager
def driver_bed(_: Path) -> Iterator[Bed]:
    yield Bed()


@contextmanager
def worker_bed(_: Path) -> Iterator[Bed]:
    yield WorkerBed()


@contextmanager
def node_bed(_: Path) -> Iterator[Bed]:
    with local_cluster(nodes=NODES) as cluster:
        yield NodeBed(cluster)


@contextmanager
def server_bed(folder: Path) -> Iterator[Bed]:
    folder.mkdir()
    bed = ServerBed(folder)
    try:
        yield bed
    finally:
        bed.stop()


BEDS = {"driver": driver_bed, "worker": worker_bed, "node": node_bed, "server": server_bed}


def hurt(folder: Path, bed: Bed, wanted: int, chance: random.Random) -> tuple[int, int]:
    """Run a sweep to its end through so many kills, or fewer if it ends before; also its code."""
    kills = 0
    while True:
        with running(folder, bed) as process:
            while kills < wanted and _lives_on(process, folder, bed, chance):
                if bed.kill(process, chance):
                    kills += 1
                    bed.mend(chance)
            if process.poll() != -signal.SIGKILL:
                return kills, process.wait(timeout=PATIENCE_SECONDS)


def _lives_on(
    process: "subprocess.Popen[bytes]", folder: Path, bed: Bed, chance: random.Random
) -> bool:
    """Let a driver come to a random moment, mostly among its trials; False if it is over."""
    if chance.random() < EARLY:
        return not _ends(process, chance.uniform(0, START_SECONDS))
    began = psutil.Process(process.pid).create_time() if process.poll() is None else 0.0
    _wait(
        lambda: process.poll() is not None or _has_started_trials(folder, began),
        "a trial under way",
        seconds=PATIENCE_SECONDS,
    )
    return not _ends(process, chance.uniform(*bed.pause))


def _has_started_trials(folder: Path, since: float) -> bool:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return any(e["event"] == "started" and e["time"] > since for e in events)


@contextmanager
def running(folder: Path, bed: Bed) -> Iterator["subprocess.Popen[bytes]"]:
    """A driver of the sweep, in a process of its own."""
    command = [sys.executable, "-P", "-m", "sweep", "resume", str(folder)]
    command += ["--address", bed.address] if bed.address else []
    environment = {**os.environ, **bed.environment}
    with (folder / "driver.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _ends(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether a process is over within so many seconds."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_trial(process: psutil.Process) -> bool:
    """Ray names a worker by what it runs; its own agents bear such names, too."""
    try:
        return process.name().startswith("ray::ImplicitFunc")
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(is_so: Callable[[], bool], what: str, *, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what} must be there within {seconds:g} s"
        time.sleep(0.2)


if __name__ == "__main__":
    main()
