"""Reads archives that a user downloaded, member by member and in memory, within bounds.

Nothing is unpacked. The bounds lie far above what is published (Speech Commands: 105,829 files,
2.3 GB, the largest 2 MB), so that a damaged or forged archive ends with a message and not with a
full memory.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

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
        with archive.open("rb") as file:
            yield from _members(archive, file)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, OSError, zlib.error) as error:
        raise SourceError(
            f"`{archive}` must be a whole .tar.gz or .tar, but cannot be read ({error});"
            " download it again"
        ) from error


def _members(archive: Path, file: BinaryIO) -> Iterator[tuple[str, Callable[[], bytes]]]:
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = _Bounded(archive, gzip.GzipFile(fileobj=file) if is_gzip else file)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        walked: Any = tar
        number = 0
        while (member := tar.next()) is not None:
            walked.members.clear()  # tarfile would hold every header
            number += 1
            if number > MAX_MEMBERS or member.size > MAX_MEMBER_BYTES:
                raise _too_large(archive)
            content = tar.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content.read
    while stream.read(_CHUNK_BYTES):  # tarfile takes a damaged header for the end
        pass  # gzip compares its checksum at the end


def _too_large(archive: Path) -> SourceError:
    return SourceError(
        f"`{archive}` must be an archive as published, but is far larger; download it again"
    )


class _Bounded(io.RawIOBase):
    """A stream that refuses what no published archive asks for.

    tarfile reads a long name whole into memory, of any size that a header says, and a small .gz
    may hold terabytes.
    """

    def __init__(self, archive: Path, stream: BinaryIO | gzip.GzipFile) -> None:
        self._archive, self._stream = archive, stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_MEMBER_BYTES or self._stream.tell() > MAX_ARCHIVE_BYTES:
            raise _too_large(self._archive)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset > MAX_ARCHIVE_BYTES:
            raise _too_large(self._archive)
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()
