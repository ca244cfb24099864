"""Errors of finished trials in one file of the repository: tables of days, made in parts.

Models are not packed, as they are large; a table of word error rates needs none.
"""

import tarfile
from pathlib import Path

PATTERNS = ("**/outcomes.json", "**/*.errors.json")


def pack_errors(root: Path, file: Path) -> None:
    """Write what tables read of the trials below a folder, and of their teachers."""
    found = sorted({path for pattern in PATTERNS for path in root.glob(pattern)})
    with tarfile.open(file, "w:xz") as packed:
        for path in found:
            packed.add(path, arcname=str(path.relative_to(root)), filter=_without_owner)


def unpack_errors(file: Path, root: Path) -> None:
    """Put packed trials where those that run go; a trial that is there stays as it is."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as packed:
        for member in packed.getmembers():
            if not (root / member.name).exists():
                packed.extract(member, root, filter="data")


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
