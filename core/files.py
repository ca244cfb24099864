"""Atomic writes, digests and locks of files, and temporary files that name their maker.

A process that is killed leaves what it was writing. Every temporary name made here says which
process of which machine made it, so that the next one removes what nobody will finish, and nothing
else: what belongs to a live process, another machine or another program stays.
"""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

REMOVAL_TRIES, REMOVAL_PAUSE_SECONDS = 20, 0.1
REMOVAL_CHECKS = 5
"""How often in a row a removed folder must still be absent."""
TEMPORARY_PREFIX = "conformer-sweep-"
"""What every folder of ours in the system's temporary directory begins with."""
_TAG = r"(?P<pid>\d+)-(?P<start>[0-9a-f]+)-(?P<machine>[0-9a-f]{6})"
# Hidden names next to a file, as `.model.4711-1a2b3c-0f9e8d`, with `.old` for what was replaced,
# and folders in the temporary directory, as `conformer-sweep-audio-k3x_9a1b-4711-1a2b3c-0f9e8d`.
_TAGGED = re.compile(rf"(?:\..+\.|{TEMPORARY_PREFIX}(?:.+-)?){_TAG}(?:\.old)?")
_TAGGED_BEFORE = re.compile(r"\..+\.\d+(?:\.old)?")
"""How earlier versions named theirs: without the machine, so that none could tell whose it is."""
_LONGEST_NAME = 50
"""Characters of a final name that its temporary one repeats: names have 255 bytes."""


def atomic_write(file: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, then puts it in the place of what is there.

    Text is encoded as UTF-8.
    """
    tmp_path = temporary_path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        tmp_path.write_bytes(content.encode() if isinstance(content, str) else content)
        # A rename is atomic: readers see the old content or the new one, never a part.
        tmp_path.replace(file)
    finally:
        tmp_path.unlink(missing_ok=True)


def sha256_file(file: Path) -> str:
    """Returns the SHA-256 digest of a file, as 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Waits until the disk holds a file or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """Give an empty folder inside `folder`; its files take the places of those of their names."""
    tmp_path = temporary_path(folder / "files")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        yield tmp_path
        for file in sorted(tmp_path.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder next to `folder`; when all went well, it takes its place.

    What lay at `folder` is moved away first, so that processes that have its files open keep them.
    """
    tmp_path = temporary_path(folder)
    old = tmp_path.with_name(f"{tmp_path.name}.old")
    remove_leftovers(folder.parent)
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        yield tmp_path
        # A folder that is not empty cannot be renamed over: between these two renames it is
        # missing, and the `except` below puts the old one back.
        if folder.exists():
            folder.rename(old)
        tmp_path.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():  # moved away, but not replaced
            old.rename(folder)
        error.filename = error.filename or str(folder)  # a full disk does not say where
        raise
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """Gives a path of the same name in an empty folder; what is written there becomes `file`.

    Whatever a library puts next to it (journals, locks) stays behind, and goes with that folder.

    Raises:
        FileExistsError: if another has made `file` meanwhile; it is left as it is.
    """
    remove_leftovers(file.parent)
    folder = temporary_path(file)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / file.name
        _move_to_new(folder / file.name, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_path(final: Path) -> Path:
    """Returns a hidden path next to `final` to write it at first, named after this process."""
    return final.with_name(f".{final.name[:_LONGEST_NAME]}.{process_tag()}")


def process_tag() -> str:
    """Names this process among all of all machines: its id, when it started, and the machine."""
    # Such as 4711-1a2b3c-0f9e8d; 0 for a start that cannot be read.
    pid = os.getpid()
    return f"{pid}-{_start_of(pid) or 0:x}-{_machine()}"


def remove_leftovers(
    folder: Path, *, is_recursive: bool = False, is_locked: bool = False
) -> list[Path]:
    """Remove what dead processes of this machine left half written in a folder.

    Args:
        folder: where to look; it need not exist.
        is_recursive: whether folders inside are looked through, too.
        is_locked: whether the caller holds a lock that every writer of this folder takes: then
            whatever has a temporary name is a leftover, whichever machine made it.

    Returns:
        What was removed.
    """
    removed: list[Path] = []
    for parent, folders, files in os.walk(folder):
        leftovers = [name for name in (*folders, *files) if _is_leftover(name, is_locked=is_locked)]
        for name in leftovers:
            _remove(Path(parent) / name)
            removed.append(Path(parent) / name)
        if not is_recursive:
            break
        # The list itself is changed: `os.walk` goes on with what it holds.
        folders[:] = [name for name in folders if name not in leftovers]
    return removed


@contextmanager
def own_temporary_folder() -> Iterator[Path | None]:
    """Let all temporary files of this process lie in one folder, which the next process can clear.

    Libraries name theirs as they like; a kill would leave them for ever. What earlier processes of
    this machine and user left is removed first. Gives None where the system's temporary directory
    cannot be written: then nothing is changed.
    """
    system = Path(tempfile.gettempdir())
    remove_temporary_folders(system)
    own = system / f"{TEMPORARY_PREFIX}{process_tag()}"
    try:
        own.mkdir(mode=0o700)
    except OSError:
        yield None
        return
    before, tempfile.tempdir = tempfile.tempdir, str(own)
    try:
        yield own
    finally:
        tempfile.tempdir = before
        _remove_used_folder(own)
        # Orphans of a killed process may have made its folder anew since the one at the start.
        remove_temporary_folders(system)


def _remove_used_folder(folder: Path) -> None:
    """Remove a folder into which child processes that are about to end may still write.

    It counts as removed once it has been absent for a while: a process of Ray's that ends after
    the others makes the folders of its log again. An empty folder had no such writers.
    """
    with suppress(OSError):
        folder.rmdir()
        return
    num_absent = 0
    for _ in range(REMOVAL_TRIES):
        num_absent = 0 if folder.exists() else num_absent + 1
        shutil.rmtree(folder, ignore_errors=True)
        if num_absent == REMOVAL_CHECKS:
            return
        time.sleep(REMOVAL_PAUSE_SECONDS)


def has_own_temporary_folder() -> bool:
    """Whether temporary files of this process lie in a folder of its own."""
    return Path(tempfile.gettempdir()).name.startswith(TEMPORARY_PREFIX)


def temporary_folder(kind: str) -> tempfile.TemporaryDirectory[str]:
    """An empty folder in the temporary directory; if this process is killed, the next clears it.

    Args:
        kind: what it is for, in its name.
    """
    prefix = f"{TEMPORARY_PREFIX}{kind}-"
    return tempfile.TemporaryDirectory(prefix=prefix, suffix=f"-{process_tag()}")


def remove_temporary_folders(system: Path) -> None:
    """Remove this user's folders of ours whose processes are dead from a temporary directory."""
    with suppress(OSError):
        for entry in os.scandir(system):
            is_ours = entry.name.startswith(TEMPORARY_PREFIX) and _is_leftover(entry.name)
            if is_ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                _remove(Path(entry.path))


def _is_leftover(name: str, *, is_locked: bool = False) -> bool:
    match = _TAGGED.fullmatch(name)
    if match is None:
        return is_locked and _TAGGED_BEFORE.fullmatch(name) is not None
    pid, start = int(match["pid"]), int(match["start"], 16)
    if match["machine"] != _machine():
        return is_locked
    # The same number and start: the process lives. Another start: its number was used again.
    return _start_of(pid) != (start or None)


def _remove(path: Path) -> None:
    """Remove a file or a folder; a link goes alone, never what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _move_to_new(source: Path, target: Path) -> None:
    """Rename, but never over what is there."""
    try:
        # Unlike a rename, a link fails if the target exists, so of two writers only one succeeds.
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(f"`{target}` is there already.") from None
        source.rename(target)


def _start_of(pid: int) -> int | None:
    """When a process of this machine started, in ticks since the system did; None without one."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # "12 (a) b) S 1 ...": the second field ends at the last parenthesis. Field 22 of the whole, the
    # start, is at index 19.
    fields = content.rpartition(b")")[2].split()  # from the third on: a name may hold anything
    is_over = fields[0] in (b"Z", b"X")  # killed, but its parent has not asked for it yet
    return None if is_over else int(fields[19]) & 0xFFFFFF or 1  # of the last two days: short


@cache
def _machine() -> str:
    """This machine, or this container of it: where process ids mean the same."""
    parts = [socket.gethostname()]
    for file in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            parts.append(Path(file).read_text(encoding="utf-8").strip())
    with suppress(OSError):
        # Two containers of one machine may use the same process numbers.
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:6]
