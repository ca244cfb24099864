"""Writes a sweep's directory to a tar archive, and extracts one that may come from anybody.

Only plain files and folders inside the new directory are extracted, each once and within limits.
The only links allowed are those of `confirm`, whose `teacher` and `features` are links to those of
the sweep around it.
"""

import shutil
import sqlite3
import tarfile
from collections.abc import Collection
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from core.archives import DAMAGED, open_tar
from core.config.base import ConfigError
from core.safe_text import terminal_line
from sweep.config.sweep import SHARED_FOLDERS
from sweep.ledger.files import ADDRESS, JOURNAL
from sweep.local_lock import LOCK, STOP
from sweep.storage.addresses import COPY_FOLDER
from sweep.storage.working_copy import DATABASES, NESTED

DRIVER_FILES = (LOCK, STOP, COPY_FOLDER, f"{JOURNAL}.lock")
"""Names in a sweep's directory that belong to a running driver, not to the sweep."""
SQLITE_SUFFIXES = ("-journal", "-wal", "-shm")
"""Suffixes of SQLite's own files next to a database, which it would apply."""
MAX_FILES = 1_000_000
MAX_COMPRESSION = 250
"""Most bytes for each byte of the archive: more would be an archive made to fill the disk."""
ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that any archive may hold: databases compress well."""
LARGEST_HEADER = 4 * 2**20
_CHUNK = 2**20


def is_nested(parts: tuple[str, ...]) -> bool:
    """Whether a path inside a sweep is a sweep's directory: its own, or one of `confirm`."""
    return all(part in NESTED for part in parts)


def add(
    archive: tarfile.TarFile, path: Path, name: PurePosixPath, *, without: Collection[Path]
) -> None:
    """Add a file, or a folder with its content, to an archive.

    Args:
        archive: opened with `dereference`, so that a file with two names is two files.
        path: the file or folder.
        name: its name in the archive.
        without: paths that are left out, such as the archive's own file.

    Raises:
        ConfigError: naming a link, which would point to nothing elsewhere.
    """
    is_sweep = is_nested(name.parent.parts)
    is_left_out = (is_sweep and name.name in DRIVER_FILES) or name.name.endswith(SQLITE_SUFFIXES)
    if is_left_out or path in without:
        return
    if path.is_symlink():
        if str(path.readlink()) != _shared_target(name):
            raise ConfigError(
                f"`{path}` must be a file or a folder to be packed, but is a link to"
                f" `{path.readlink()}` instead; put what it points to in its place."
            )
        # Made by hand, because the archive was opened with `dereference`: `add` would pack the
        # target.
        link = tarfile.TarInfo(str(name))
        link.type, link.linkname = tarfile.SYMTYPE, str(path.readlink())
        archive.addfile(link)
    elif path.is_dir():
        archive.add(path, arcname=str(name), recursive=False)
        for inner in sorted(path.iterdir()):
            add(archive, inner, name / inner.name, without=without)
    elif path.is_file():
        archive.add(path, arcname=str(name))


def settle_databases(folder: Path) -> None:
    """Let SQLite roll back transactions that a kill interrupted, in all sweeps of a directory."""
    for name in DATABASES:
        for path in (folder / name, *(folder / inner / name for inner in NESTED)):
            if path.is_file():
                with closing(sqlite3.connect(path, timeout=60)) as database:
                    # SQLite rolls back at the first read. The checkpoint then moves what is in the
                    # write-ahead log into the database, because files with `SQLITE_SUFFIXES` are
                    # not packed.
                    database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def extract(file: Path, folder: Path, *, is_trusted: bool) -> None:
    """Extract an archive into a new folder.

    Args:
        file: the archive.
        folder: created if it is missing.
        is_trusted: whether it may hold the address of a server, and SQLite's own files.

    Raises:
        ConfigError: if it is damaged or is no packed sweep; the folder may hold a part of it then.
    """
    # An archive of 1 MiB may hold 64 + 250 * 1 = 314 MiB.
    remaining = min(
        ALWAYS_ALLOWED + MAX_COMPRESSION * file.stat().st_size,
        shutil.disk_usage(folder.parent).free,
    )
    folder.mkdir(exist_ok=True)
    try:
        with open_tar(file, largest_read=LARGEST_HEADER) as archive:
            walked: Any = archive
            for count, member in enumerate(archive):
                walked.members = []  # else a million of them stay in memory
                # A damaged header may state a negative size, which must not add to what remains.
                remaining -= max(member.size, 0)
                if count >= MAX_FILES or remaining < 0:
                    raise ConfigError(
                        f"`{file}` must be a packed sweep, but {_quoted_name(member)} is beyond"
                        f" {MAX_FILES} files, {MAX_COMPRESSION} times its size, or the free disk."
                    )
                _write(archive, member, file, folder, is_trusted=is_trusted)
    except DAMAGED as error:
        if isinstance(error, ConfigError):
            raise
        reason = terminal_line(str(error))[:200]
        raise ConfigError(f"`{file}` must be a packed sweep, but: {reason}.") from None


def _write(
    archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path, folder: Path, *, is_trusted: bool
) -> None:
    name = PurePosixPath(member.name)
    target = folder / name
    if not _is_allowed(member, name, is_trusted=is_trusted):
        raise ConfigError(
            f"`{file}` must be a packed sweep, but holds {_quoted_name(member)}: only plain files"
            " and folders inside it are unpacked, and no address of a server; if the sweep is your"
            " own, `--trust` allows the latter."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            target.mkdir(exist_ok=True)
        elif member.issym():
            target.symlink_to(member.linkname, target_is_directory=True)
        else:
            _copy(archive, member, target)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"`{file}` must be a packed sweep, but holds {_quoted_name(member)} twice,"
            " or in a file."
        ) from None


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None, "plain files have content"
    # "x" refuses a second member of this name, and follows no link that an earlier member has put
    # here.
    with path.open("xb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
        size = target.tell()
    if size != member.size:
        raise tarfile.ReadError(f"{_quoted_name(member)} is cut short")


def _is_allowed(member: tarfile.TarInfo, name: PurePosixPath, *, is_trusted: bool) -> bool:
    if name.is_absolute() or ".." in name.parts or not (name.parts or member.isdir()):
        return False
    if member.issym():
        return member.linkname == _shared_target(name)
    # A sparse file takes more bytes on the disk than the archive holds, so no limit would count
    # them.
    if member.issparse() or not (member.isfile() or member.isdir()) or member.size < 0:
        return False
    is_silent = COPY_FOLDER not in name.parts and not name.name.endswith(
        (ADDRESS, *SQLITE_SUFFIXES)
    )
    return is_trusted or is_silent


def _shared_target(name: PurePosixPath) -> str | None:
    """The target of an allowed link of this name: a sweep in a sweep shares the outer's folders."""
    # confirm/teacher -> ../teacher; no link may be at teacher or trials/teacher.
    if name.name in SHARED_FOLDERS and len(name.parts) > 1 and is_nested(name.parent.parts):
        return f"../{name.name}"
    return None


def _quoted_name(member: tarfile.TarInfo) -> str:
    return f"`{terminal_line(member.name)[:200]}`"
