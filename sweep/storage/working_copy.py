"""A working copy of a sweep's directory that an object store keeps.

Everything else works on the copy as on any directory. Here is which address it is a copy of, what
of it travels, and which of the two is newer: each time the copy has been sent, a word drawn for
that (`generation`) is left in both, last. What lies here is newer while both have the same word.
"""

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.files import atomic_write, temporary_path
from sweep.local_lock import driver_here
from sweep.storage.addresses import ADDRESS, NOTES, address_of, is_address
from sweep.storage.object_store import Remote, local_path

MEMORY, GATE = "memory.json", "gate"
GENERATION, STOP = "generation", "stop"
SCRATCH = "CONFORMER_SWEEP_SCRATCH"
"""Names the folder of working copies, by default one in the user's cache."""

CARRIED_BY_WORKERS = ("teacher", "features", "trials")
"""Sent and fetched by those who make and need them."""
NESTED = ("confirm",)
"""Sweeps of their own inside another, and copies of their own."""
OF_THE_STORE = (GENERATION, STOP, "lease.json", "shared.json")
STAYS_HERE = (NOTES, "lock", STOP, "ledger.journal.lock")
DATABASES = ("mlflow.db", "ledger.db")
"""Sent as consistent copies, after all else, and the ledger last: it is the truth."""
JOURNAL = "ledger.journal"
NOT_VIEWED = ("mlflow.db", "mlartifacts", "front", "events.jsonl")
"""What tables are not made of."""


def at(name: str) -> Path:
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
    folder = _home() / _name(name)
    _note(folder, Remote(name).address)
    return folder


def _note(folder: Path, address: str) -> None:
    atomic_write(folder / NOTES / ADDRESS, address)


def bring(folder: Path, *names: str) -> None:
    """Fetch what workers have sent, as far as a copy has none of it.

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


def nest(folder: Path, inner: Path) -> None:
    """Make a sweep inside a copy a copy, too, with what they share at hand."""
    address = address_of(folder)
    if address is None:
        return
    bring(folder, "teacher/model", "teacher/latency", "features")
    _note(inner, f"{address}/{inner.name}")
    refresh(inner)


def refresh(folder: Path, *, is_whole: bool = False) -> None:
    """Fetch what is new, for whoever only reads; beside a living driver all is there already.

    Args:
        folder: any sweep's directory.
        is_whole: whether MLflow's part, events and pictures are fetched, too.

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
    """One process at a time fetches into a copy, or begins to work on it."""
    with (folder / NOTES / GATE).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(kw_only=True, slots=True)
class SyncState:
    """What of the copy was last sent or fetched."""

    generations: list[str] = field(default_factory=list)
    """The last one, and one that may have arrived."""
    viewed: str = ""
    """The last one that was fetched in part."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of objects, by key."""
    stamps: dict[str, str] = field(default_factory=dict)
    """Of files, by key."""

    @classmethod
    def of(cls, folder: Path) -> "SyncState":
        try:
            return cls(**json.loads((folder / NOTES / MEMORY).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def keep(self, folder: Path) -> None:
        values = {name: getattr(self, name) for name in self.__slots__}
        atomic_write(folder / NOTES / MEMORY, json.dumps(values))


def fetch(folder: Path, remote: Remote, *, without: tuple[str, ...] = ()) -> None:
    """Make the copy what the store has, unless it is so already, or newer."""
    found = remote.read(GENERATION)
    memory = SyncState.of(folder)
    now = found.data.decode() if found else ""
    if not now or now in memory.generations or (without and now == memory.viewed):
        return
    for key, version in _kept(remote, without):
        place = local_path(folder, key)
        is_same = memory.stamps.get(key) == _stamp(place)
        if not is_same or memory.versions.get(key) != version:
            _forget_what_sqlite_left(place)
            remote.download(key, place)
            memory.versions[key], memory.stamps[key] = version, _stamp(place)
    if without:
        memory.viewed = now
    else:
        memory.generations = [now]
    memory.keep(folder)


class Sender:
    """Sends a copy to its store, as often as asked: only what has changed."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._folder, self._remote = folder, remote
        self._memory = SyncState.of(folder)

    def send(self) -> bool:
        """Send what has changed, the ledger last; gives whether there was anything.

        Raises:
            StoreError: if the store cannot be reached; the next call goes on.
        """
        changed = [path for path in self._small_files() if self._has_changed(path)]
        for path in changed:
            self._send_one(path)
        if not changed and self._memory.generations:
            return False
        generation = uuid.uuid4().hex
        self._memory.generations = [*self._memory.generations[:1], generation]
        self._memory.keep(self._folder)
        self._remote.write(GENERATION, generation.encode())
        self._memory.generations = [generation]
        self._memory.keep(self._folder)
        return True

    def _small_files(self) -> list[Path]:
        top = [p for p in self._folder.iterdir() if p.name not in _NOT_SENT and not _is_half(p)]
        files = [f for p in top for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
        ranks = {name: rank for rank, name in enumerate((JOURNAL, *DATABASES), start=1)}
        return sorted((f for f in files if not _is_half(f)), key=lambda f: ranks.get(f.name, 0))

    def _has_changed(self, path: Path) -> bool:
        return self._memory.stamps.get(self._key(path)) != _stamp(path)

    def _send_one(self, path: Path) -> None:
        key, stamp = self._key(path), _stamp(path)
        with _still(path, self._folder / NOTES) as still:
            self._remote.upload(still, key)
        self._memory.stamps[key] = stamp
        self._memory.versions.pop(key, None)  # whoever fetches it next asks again

    def _key(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


_NOT_SENT = {*STAYS_HERE, *CARRIED_BY_WORKERS, *NESTED}


def _kept(remote: Remote, without: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """What a copy holds of the store, the ledger last."""
    files, folders = remote.beside_root()
    found = {key: version for key, version in files.items() if key not in OF_THE_STORE}
    for name in folders:
        if name not in (*CARRIED_BY_WORKERS, *NESTED, *without):
            found |= remote.under(name)
    teacher = "teacher/model/report.json"  # the front's pictures show its word error rate
    if "teacher" in folders:
        found |= {k: v for k, v in remote.under("teacher/model").items() if k == teacher}
    wanted = {key: version for key, version in found.items() if key not in without}
    return iter(sorted(wanted.items(), key=lambda item: item[0] in (*DATABASES, JOURNAL)))


@contextmanager
def _still(path: Path, scratch: Path) -> Iterator[Path]:
    """A file as it is at one moment, while others may write it."""
    if path.suffix not in (".db", ".journal"):
        yield path
        return
    beside = temporary_path(scratch / path.name)
    try:
        if path.suffix == ".db":
            with (
                closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as now,
                closing(sqlite3.connect(beside)) as then,
            ):
                now.backup(then)
        else:
            text = path.read_bytes()
            beside.write_bytes(text[: text.rfind(b"\n") + 1])
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _forget_what_sqlite_left(path: Path) -> None:
    """A killed writer's journal belongs to the file that is replaced, and would spoil the next."""
    if path.suffix == ".db":
        for suffix in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _is_half(path: Path) -> bool:
    is_sqlite_s = re.search(r"\.db-(journal|wal|shm)$", path.name)
    return path.name.startswith(".") or path.name.endswith(".new") or bool(is_sqlite_s)


def _stamp(path: Path) -> str:
    """Changes whenever the file does; empty where there is none."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _home() -> Path:
    if os.environ.get(SCRATCH):
        return Path(os.environ[SCRATCH]).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "conformer-sweep"


def _name(address: str) -> str:
    """A folder's name: to be recognised by people, and of one address only."""
    whole = address.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", whole.partition("://")[2])[-40:].strip("-")
    return f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
