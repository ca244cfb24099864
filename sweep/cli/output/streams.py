"""Standard output and error that may vanish: a terminal that is closed, a pipe nobody reads.

A dropped connection takes the terminal with it, and every later write fails. What a sweep says to
people is no reason for it to end, so from then on that goes nowhere. A command whose output is all
that it is for ends quietly when its reader has had enough, as `trials DIR | head -1` has.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EIO, errno.ENXIO, errno.EPIPE)
"""What the system says of a terminal or a pipe that is not there any more."""
STDOUT, STDERR = 1, 2


class _Output(io.FileIO):
    """A file descriptor that is pointed to nowhere once its other end is gone."""

    ends_quietly = True
    """Whether the program ends when nobody reads its standard output any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            _point_nowhere(self.fileno())
            if error.errno == errno.EPIPE and self.fileno() == STDOUT and _Output.ends_quietly:
                sys.exit(0)
            return memoryview(data).nbytes


def guard_output() -> None:
    """Let standard output and error survive the end of whoever reads them."""
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


@contextmanager
def flushed_output() -> Iterator[None]:
    """Have all written at the end of the block: later, an error could only be printed."""
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def outlive_readers() -> None:
    """From now on what is said is not all there is to do: go on when nobody reads it any more."""
    _Output.ends_quietly = False


def _guarded(stream: TextIO) -> TextIO:
    """The same stream, written by `_Output`; one that is not the system's stays as it is."""
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError, AttributeError):  # closed, in memory, or none at all
        return stream
    if descriptor not in (STDOUT, STDERR) or not isinstance(stream, io.TextIOWrapper):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _point_nowhere(descriptor: int) -> None:
    """Whatever is written there from now on, by whichever library, is dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
