"""A Ray cluster of several nodes on this one machine, any but the first of which can be lost.

Each node is a `ray start --block` of its own, with an address of its own on the loopback and a
session of its own, so that all of a node dies at once, as when a machine loses its power.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

OBJECT_STORE_BYTES = 80 * 2**20
"""A little more than the least that Ray allows."""
START_SECONDS = 300.0
MOST_STARTS = 4
"""Ray gives up a node that takes thirty seconds, which happens on a busy machine."""
STARTED = "Ray runtime started"
WORKER = re.compile(r"ray::(?!IDLE|DashboardAgent|RuntimeEnvAgent)")

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    # A killed node refuses to answer, and is lost after three seconds; a slow one has ten.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    command: list[str]
    environment: dict[str, str]


@dataclass(kw_only=True, slots=True)
class LocalCluster:
    """Nodes by number; 0 is the head, without which the cluster ends."""

    address: str
    """The value of a driver's `--address`."""
    environment: Mapping[str, str]
    """Variables that a driver's environment must have: the cluster's token."""
    folder: Path
    """Folder of Ray's sessions and the nodes' logs."""
    processes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    """The nodes that live; each process leads the session of all others of its node."""
    starts: list[_Start] = field(default_factory=list)
    """Commands that started the nodes, by number."""

    def add_node(
        self,
        *,
        cpus: int = 1,
        labels: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a node, wait until it has joined, and return its number."""
        number = self.start_node(cpus=cpus, labels=labels, environment=environment)
        self.wait_for(number)
        return number

    def start_node(
        self,
        *,
        cpus: int = 1,
        labels: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a node without waiting for it; `environment` is this node's alone."""
        number = len(self.starts)
        command = [*_command(number, cpus=cpus, labels=labels or {}), *self._membership(number)]
        surroundings = {**os.environ, **SETTINGS, **self.environment, **(environment or {})}
        self.starts.append(_Start(command=command, environment=surroundings))
        self._start(number)
        return number

    def wait_for(self, number: int) -> None:
        """Wait until a node has joined.

        Raises:
            RuntimeError: if it does not, with its last output.
        """
        for _ in range(MOST_STARTS):
            give_up = time.monotonic() + START_SECONDS
            while time.monotonic() < give_up and self.processes[number].poll() is None:
                if STARTED in self._output(number):
                    return
                time.sleep(0.1)
            self._kill(number)
            self._start(number)
        raise RuntimeError(
            f"Node {number} must start, but does not: {self._output(number)[-2000:]}"
        )

    def _start(self, number: int) -> None:
        start = self.starts[number]
        with self._log(number).open("ab") as log:
            self.processes[number] = subprocess.Popen(  # noqa: S603  (our own command)
                start.command,
                env=start.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _output(self, number: int) -> str:
        return self._log(number).read_text(errors="replace")

    def kill_node(self, number: int) -> None:
        """Kill all processes of a node at once, as a loss of power would.

        Raises:
            ValueError: if it is the head, or does not live.
        """
        others = sorted(self.processes.keys() - {0})
        if number not in others:
            raise ValueError(f"`number` must be one of {others}, but is {number} instead.")
        self._kill(number)

    def workers(self) -> dict[int, str]:
        """Titles of busy processes: `ray::ImplicitFunc.train` a trial, `ray::_Rank.run` a rank."""
        leaders = [process.pid for process in self.processes.values()]
        titles = {pid: _title(pid) for leader in leaders for pid in _session_processes(leader)}
        return {pid: title for pid, title in titles.items() if WORKER.match(title)}

    def stop(self) -> None:
        for number in sorted(self.processes, reverse=True):
            self._kill(number)

    def _kill(self, number: int) -> None:
        process = self.processes.pop(number)
        while alive := _session_processes(
            process.pid
        ):  # what one forked meanwhile is seen the next time
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.01)
        process.wait()

    def _membership(self, number: int) -> list[str]:
        # Each node has a folder of its own for the files that Ray unpacks: machines share none.
        own = ["--temp-dir", str(self.folder / str(number))]
        if number:
            return ["--address", self.address, *own]
        port = self.address.rpartition(":")[2]
        return ["--head", "--port", port, "--include-dashboard", "false", *own]

    def _log(self, number: int) -> Path:
        return self.folder / f"node-{number}.log"


@contextmanager
def local_cluster(
    *, nodes: int = 3, cpus: int = 1, head_cpus: int | None = None
) -> Iterator[LocalCluster]:
    """Start nodes, each with so many logical cores; they share this machine's real ones.

    Drivers join at the head, which cannot be lost; with `head_cpus = 0` no trial runs there.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: paths of sockets
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # a Ray of our own has set "0"
    }
    cluster = LocalCluster(
        address=f"{node_address(0)}:{_free_port()}", environment=environment, folder=folder
    )
    try:
        cluster.add_node(cpus=cpus if head_cpus is None else head_cpus)
        for number in [cluster.start_node(cpus=cpus) for _ in range(1, nodes)]:
            cluster.wait_for(number)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def node_address(number: int) -> str:
    """A node's loopback address: any of 127/8 works on Linux; Ray treats 127.0.0.1 specially."""
    high, low = divmod(number + 2, 250)
    return f"127.0.{high}.{low + 1}"


def _command(number: int, *, cpus: int, labels: Mapping[str, str]) -> list[str]:
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *("--node-ip-address", node_address(number)),
        *("--num-cpus", str(cpus), "--num-gpus", "0"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
        *(("--labels", ",".join(f"{k}={v}" for k, v in labels.items())) if labels else ()),
    ]


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _session_processes(leader: int) -> list[int]:
    """The processes of a session that still run; its id is the sixth field of their `stat`."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # A name may hold spaces and brackets; what follows its last bracket does not.
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                pids.append(int(entry.name))
    return pids


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
