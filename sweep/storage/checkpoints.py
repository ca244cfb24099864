"""A trial's state in an object store: fetched before it starts, sent before a report goes out.

On each machine a trial works in folders of the same names, which may be empty or the driver's own:
files that are there already are not fetched. A checkpoint in the store is complete once it has its
checksum, which is sent last.
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
from sweep.storage.addresses import COPY_FOLDER
from sweep.storage.object_store import (
    RefusedError,
    Remote,
    StoreError,
    digest,
    local_path,
    retry_while_away,
)

T = TypeVar("T")

SHARED = "shared.json"
"""Checksums of all files of teacher and features; written once they are complete."""
STATE, CHECKSUM = "state.pt", "sha256"
"""Files of a checkpoint."""
MAX_CHECKPOINTS = 2
PARAMS_DIGEST, DONE, LOCK = "begun", "outcomes.json", "lock"
WATCH_SECONDS = 2.0
"""Time between two looks for new checkpoints between reports."""
REPORT_SECONDS = 60.0
"""A report waits so long for a store that is away; then the trial goes on and tries later."""
PATIENCE_SECONDS = 600.0
"""A trial waits so long for the files that it needs, and at its end for the store."""

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


def as_plain(remote_state: RemoteState | None) -> dict[str, str] | None:
    """The remote state as plain values for JSON."""
    return asdict(remote_state) if remote_state is not None else None


def run_with_remote_state(
    trial: Generator[Report, None, T],
    remote_state: RemoteState | None,
    *,
    folder: Path,
    sweep: Path,
) -> Generator[Report, None, T]:
    """Run a trial from its state in the store, and send that state before each report.

    Args:
        trial: not yet started.
        remote_state: None if the sweep's directory is no working copy.
        folder: the trial's own.
        sweep: the sweep's.

    Raises:
        StoreError: if the store was away too long for the trial to begin or to end.
    """
    if remote_state is None:
        return (yield from trial)
    fetch_shared_state(remote_state, sweep=sweep)
    remote = Remote(remote_state.address)
    # Its key in the store is its path in the sweep: trials/0007 here is trials/0007 there.
    state = State(remote, folder, folder.relative_to(sweep).as_posix())
    retry_while_away(lambda: state.fetch(remote_state.digest), seconds=PATIENCE_SECONDS)
    # The results go last: a trial is over for all machines only when its outcomes are in the store.
    result = yield from _run_and_send(trial, state)
    retry_while_away(state.finish, seconds=PATIENCE_SECONDS)
    return result


def fetch_shared_state(remote_state: RemoteState | None, *, sweep: Path) -> None:
    """Fetch the files that all trials share; a further rank of a trial needs no others.

    Raises:
        StoreError: if the store was away too long.
    """
    if remote_state is not None:
        remote = Remote(remote_state.address)
        retry_while_away(lambda: fetch_shared(remote, sweep), seconds=PATIENCE_SECONDS)


def prepare_with_remote_state(
    reports: Iterable[Report], remote_state: RemoteState | None, *, sweep: Path
) -> Iterator[Report]:
    """Prepare teacher and features; they are fetched if the store has them, and sent once ready."""
    if remote_state is None:
        yield from reports
        return
    fetch_shared_state(remote_state, sweep=sweep)
    remote = Remote(remote_state.address)
    state = State(remote, sweep / "teacher", "teacher")
    retry_while_away(state.fetch_checkpoint, seconds=PATIENCE_SECONDS)
    yield from _run_and_send(_as_generator(reports), state)
    retry_while_away(lambda: send_shared(remote, sweep), seconds=PATIENCE_SECONDS)


def _as_generator(reports: Iterable[Report]) -> Generator[Report, None, None]:
    yield from reports


def _run_and_send(trial: Generator[Report, None, T], state: "State") -> Generator[Report, None, T]:
    with state.send_in_background():
        while True:
            try:
                # By hand instead of `yield from`, because the checkpoint must be sent between the
                # trial's report and its yield: what the driver knows to be done is in the store,
                # and no other machine repeats it.
                report = next(trial)
            except StopIteration as end:
                result: T = end.value
                return result
            # A store that is away for a minute stops no trial; the thread sends the checkpoint
            # later.
            with suppress(StoreError):
                retry_while_away(state.send_checkpoint, seconds=REPORT_SECONDS)
            yield report


class State:
    """A folder with checkpoints, synchronized with the store.

    Args:
        remote: the sweep's.
        folder: the trial's, on this machine.
        key: the trial's, in the store.
    """

    def __init__(self, remote: Remote, folder: Path, key: str) -> None:
        self._remote, self._folder, self._key = remote, folder, key
        self._one_at_a_time = threading.Lock()
        self._run_and_send = -1

    def fetch(self, trial_digest: str) -> None:
        """Fetch the trial's files, and remove those of another trial of its number.

        Args:
            trial_digest: of the trial's parameters.
        """
        self._begin(trial_digest)
        outcomes = self._remote.read(f"{self._key}/{DONE}")
        here = self._folder / DONE
        local_steps = _steps_of(here.read_bytes()) if here.is_file() else -1
        # A trial that was tuned further on another machine has older outcomes here: those of 1000
        # steps, and the store those of 1500.
        if outcomes is not None and _steps_of(outcomes.data) > local_steps:
            stored = self._remote.under(self._key)
            own = [key for key in stored if not self._is_of_checkpoints(key)]
            # False sorts before True: the outcomes come last, so that a kill leaves none without
            # its files.
            for key in sorted(own, key=lambda key: key.endswith(f"/{DONE}")):
                inside = key.removeprefix(f"{self._key}/")
                self._remote.download(key, local_path(self._folder, inside))
        self.fetch_checkpoint()

    def fetch_checkpoint(self) -> None:
        """Fetch the store's newest complete checkpoint, unless there is a newer one here."""
        newest = max(_local_steps(self._folder), default=-1)
        # A damaged checkpoint is passed over, and the one before is tried.
        for step in sorted(self._stored_steps(), reverse=True):
            if step <= newest:
                return
            with suppress(_DamagedError):
                self._fetch_step(step)
                return

    def send_checkpoint(self) -> None:
        """Send the newest checkpoint, and delete all but the last few in the store."""
        with self._one_at_a_time:
            step = max(_local_steps(self._folder), default=-1)
            if step <= self._run_and_send:
                return
            here, there = _step_folder(self._folder, step), f"{self._key}/checkpoints/{step:09d}"
            try:
                checksum = (here / CHECKSUM).read_bytes()
                # The checksum is written last, so that one in the store means that the state is
                # there as a whole.
                if self._remote.read(f"{there}/{CHECKSUM}") is None:
                    self._remote.upload(here / STATE, f"{there}/{STATE}")
                    self._remote.write(f"{there}/{CHECKSUM}", checksum)
            except OSError:
                if not here.exists():  # newer ones have replaced it meanwhile
                    return
                raise
            self._run_and_send = step
            self._delete_old()

    def finish(self) -> None:
        """Send the trial's results, its outcomes last."""
        own = [path for path in self._folder.rglob("*") if path.is_file() and self._is_left(path)]
        for path in sorted(own, key=lambda path: path.name == DONE):
            self._remote.upload(path, self._key_of(path))

    @contextmanager
    def send_in_background(self) -> Iterator[None]:
        """Also send checkpoints that are written between reports, in a thread."""
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

    def _begin(self, trial_digest: str) -> None:
        """Remove the files of another trial, here and in the store, and write this one's digest."""
        here, there = self._folder / PARAMS_DIGEST, f"{self._key}/{PARAMS_DIGEST}"
        if not here.is_file() or here.read_text(encoding="ascii") != trial_digest:
            for path in self._folder.iterdir() if self._folder.is_dir() else ():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        stored = self._remote.read(there)
        if stored is None or stored.data.decode() != trial_digest:
            old = self._remote.under(self._key)
            # Deleted in this order, a kill leaves files that nobody takes for outcomes or a
            # checkpoint.
            first = (f"/{DONE}", f"/{CHECKSUM}")  # without these the other files do not count
            self._remote.delete(*sorted(old, key=lambda key: not key.endswith(first)))
            self._remote.write(there, trial_digest.encode())
        self._folder.mkdir(parents=True, exist_ok=True)
        here.write_text(trial_digest, encoding="ascii")

    def _fetch_step(self, step: int) -> None:
        there, final = f"{self._key}/checkpoints/{step:09d}", _step_folder(self._folder, step)
        # ".000000300.fetched" is no number, so `_local_steps` does not see it before it is
        # complete.
        tmp_path = final.with_name(f".{final.name}.fetched")
        shutil.rmtree(tmp_path, ignore_errors=True)
        try:
            self._remote.download(f"{there}/{CHECKSUM}", tmp_path / CHECKSUM)
            self._remote.download(f"{there}/{STATE}", tmp_path / STATE)
            if digest(tmp_path / STATE) != (tmp_path / CHECKSUM).read_text(encoding="ascii"):
                raise _DamagedError
            tmp_path.rename(final)
        finally:
            shutil.rmtree(tmp_path, ignore_errors=True)

    def _stored_steps(self) -> list[int]:
        keys = self._remote.under(f"{self._key}/checkpoints")
        # "trials/0007/checkpoints/000000300/sha256" -> ["000000300", "sha256"] -> 300.
        parts = (key.split("/")[-2:] for key in keys)
        return sorted(int(step) for step, name in parts if name == CHECKSUM and step.isdigit())

    def _delete_old(self) -> None:
        for step in self._stored_steps()[:-MAX_CHECKPOINTS]:
            there = f"{self._key}/checkpoints/{step:09d}"
            # The checksum goes first: half deleted, the checkpoint is incomplete and not damaged.
            self._remote.delete(f"{there}/{CHECKSUM}", f"{there}/{STATE}")

    def _is_of_checkpoints(self, key: str) -> bool:
        return key.startswith(f"{self._key}/checkpoints/") or key == f"{self._key}/{PARAMS_DIGEST}"

    def _is_left(self, path: Path) -> bool:
        parts = path.relative_to(self._folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        return not is_hidden and parts[0] not in ("checkpoints", PARAMS_DIGEST, LOCK)

    def _key_of(self, path: Path) -> str:
        return f"{self._key}/{path.relative_to(self._folder).as_posix()}"


class _DamagedError(ValueError):
    """A checkpoint that does not match its checksum."""


def fetch_shared(remote: Remote, sweep: Path) -> None:
    """Fetch teacher and features if the store has them; once a machine."""
    stored = remote.read(SHARED)
    if stored is None:
        return
    note = sweep / COPY_FOLDER / SHARED
    with _hold_lock(note):
        # The note holds what was fetched or sent last. Comparing it with the store's saves a digest
        # of all features at the start of each trial.
        fetched = _read_note(note)
        for key, checksum in _checksums(stored.data).items():
            path = local_path(sweep, key)
            if fetched.get(key) != checksum or not path.is_file():
                remote.download(key, path, sha256=checksum)
        note.write_bytes(stored.data)


def send_shared(remote: Remote, sweep: Path) -> None:
    """Send teacher and features to the store."""
    note = sweep / COPY_FOLDER / SHARED
    with _hold_lock(note):
        stored = remote.read(SHARED)
        there = _checksums(stored.data) if stored else {}
        here = {path.relative_to(sweep).as_posix(): digest(path) for path in _shared_files(sweep)}
        for key, checksum in here.items():
            if there.get(key) != checksum:
                remote.upload(sweep / key, key)
        text = json.dumps(here).encode()
        # After the files, like a checkpoint's checksum: who can read it finds all that it names.
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
    """The optimizer steps of a trial's last outcome."""
    values: list[dict[str, Any]] = json.loads(outcomes)
    return max(int(outcome["steps"]) for outcome in values)


def _checksums(data: bytes) -> dict[str, str]:
    """Checksums of objects by name, read from the store's object.

    Raises:
        RefusedError: if it holds something else.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise RefusedError(f"`{SHARED}` of the store must hold checksums by name, but does not.")
    return values


def _read_note(note: Path) -> dict[str, str]:
    try:
        return _checksums(note.read_bytes())
    except (FileNotFoundError, RefusedError):
        return {}


@contextmanager
def _hold_lock(note: Path) -> Iterator[None]:
    """Lock the shared files: one worker of a machine fetches them for all."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.with_suffix(".lock").open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _local_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints; the names of incomplete ones start with a dot."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return []
    return [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]


def _step_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:09d}"
