"""Objects under one address of an object store, through fsspec."""

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
"""Schemes of addresses on this machine, which no other machine can read."""
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of this package that installs a store's library, by scheme."""
SETTLED_SECONDS = 2.0
"""Two that write at the same time wait so long where a store has no compare-and-set."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0


class StoreError(ConnectionError):
    """A store that cannot be used or reached; local files are unchanged."""


class RefusedError(StoreError):
    """An error that waiting cannot repair: no permission, no bucket, a wrong checksum."""


FINAL = (PermissionError, FileNotFoundError)
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """An object's content and version."""

    data: bytes
    version: str


class Remote:
    """Objects under an address, by keys relative to it.

    Args:
        address: `s3://bucket/prefix`, or another one that fsspec supports.

    Raises:
        StoreError: if no installed library supports it, or it names this machine.
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
            # Listings are not cached: others write here, too.
            self._fs, self._root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(self.scheme)
            repair = f"; pip install 'conformer-sweep[{extra}]'" if extra else ""
            reason = str(error).splitlines()[0]
            raise StoreError(
                f"`{address}` must be that of a supported store, but: {reason}{repair}."
            ) from None

    def read(self, key: str) -> StoredObject | None:
        """The object of a key, or None if there is none."""
        with self._named_errors(key):
            try:
                # The version first. If the object changes between the two requests, the content is
                # newer than its version, and a `replace` with that version fails; the other way
                # round it would overwrite a change.
                version = self._version(self._fs.info(self._path(key)))
                return StoredObject(data=self._fs.cat_file(self._path(key)), version=version)
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """Write an object completely or not at all, replacing an existing one."""
        with self._named_errors(key):
            self._fs.pipe_file(self._path(key), data)

    def replace(self, key: str, data: bytes, version: str | None) -> StoredObject | None:
        """Write an object if its version is still this one (compare and set).

        Args:
            key: the object's.
            data: its new content.
            version: the expected version; None if there must be no object.

        Returns:
            The new object, or None if another process was faster.
        """
        with self._named_errors(key):
            has_won = self._set_if(key, data, version)
            if has_won is None:
                has_won = self._set_and_settle(key, data, version)
        # Read back, for its version, and because a later write of another may have won meanwhile.
        now = self.read(key) if has_won else None
        return now if now is not None and now.data == data else None

    def _set_if(self, key: str, data: bytes, version: str | None) -> bool | None:
        """Compare and set in one request; None if the store cannot."""
        if self.scheme not in EXTRAS:
            return None
        # S3 has conditional writes: If-None-Match for a new object, If-Match with the ETag of an
        # old one.
        condition = {"mode": "create"} if version is None else {"IfMatch": version}
        try:
            self._fs.pipe_file(self._path(key), data, **condition)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            # The store answered "not implemented": some that speak S3 have no conditional writes.
            if error.errno == errno.ENOSYS:
                return None
            if _is_condition(error):
                return False
            raise
        return True

    def _set_and_settle(self, key: str, data: bytes, version: str | None) -> bool:
        """Compare, set, and wait until a later write of another process can be seen."""
        current = self.read(key)
        if (current.version if current else None) != version:
            return False
        # Two drivers read no lease; A writes at 0.0 s and B at 0.5 s. At 2.0 s A reads B's lease
        # and has lost; at 2.5 s B reads its own. Only a write delayed by more than 2 s could
        # deceive both.
        self._fs.pipe_file(self._path(key), data)
        time.sleep(SETTLED_SECONDS)
        return True

    def upload(self, path: Path, key: str) -> None:
        """Upload a file completely or not at all."""
        with self._named_errors(key):
            self._fs.put_file(str(path), self._path(key))

    def download(self, key: str, path: Path, *, sha256: str = "") -> None:
        """Download an object to a path completely or not at all.

        Args:
            key: the object's.
            path: of the file; its folder is created.
            sha256: the expected checksum, if it is checked.

        Raises:
            StoreError: if the store cannot be reached, or the checksum differs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp_path = temporary_path(path)
        try:
            with self._named_errors(key):
                self._fs.get_file(self._path(key), str(tmp_path))
            if sha256 and digest(tmp_path) != sha256:
                raise RefusedError(f"`{self.address}/{key}` must match its checksum, but does not.")
            tmp_path.replace(path)
        finally:
            tmp_path.unlink(missing_ok=True)

    def under(self, prefix: str) -> dict[str, str]:
        """All objects whose keys begin with `prefix/`, with their versions."""
        with self._named_errors(prefix):
            # One request for every 1000 objects; a request for each file's version would be one for
            # each object.
            objects: Mapping[str, Any] = self._fs.find(self._path(prefix), detail=True)
        return {self._key(path): self._version(info) for path, info in objects.items()}

    def list_root(self) -> tuple[dict[str, str], list[str]]:
        """The objects directly under the address, with their versions, and the folders."""
        with self._named_errors(""):
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                entries = []
        # A listing may contain the address itself, as an object that stands for a folder.
        inside = [e for e in entries if self._key(e["name"])]
        files = {self._key(e["name"]): self._version(e) for e in inside if e["type"] == "file"}
        return files, [self._key(e["name"]) for e in inside if e["type"] == "directory"]

    def delete(self, *keys: str) -> None:
        """Delete objects in this order; missing ones are ignored."""
        for key in keys:
            with self._named_errors(key):
                try:
                    self._fs.rm_file(self._path(key))
                except FileNotFoundError:
                    continue

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _key(self, path: str) -> str:
        # "bucket/sweep/front/front.csv" -> "front/front.csv" with the root "bucket/sweep".
        return path.rstrip("/").removeprefix(self._root).lstrip("/")

    @staticmethod
    def _version(info: Mapping[str, Any]) -> str:
        # A store without tags has sizes and times, which miss a change of equal size within its
        # clock's tick.
        tag = info.get("ETag") or info.get("etag")
        return str(tag) if tag else f"{info.get('size')} {info.get('mtime') or info.get('updated')}"

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        """Turn each library's errors into a StoreError in one line that names the object."""
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
    """The path of a store's object in a folder; a store may have objects of any name.

    Raises:
        RefusedError: if it would lie outside.
    """
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\0" in key:
        raise RefusedError(f"`{key}` must be the name of an object inside, but leads out of it.")
    return folder.joinpath(*parts)


def retry_while_away(act: Callable[[], T], *, seconds: float) -> T:
    """Call a function again and again while the store cannot be reached.

    Args:
        act: the function.
        seconds: how long it is tried.

    Raises:
        StoreError: of the last try, or at once if waiting cannot help.
    """
    # Pauses of 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, ... seconds.
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
    """The SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_condition(error: BaseException | None) -> bool:
    """Whether a store refused because the object has changed."""
    # s3fs turns the errors of botocore into its own; the store's code is in the cause.
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
