"""The only file that knows fsspec: objects under one address, whichever store it is of."""

import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from core.files import temporary_path

T = TypeVar("T")

NOT_SHARED = ("file", "local", "memory")
"""Addresses of this machine: a path says it better, or nobody else would find it."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Which extra of ours brings a store's library."""
SETTLED_SECONDS = 2.0
"""Where a store cannot compare and set, two who wrote at once see by then whose came last."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0


class StoreError(ConnectionError):
    """A store that cannot be used or reached; what lies here is kept."""


class RefusedError(StoreError):
    """What will not be otherwise by waiting: no right, no bucket, another content than told."""


FINAL = (PermissionError, FileNotFoundError)
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An object's content, and which version of it that is."""

    data: bytes
    version: str


class Remote:
    """Objects under an address, by keys relative to it.

    Args:
        address: `s3://bucket/prefix`, or any other that fsspec knows.

    Raises:
        StoreError: if no library here knows such addresses, or they name this machine.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.scheme, _, path = self.address.partition("://")
        if self.scheme in NOT_SHARED or not path:
            raise StoreError(
                f"`{address}` must be an object store's, such as s3://bucket/prefix, but is not;"
                " for a folder of this machine give its path."
            )
        try:
            # No list is kept: others write here, too.
            self._fs, self._root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(self.scheme)
            repair = f"; pip install 'conformer-sweep[{extra}]'" if extra else ""
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"`{address}` must be of a known store, but: {reason}{repair}."
            ) from None

    def read(self, key: str) -> Found | None:
        """An object, or None where there is none."""
        with self._reached(key):
            try:
                version = self._version(self._fs.info(self._path(key)))
                return Found(data=self._fs.cat_file(self._path(key)), version=version)
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """Put an object in the place of whatever is there; whole or not at all."""
        with self._reached(key):
            self._fs.pipe_file(self._path(key), data)

    def replace(self, key: str, data: bytes, version: str | None) -> Found | None:
        """Put an object there if it still is of this version (None: if there is none).

        Returns:
            What lies there now, or None if another was faster.
        """
        with self._reached(key):
            has_won = self._set_if(key, data, version)
            if has_won is None:
                has_won = self._set_and_settle(key, data, version)
        now = self.read(key) if has_won else None
        return now if now is not None and now.data == data else None

    def _set_if(self, key: str, data: bytes, version: str | None) -> bool | None:
        """Compare and set in one; None where the store cannot."""
        if self.scheme not in EXTRAS:
            return None
        wanted = {"mode": "create"} if version is None else {"IfMatch": version}
        try:
            self._fs.pipe_file(self._path(key), data, **wanted)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            if error.errno == errno.ENOSYS:
                return None
            if _is_condition(error):
                return False
            raise
        return True

    def _set_and_settle(self, key: str, data: bytes, version: str | None) -> bool:
        """Set, and wait until whoever came last can be seen."""
        found = self.read(key)
        if (found.version if found else None) != version:
            return False
        self._fs.pipe_file(self._path(key), data)
        time.sleep(SETTLED_SECONDS)
        return True

    def upload(self, path: Path, key: str) -> None:
        """Put a file there; whole or not at all."""
        with self._reached(key):
            self._fs.put_file(str(path), self._path(key))

    def download(self, key: str, path: Path, *, sha256: str = "") -> None:
        """Fetch an object beside where it belongs, then put it there.

        Raises:
            StoreError: if the store cannot be reached, or the digest is another.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = temporary_path(path)
        try:
            with self._reached(key):
                self._fs.get_file(self._path(key), str(beside))
            if sha256 and digest(beside) != sha256:
                raise RefusedError(f"`{self.address}/{key}` must match its checksum, but does not.")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def under(self, prefix: str) -> dict[str, str]:
        """All objects whose keys begin with `prefix/`, with their versions."""
        with self._reached(prefix):
            found: Mapping[str, Any] = self._fs.find(self._path(prefix), detail=True)
        return {self._key(path): self._version(info) for path, info in found.items()}

    def beside_root(self) -> tuple[dict[str, str], list[str]]:
        """The objects that lie at the address itself, with their versions; and the folders."""
        with self._reached(""):
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                entries = []
        inside = [e for e in entries if self._key(e["name"])]
        files = {self._key(e["name"]): self._version(e) for e in inside if e["type"] == "file"}
        return files, [self._key(e["name"]) for e in inside if e["type"] == "directory"]

    def delete(self, *keys: str) -> None:
        """Remove objects, in this order; none is missed."""
        for key in keys:
            with self._reached(key):
                try:
                    self._fs.rm_file(self._path(key))
                except FileNotFoundError:
                    continue

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _key(self, path: str) -> str:
        return path.rstrip("/").removeprefix(self._root).lstrip("/")

    @staticmethod
    def _version(info: Mapping[str, Any]) -> str:
        tag = info.get("ETag") or info.get("etag")
        return str(tag) if tag else f"{info.get('size')} {info.get('mtime') or info.get('updated')}"

    @contextmanager
    def _reached(self, key: str) -> Iterator[None]:
        """Each library fails in its own words; one line names the object."""
        try:
            yield
        except (StoreError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            is_final = isinstance(error, FINAL) or type(error).__name__ in FINAL_NAMES
            kind = RefusedError if is_final else StoreError
            raise kind(f"`{self.address}/{key}` must be reachable, but: {reason}") from error


def local_path(folder: Path, key: str) -> Path:
    """Where a store's object belongs in a folder; a store may have objects of any name.

    Raises:
        RefusedError: if it would lie outside.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\0" in key:
        raise RefusedError(f"`{key}` must be the name of an object inside, but leads out of it.")
    return folder.joinpath(*parts)


def patiently(act: Callable[[], T], *, seconds: float) -> T:
    """Do it again and again while the store is away, for so long, if waiting can help.

    Raises:
        StoreError: of the last try.
    """
    give_up, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return act()
        except StoreError as error:
            if isinstance(error, RefusedError) or time.monotonic() + pause > give_up:
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def digest(path: Path) -> str:
    """A file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_condition(error: BaseException | None) -> bool:
    """Whether a store refused because the object has changed."""
    while error is not None:
        response = getattr(error, "response", None) or {}
        if response.get("Error", {}).get("Code") in (
            "PreconditionFailed",
            "412",
            "ConditionalRequestConflict",
        ):
            return True
        error = error.__cause__
    return False
