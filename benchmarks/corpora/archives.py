"""Reads archives that a user downloaded, member by member and in memory, within bounds.

Nothing is unpacked. The bounds lie far above what is published (Speech Commands: 105,829 files,
2.3 GB, the largest 2 MB), so that a damaged or forged archive ends with a message and not with a
full memory.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.archives import DAMAGED, open_tar

MAX_MEMBERS = 500_000
MAX_MEMBER_BYTES = 64 << 20
MAX_ARCHIVE_BYTES = 16 << 30

_CHUNK_BYTES = 1 << 20


class SourceError(ValueError):
    """A source is not what is published, or is damaged."""


def iterate_archive(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each regular file and a function that reads it, in the archive's order.

    The function must be called before the next file is asked for.

    Raises:
        SourceError: if the archive is missing, damaged, cut short, or too large.
    """
    if not archive.is_file():
        raise SourceError(f"`{archive}` must be a folder or a .tar.gz, but is missing")
    try:
        yield from _members(archive)
    except (*DAMAGED, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"`{archive}` must be a whole .tar.gz or .tar, but cannot be read ({error});"
            " download it again"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with open_tar(archive, largest_read=MAX_MEMBER_BYTES) as tar:
        walked: Any = tar
        number = 0
        while (member := tar.next()) is not None:
            walked.members.clear()  # tarfile would hold every header
            number += 1
            if (
                number > MAX_MEMBERS
                or member.size > MAX_MEMBER_BYTES
                or member.offset > MAX_ARCHIVE_BYTES
            ):
                raise _too_large(archive)
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content.read
        # tarfile takes a damaged header for the end; gzip compares its checksum at the real one.
        while walked.fileobj.read(_CHUNK_BYTES):
            if walked.fileobj.tell() > MAX_ARCHIVE_BYTES:
                raise _too_large(archive)


def _too_large(archive: Path) -> SourceError:
    return SourceError(
        f"`{archive}` must be an archive as published, but is far larger; download it again"
    )
