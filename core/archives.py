"""Tar archives from outside, read forwards and within bounds, packed with gzip or not.

An archive's headers say how long names and files are, and a few kilobytes of gzip become gigabytes.
`tarfile` believes both; here a reader says first how much of it may be in memory at once.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError)
"""What a damaged archive raises while it is read; ValueErrors are of numbers in its headers."""
_GZIP = b"\x1f\x8b"
_CHUNK = 2**20
_STEP_BACK = 1024
"""Bytes that stay in memory: `tarfile` goes back by one before each header."""


@contextmanager
def open_tar(path: Path, *, largest_read: int) -> Iterator[tarfile.TarFile]:
    """Open an archive to walk through its members once, from first to last.

    Args:
        path: of the archive.
        largest_read: bytes that one header, or one call of `read`, may bring into memory.

    Raises:
        tarfile.TarError: if it is none, or asks for more memory; see `DAMAGED` for what reading
            a damaged one raises.
        OSError: if it cannot be opened.
    """
    with ExitStack() as stack:
        file: BufferedIOBase = stack.enter_context(path.open("rb"))
        # By its first bytes, as names of archives may say anything.
        is_packed = file.read(2) == _GZIP
        file.seek(0)
        if is_packed:
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb"))
        stream: Any = _ForwardReader(file, largest_read)
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))


class _ForwardReader:
    """A file that is read forwards, a bounded number of bytes at a time.

    Args:
        file: that is read.
        largest_read: bytes a call.
    """

    def __init__(self, file: BufferedIOBase, largest_read: int) -> None:
        self._file, self._largest = file, largest_read
        self._position = 0
        self._end = 0
        """How far the file has been read; the position lies there, or a little before."""
        self._recent = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        """Go forwards by reading, or a little backwards.

        Raises:
            tarfile.ReadError: if it is far back: a header lies about a length.
        """
        # Example: read up to 5,000, with 1,024 bytes in memory: positions from 3,976 on are
        # allowed.
        if whence != 0 or not self._end - len(self._recent) <= position:
            raise tarfile.ReadError("a header points backwards")
        # In chunks, as a header may ask for gigabytes; an empty chunk is the end of the file.
        while position > self._end and self._advance(min(_CHUNK, position - self._end)):
            pass
        self._position = min(position, self._end)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Reads at most `size` bytes; fewer at the end.

        Raises:
            tarfile.ReadError: if they are more than may be in memory.
        """
        if not 0 <= size <= self._largest:
            raise tarfile.ReadError(f"a header asks for more than {self._largest} bytes of memory")
        # Bytes that were read before and are wanted again: they come from memory, the rest from the
        # file.
        back = self._end - self._position
        content = self._recent[len(self._recent) - back :][:size] if back else b""
        if len(content) < size:
            content += self._advance(size - len(content))
        self._position += len(content)
        return content

    def _advance(self, size: int) -> bytes:
        content = self._file.read(size)
        self._end += len(content)
        # Only the end of what was read, however long it was.
        self._recent = (self._recent + content[-_STEP_BACK:])[-_STEP_BACK:]
        return content
