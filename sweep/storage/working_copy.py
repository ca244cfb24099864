"""A working copy of a sweep's directory that is stored in an object store.

All other modules use the copy like any directory. This one knows the address that it is a copy of,
which files are sent and fetched, and which side is newer: each time the copy was sent, a random
`generation` is written to both, last. While both have the same one, the copy is at least as new.
"""

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.files import atomic_write, temporary_path
from sweep.local_lock import driver_here
from sweep.storage.addresses import ADDRESS, COPY_FOLDER, address_of, is_address
from sweep.storage.object_store import Remote, local_path

SYNC_STATE, FETCH_LOCK = "sync.json", "fetch.lock"
OLD_SYNC_STATE = "memory.json"
"""Name of the state in copies that version 0.1 made; it is read if there is no newer one."""
GENERATION, STOP = "generation", "stop"
SCRATCH = "CONFORMER_SWEEP_SCRATCH"
"""Environment variable with the folder of working copies, by default one in the user's cache."""

WORKER_FOLDERS = ("teacher", "features", "trials")
"""Folders that workers send and fetch themselves."""
NESTED = ("confirm",)
"""Sweeps of their own inside another, and working copies of their own."""
STORE_FILES = (GENERATION, STOP, "lease.json", "shared.json")
LOCAL_FILES = (COPY_FOLDER, "lock", STOP, "ledger.journal.lock")
DATABASES = ("mlflow.db", "ledger.db")
"""Sent as consistent copies after all else, and the ledger last: it is the source of truth."""
JOURNAL = "ledger.journal"
NOT_VIEWED = ("mlflow.db", "mlartifacts", "front", "events.jsonl")
"""Files that commands which only read do not need."""


def resolve_folder(name: str) -> Path:
    """Returns a path, or the working copy of an address, brought up to date.

    Raises:
        StoreError: if the address cannot be used.
    """
    folder = locate(name)
    if is_address(name):
        refresh(folder)
    return folder


def locate(name: str) -> Path:
    """Returns a path, or that of the working copy of an address, without asking the store.

    Raises:
        StoreError: if no library here knows such addresses.
    """
    if not is_address(name):
        return Path(name)
    folder = _cache_folder() / _name(name)
    _note(folder, Remote(name).address)
    return folder


def _note(folder: Path, address: str) -> None:
    atomic_write(folder / COPY_FOLDER / ADDRESS, address)


def fetch_missing(folder: Path, *names: str) -> None:
    """Fetch files that workers have sent and a working copy lacks.

    Args:
        folder: any sweep's directory.
        names: of folders in it.

    Raises:
        StoreError: if the store cannot be reached.
    """
    address = address_of(folder)
    if address is None:
        return
    remote = Remote(address)
    for key in [key for name in names for key in remote.under(name)]:
        if not local_path(folder, key).exists():
            remote.download(key, local_path(folder, key))


def copy_nested(folder: Path, inner: Path) -> None:
    """Make a sweep inside a working copy a working copy, too, and fetch their shared files."""
    address = address_of(folder)
    if address is None:
        return
    fetch_missing(folder, "teacher/model", "teacher/latency", "features")
    _note(inner, f"{address}/{inner.name}")
    refresh(inner)


def refresh(folder: Path, *, is_whole: bool = False) -> None:
    """Fetch what is new for a command that only reads; does nothing while a driver runs here.

    Args:
        folder: any sweep's directory.
        is_whole: whether MLflow's files, events and pictures are fetched, too.

    Raises:
        StoreError: if the store cannot be reached.
    """
    address = address_of(folder)
    if address is None:
        return
    with fetch_lock(folder):
        if driver_here(folder) is None:
            fetch(folder, Remote(address), without=() if is_whole else NOT_VIEWED)


@contextmanager
def fetch_lock(folder: Path) -> Iterator[None]:
    """Lock a copy: one process at a time fetches into it, or takes its driver's lock."""
    with (folder / COPY_FOLDER / FETCH_LOCK).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(kw_only=True, slots=True)
class SyncState:
    """The state of a copy's transfers, stored in the copy."""

    generations: list[str] = field(default_factory=list)
    """The last one sent or fetched, and one that may have arrived."""
    viewed: str = ""
    """The last one that was fetched in part."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of objects, by key."""
    stamps: dict[str, str] = field(default_factory=dict)
    """Sizes and times of files, by key."""

    @classmethod
    def load(cls, folder: Path) -> "SyncState":
        """The stored state of a copy; an empty one if there is none."""
        file = folder / COPY_FOLDER / SYNC_STATE
        if not file.is_file():
            file = file.with_name(OLD_SYNC_STATE)
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Store the state in the copy."""
        values = {name: getattr(self, name) for name in self.__slots__}
        atomic_write(folder / COPY_FOLDER / SYNC_STATE, json.dumps(values))
        (folder / COPY_FOLDER / OLD_SYNC_STATE).unlink(missing_ok=True)


def fetch(folder: Path, remote: Remote, *, without: tuple[str, ...] = ()) -> None:
    """Make the copy equal to the store, unless it is equal already or newer.

    Args:
        folder: the working copy.
        remote: the store.
        without: top-level files and folders that are left out.
    """
    generation = remote.read(GENERATION)
    state = SyncState.load(folder)
    now = generation.data.decode() if generation else ""
    # store "b", copy ["b"]: the copy has all of it, and perhaps changes that were not sent.
    # store "b", copy ["a"]: another machine has sent since, and its files are fetched.
    # store "b", copy ["a", "b"]: this copy was killed after sending "b", before it noted the
    # arrival.
    if not now or now in state.generations or (without and now == state.viewed):
        return
    for key, version in _objects_to_fetch(remote, without):
        path = local_path(folder, key)
        # Downloaded again if either side has changed: the file here was touched, or the store's is
        # another version. A file that is only here stays.
        is_same = state.stamps.get(key) == _stamp(path)
        if not is_same or state.versions.get(key) != version:
            _remove_sqlite_leftovers(path)
            remote.download(key, path)
            state.versions[key], state.stamps[key] = version, _stamp(path)
    # A copy without MLflow's files must not count as equal to the store: a driver needs them.
    if without:
        state.viewed = now
    else:
        state.generations = [now]
    state.save(folder)


class Sender:
    """Sends the changed files of a working copy to its store.

    Args:
        folder: the working copy.
        remote: the store.
    """

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._folder, self._remote = folder, remote
        self._state = SyncState.load(folder)
        self._sending = threading.Lock()

    def send(self) -> bool:
        """Send the changed files, the ledger last; returns whether there were any.

        May be called from several threads: each waits for the one before, as an upload that began
        earlier and ended later would put an old file over a new one.

        Raises:
            StoreError: if the store cannot be reached; the next call goes on.
        """
        with self._sending:
            return self._send_changed()

    def _send_changed(self) -> bool:
        changed = [path for path in self._small_files() if self._has_changed(path)]
        for path in changed:
            self._send_one(path)
        # The first `send` of a copy writes a generation even without files, or the store would have
        # none.
        if not changed and self._state.generations:
            return False
        generation = uuid.uuid4().hex
        # Both are stored first: whether or not a kill lets the new one arrive, the copy is as new.
        self._state.generations = [*self._state.generations[:1], generation]
        self._state.save(self._folder)
        self._remote.write(GENERATION, generation.encode())
        self._state.generations = [generation]
        self._state.save(self._folder)
        return True

    def _small_files(self) -> list[Path]:
        top = [
            p for p in self._folder.iterdir() if p.name not in _NOT_SENT and not _is_incomplete(p)
        ]
        files = [f for p in top for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
        # {"ledger.journal": 1, "mlflow.db": 2, "ledger.db": 3}; all other files are 0 and come
        # first.
        ranks = {name: rank for rank, name in enumerate((JOURNAL, *DATABASES), start=1)}
        return sorted(
            (f for f in files if not _is_incomplete(f)), key=lambda f: ranks.get(f.name, 0)
        )

    def _has_changed(self, path: Path) -> bool:
        return self._state.stamps.get(self._key(path)) != _stamp(path)

    def _send_one(self, path: Path) -> None:
        # The stamp of before: a write during the upload changes it, and the file is sent once more.
        key, stamp = self._key(path), _stamp(path)
        with _consistent_copy(path, self._folder / COPY_FOLDER) as copy:
            self._remote.upload(copy, key)
        self._state.stamps[key] = stamp
        self._state.versions.pop(key, None)  # the next fetch reads its version

    def _key(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


_NOT_SENT = {*LOCAL_FILES, *WORKER_FOLDERS, *NESTED}


def _objects_to_fetch(remote: Remote, without: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Keys and versions of the objects that a copy holds, the ledger last."""
    files, folders = remote.list_root()
    objects = {key: version for key, version in files.items() if key not in STORE_FILES}
    for name in folders:
        if name not in (*WORKER_FOLDERS, *NESTED, *without):
            objects |= remote.under(name)
    teacher = "teacher/model/report.json"  # the front's pictures show its word error rate
    if "teacher" in folders:
        objects |= {k: v for k, v in remote.under("teacher/model").items() if k == teacher}
    needed = {key: version for key, version in objects.items() if key not in without}
    return iter(sorted(needed.items(), key=lambda item: item[0] in (*DATABASES, JOURNAL)))


@contextmanager
def _consistent_copy(path: Path, scratch: Path) -> Iterator[Path]:
    """A file with the content of one moment, while another process may write it."""
    if path.suffix not in (".db", ".journal"):
        yield path
        return
    # SQLite's backup reads one state while others write; a copied file could mix two. A journal
    # only grows, so its complete lines are a state: b'{"op":1}\n{"o' is sent as its first 9 bytes.
    tmp_path = temporary_path(scratch / path.name)
    try:
        if path.suffix == ".db":
            with (
                closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as now,
                closing(sqlite3.connect(tmp_path)) as then,
            ):
                now.backup(then)
        else:
            text = path.read_bytes()
            tmp_path.write_bytes(text[: text.rfind(b"\n") + 1])
        yield tmp_path
    finally:
        tmp_path.unlink(missing_ok=True)


def _remove_sqlite_leftovers(path: Path) -> None:
    """Remove a killed writer's SQLite journal, which would corrupt the file that is put here."""
    if path.suffix == ".db":
        for suffix in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_incomplete(path: Path) -> bool:
    is_of_sqlite = re.search(r"\.db-(journal|wal|shm)$", path.name)
    return path.name.startswith(".") or path.name.endswith(".new") or bool(is_of_sqlite)


def _stamp(path: Path) -> str:
    """A text that changes whenever the file does; empty if there is none."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _cache_folder() -> Path:
    if os.environ.get(SCRATCH):
        return Path(os.environ[SCRATCH]).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "conformer-sweep"


def _name(address: str) -> str:
    """A folder's name that people recognize, and that belongs to one address only."""
    whole = address.rstrip("/")
    # "s3://bucket/team/sweep 1/" -> "bucket-team-sweep-1-6d59c54d9f0f". The digest tells apart
    # addresses that read alike, such as sweep-1 and sweep_1.
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", whole.partition("://")[2])[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
