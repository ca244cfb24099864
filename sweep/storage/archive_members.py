"""A sweep's directory as members of a tar archive, and back; the archive may be anybody's.

What comes out is plain files and folders inside the new directory, each once, within bounds that
are checked before anything is believed. The one kind of link is what `confirm` makes: its own
`teacher` and `features` are those of the sweep around it.
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
from sweep.storage.addresses import NOTES
from sweep.storage.working_copy import DATABASES, NESTED

OF_THE_DRIVER = (LOCK, STOP, NOTES, f"{JOURNAL}.lock")
"""Names in a sweep's directory that are of its driver's life, not of the sweep."""
LEFT_BY_SQLITE = ("-journal", "-wal", "-shm")
"""Ends of names of what a writer leaves beside a database; SQLite obeys what it finds there."""
MOST_FILES = 1_000_000
MOST_PACKED = 250
"""Weights and features hardly pack; more than so many times its size was made to fill the disk."""
ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that are not held against a small archive: databases pack well."""
LARGEST_HEADER = 4 * 2**20
_CHUNK = 2**20


def is_nested(parts: tuple[str, ...]) -> bool:
    """Whether a path inside a sweep is a sweep's directory: its own, or one of `confirm`."""
    return all(part in NESTED for part in parts)


def add(
    archive: tarfile.TarFile, path: Path, name: PurePosixPath, *, without: Collection[Path]
) -> None:
    """Put a file, or a folder with all it holds, into an archive.

    Args:
        archive: opened with `dereference`, so that a file with two names is two files.
        path: what is put.
        name: what it is called in there.
        without: what is left out, such as the archive's own file.

    Raises:
        ConfigError: naming a link, which would point to nothing elsewhere.
    """
    is_sweep = is_nested(name.parent.parts)
    is_left_out = (is_sweep and name.name in OF_THE_DRIVER) or name.name.endswith(LEFT_BY_SQLITE)
    if is_left_out or path in without:
        return
    if path.is_symlink():
        if str(path.readlink()) != _shared_target(name):
            raise ConfigError(
                f"`{path}` must be a file or a folder to be packed, but is a link to"
                f" `{path.readlink()}` instead; put what it points to in its place."
            )
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
    """Have SQLite roll back what a killed writer left half done, in every sweep of a directory."""
    for name in DATABASES:
        for path in (folder / name, *(folder / inner / name for inner in NESTED)):
            if path.is_file():
                with closing(sqlite3.connect(path, timeout=60)) as database:
                    database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def extract(file: Path, folder: Path, *, is_trusted: bool) -> None:
    """Write what an archive holds into a new folder.

    Args:
        file: the archive.
        folder: is made if it is not there.
        is_trusted: whether it may hold the address of a server, and what SQLite leaves.

    Raises:
        ConfigError: if it is damaged, or holds what a packed sweep never does; the folder may hold
            a part of it then.
    """
    left = min(
        ALWAYS_ALLOWED + MOST_PACKED * file.stat().st_size, shutil.disk_usage(folder.parent).free
    )
    folder.mkdir(exist_ok=True)
    try:
        with open_tar(file, largest_read=LARGEST_HEADER) as archive:
            walked: Any = archive
            for count, member in enumerate(archive):
                walked.members = []  # else a million of them stay in memory
                left -= max(member.size, 0)
                if count >= MOST_FILES or left < 0:
                    raise ConfigError(
                        f"`{file}` must be a packed sweep, but {_shown(member)} is beyond"
                        f" {MOST_FILES} files, {MOST_PACKED} times its size, or the free disk."
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
    place = folder / name
    if not _is_allowed(member, name, is_trusted=is_trusted):
        raise ConfigError(
            f"`{file}` must be a packed sweep, but holds {_shown(member)}: only plain files and"
            " folders inside it are unpacked, and no address of a server; if the sweep is your"
            " own, `--trust` allows the latter."
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            place.mkdir(exist_ok=True)
        elif member.issym():
            place.symlink_to(member.linkname, target_is_directory=True)
        else:
            _copy(archive, member, place)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"`{file}` must be a packed sweep, but holds {_shown(member)} twice, or in a file."
        ) from None


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None, "plain files have content"
    with place.open("xb") as target:
        shutil.copyfileobj(source, target, _CHUNK)
        size = target.tell()
    if size != member.size:
        raise tarfile.ReadError(f"{_shown(member)} is cut short")


def _is_allowed(member: tarfile.TarInfo, name: PurePosixPath, *, is_trusted: bool) -> bool:
    if name.is_absolute() or ".." in name.parts or not (name.parts or member.isdir()):
        return False
    if member.issym():
        return member.linkname == _shared_target(name)
    if member.issparse() or not (member.isfile() or member.isdir()) or member.size < 0:
        return False
    is_silent = NOTES not in name.parts and not name.name.endswith((ADDRESS, *LEFT_BY_SQLITE))
    return is_trusted or is_silent


def _shared_target(name: PurePosixPath) -> str | None:
    """Where a link of this name must point: a sweep in a sweep shares the outer one's folders."""
    if name.name in SHARED_FOLDERS and len(name.parts) > 1 and is_nested(name.parent.parts):
        return f"../{name.name}"
    return None


def _shown(member: tarfile.TarInfo) -> str:
    return f"`{terminal_line(member.name)[:200]}`"
