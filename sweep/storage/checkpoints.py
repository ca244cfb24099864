"""What a worker fetches before a trial, and sends before a report of it goes out.

On each machine a trial works in folders of the same names, which may be empty or the driver's own:
whatever is there already is not fetched. A checkpoint counts in the store once its checksum lies
beside it, which is sent last.
"""

import fcntl
import json
import logging
import shutil
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from core.report import Report
from sweep.storage.object_store import (
    RefusedError,
    Remote,
    StoreError,
    digest,
    local_path,
    patiently,
)
from sweep.storage.working_copy import NOTES

T = TypeVar("T")

SHARED = "shared.json"
"""In the store: what teacher and features consist of, with checksums, once they are whole there."""
STATE, CHECKSUM = "state.pt", "sha256"
"""A checkpoint."""
KEPT = 2
BEGUN, DONE, LOCK = "begun", "outcomes.json", "lock"
WATCH_SECONDS = 2.0
"""So often is looked for checkpoints between reports."""
REPORT_SECONDS = 60.0
"""So long a report waits for a store that is away; then the trial goes on and tries later."""
PATIENCE_SECONDS = 600.0
"""So long is waited for what a trial cannot do without, and for its end to arrive."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteState:
    """The address of a trial's state in an object store, and which trial has its number."""

    address: str
    digest: str = ""
    """Of the parameters: if the ledger was lost, another trial may have got the same number."""


def params_digest(params: Mapping[str, Any]) -> str:
    """A digest that tells trials of the same number apart by their parameters."""
    return sha256(json.dumps(dict(params), sort_keys=True).encode()).hexdigest()


def as_plain(luggage: RemoteState | None) -> dict[str, str] | None:
    """As plain values."""
    return asdict(luggage) if luggage is not None else None


def run_with_remote_state(
    trial: Generator[Report, None, T], luggage: RemoteState | None, *, folder: Path, sweep: Path
) -> Generator[Report, None, T]:
    """The same trial, from what the store has of it, and with nothing reported that it has not.

    Args:
        trial: not yet begun.
        luggage: None where the sweep's directory is no copy.
        folder: the trial's own.
        sweep: the sweep's.

    Raises:
        StoreError: if the store was away too long for the trial to begin or to end.
    """
    if luggage is None:
        return (yield from trial)
    fetch_shared_state(luggage, sweep=sweep)
    remote = Remote(luggage.address)
    state = State(remote, folder, folder.relative_to(sweep).as_posix())
    patiently(lambda: state.fetch(luggage.digest), seconds=PATIENCE_SECONDS)
    result = yield from _sent(trial, state)
    patiently(state.finish, seconds=PATIENCE_SECONDS)
    return result


def fetch_shared_state(luggage: RemoteState | None, *, sweep: Path) -> None:
    """Have on this machine what all trials share; a further rank of a trial needs no more.

    Raises:
        StoreError: if the store was away too long.
    """
    if luggage is not None:
        remote = Remote(luggage.address)
        patiently(lambda: fetch_shared(remote, sweep), seconds=PATIENCE_SECONDS)


def prepare_with_remote_state(
    reports: Iterable[Report], luggage: RemoteState | None, *, sweep: Path
) -> Iterator[Report]:
    """Teacher and features likewise: fetched if they are there, sent once they are made."""
    if luggage is None:
        yield from reports
        return
    fetch_shared_state(luggage, sweep=sweep)
    remote = Remote(luggage.address)
    state = State(remote, sweep / "teacher", "teacher")
    patiently(state.fetch_checkpoint, seconds=PATIENCE_SECONDS)
    yield from _sent(_as_generator(reports), state)
    patiently(lambda: send_shared(remote, sweep), seconds=PATIENCE_SECONDS)


def _as_generator(reports: Iterable[Report]) -> Generator[Report, None, None]:
    yield from reports


def _sent(trial: Generator[Report, None, T], state: "State") -> Generator[Report, None, T]:
    with state.watched():
        while True:
            try:
                report = next(trial)
            except StopIteration as end:
                result: T = end.value
                return result
            with suppress(StoreError):
                patiently(state.send_checkpoint, seconds=REPORT_SECONDS)
            yield report


class State:
    """A folder with checkpoints, and what the store has of it.

    Args:
        remote: the sweep's.
        folder: the trial's, on this machine.
        key: the trial's, in the store.
    """

    def __init__(self, remote: Remote, folder: Path, key: str) -> None:
        self._remote, self._folder, self._key = remote, folder, key
        self._one_at_a_time = threading.Lock()
        self._sent = -1

    def fetch(self, sign: str) -> None:
        """Have here what the store has of this trial, and nothing of another of its number."""
        self._begin(sign)
        found = self._remote.read(f"{self._key}/{DONE}")
        here = self._folder / DONE
        had = _steps_of(here.read_bytes()) if here.is_file() else -1
        if found is not None and _steps_of(found.data) > had:  # else it was not tuned on elsewhere
            there = self._remote.under(self._key)
            own = [key for key in there if not self._is_of_checkpoints(key)]
            for key in sorted(own, key=lambda key: key.endswith(f"/{DONE}")):
                inside = key.removeprefix(f"{self._key}/")
                self._remote.download(key, local_path(self._folder, inside))
        self.fetch_checkpoint()

    def fetch_checkpoint(self) -> None:
        """Have here the newest whole checkpoint of the store, unless there is a newer one."""
        newest = max(_steps_here(self._folder), default=-1)
        for step in sorted(self._steps_there(), reverse=True):
            if step <= newest:
                return
            with suppress(_DamagedError):
                self._fetch_step(step)
                return

    def send_checkpoint(self) -> None:
        """Have the newest checkpoint in the store, and no more than a few."""
        with self._one_at_a_time:
            step = max(_steps_here(self._folder), default=-1)
            if step <= self._sent:
                return
            here, there = _of_step(self._folder, step), f"{self._key}/checkpoints/{step:09d}"
            try:
                checksum = (here / CHECKSUM).read_bytes()
                if self._remote.read(f"{there}/{CHECKSUM}") is None:
                    self._remote.upload(here / STATE, f"{there}/{STATE}")
                    self._remote.write(f"{there}/{CHECKSUM}", checksum)
            except OSError:
                if not here.exists():  # newer ones have replaced it meanwhile
                    return
                raise
            self._sent = step
            self._delete_old()

    def finish(self) -> None:
        """Have what the trial leaves in the store, its outcomes last."""
        own = [path for path in self._folder.rglob("*") if path.is_file() and self._is_left(path)]
        for path in sorted(own, key=lambda path: path.name == DONE):
            self._remote.upload(path, self._key_of(path))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Send checkpoints that are written between reports, too, beside the training."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(WATCH_SECONDS):
                try:
                    self.send_checkpoint()
                except OSError as error:
                    logger.warning("Tried again later: %s", error)

        thread = threading.Thread(target=watch, name="store-checkpoints", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _begin(self, sign: str) -> None:
        here, there = self._folder / BEGUN, f"{self._key}/{BEGUN}"
        if not here.is_file() or here.read_text(encoding="ascii") != sign:
            for path in self._folder.iterdir() if self._folder.is_dir() else ():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        found = self._remote.read(there)
        if found is None or found.data.decode() != sign:
            old = self._remote.under(self._key)
            last = (f"/{DONE}", f"/{CHECKSUM}")  # by which the rest counts
            self._remote.delete(*sorted(old, key=lambda key: not key.endswith(last)))
            self._remote.write(there, sign.encode())
        self._folder.mkdir(parents=True, exist_ok=True)
        here.write_text(sign, encoding="ascii")

    def _fetch_step(self, step: int) -> None:
        there, final = f"{self._key}/checkpoints/{step:09d}", _of_step(self._folder, step)
        beside = final.with_name(f".{final.name}.fetched")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            self._remote.download(f"{there}/{CHECKSUM}", beside / CHECKSUM)
            self._remote.download(f"{there}/{STATE}", beside / STATE)
            if digest(beside / STATE) != (beside / CHECKSUM).read_text(encoding="ascii"):
                raise _DamagedError
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _steps_there(self) -> list[int]:
        found = self._remote.under(f"{self._key}/checkpoints")
        parts = (key.split("/")[-2:] for key in found)
        return sorted(int(step) for step, name in parts if name == CHECKSUM and step.isdigit())

    def _delete_old(self) -> None:
        for step in self._steps_there()[:-KEPT]:
            there = f"{self._key}/checkpoints/{step:09d}"
            self._remote.delete(f"{there}/{CHECKSUM}", f"{there}/{STATE}")

    def _is_of_checkpoints(self, key: str) -> bool:
        return key.startswith(f"{self._key}/checkpoints/") or key == f"{self._key}/{BEGUN}"

    def _is_left(self, path: Path) -> bool:
        parts = path.relative_to(self._folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        return not is_hidden and parts[0] not in ("checkpoints", BEGUN, LOCK)

    def _key_of(self, path: Path) -> str:
        return f"{self._key}/{path.relative_to(self._folder).as_posix()}"


class _DamagedError(ValueError):
    """A checkpoint whose checksum does not hold."""


def fetch_shared(remote: Remote, sweep: Path) -> None:
    """Have teacher and features on this machine, if they are in the store; once a machine."""
    found = remote.read(SHARED)
    if found is None:
        return
    note = sweep / NOTES / SHARED
    with _alone(note):
        had = _noted(note)
        for key, checksum in _checksums(found.data).items():
            place = local_path(sweep, key)
            if had.get(key) != checksum or not place.is_file():
                remote.download(key, place, sha256=checksum)
        note.write_bytes(found.data)


def send_shared(remote: Remote, sweep: Path) -> None:
    """Have teacher and features in the store."""
    note = sweep / NOTES / SHARED
    with _alone(note):
        found = remote.read(SHARED)
        there = _checksums(found.data) if found else {}
        here = {path.relative_to(sweep).as_posix(): digest(path) for path in _shared_files(sweep)}
        for key, checksum in here.items():
            if there.get(key) != checksum:
                remote.upload(sweep / key, key)
        text = json.dumps(here).encode()
        if here != there:
            remote.write(SHARED, text)
        note.write_bytes(text)


def _shared_files(sweep: Path) -> Iterator[Path]:
    for name in ("features", "teacher/model", "teacher/latency"):
        for path in sorted((sweep / name).rglob("*")):
            parts = path.relative_to(sweep / name).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                yield path


def _steps_of(outcomes: bytes) -> int:
    """Optimizer steps after which a trial was judged last."""
    told: list[dict[str, Any]] = json.loads(outcomes)
    return max(int(outcome["steps"]) for outcome in told)


def _checksums(data: bytes) -> dict[str, str]:
    """Checksums of objects by name, as a store has them.

    Raises:
        RefusedError: if it is something else.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise RefusedError(f"`{SHARED}` of the store must hold checksums by name, but does not.")
    return found


def _noted(note: Path) -> dict[str, str]:
    try:
        return _checksums(note.read_bytes())
    except (FileNotFoundError, RefusedError):
        return {}


@contextmanager
def _alone(note: Path) -> Iterator[None]:
    """One worker of a machine at a time; the others find what it fetched."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.with_suffix(".lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _steps_here(folder: Path) -> list[int]:
    """What a kill left half written starts with a dot."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return []
    return [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]


def _of_step(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:09d}"
