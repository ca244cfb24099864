"""Standard output and error that survive a closed terminal or a pipe without a reader.

A dropped connection closes the terminal, and every later write fails. A sweep must not end because
its messages cannot be printed, so from then on they are dropped. A command whose only purpose is
its output, such as `trials DIR | head -1`, exits quietly when its reader is gone.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EIO, errno.ENXIO, errno.EPIPE)
"""Error numbers of a terminal or a pipe that is closed."""
STDOUT, STDERR = 1, 2


class _Output(io.FileIO):
    """A file descriptor that is redirected to the null device once its other end is closed."""

    ends_quietly = True
    """Whether the program exits when the reader of its standard output is gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            _redirect_to_null(self.fileno())
            # A closed terminal is EIO and not EPIPE: then nobody piped the output, and the command
            # goes on.
            if error.errno == errno.EPIPE and self.fileno() == STDOUT and _Output.ends_quietly:
                sys.exit(0)
            # All bytes count as written: fewer would make the buffer above try again without end.
            return memoryview(data).nbytes


def guard_output() -> None:
    """Makes standard output and error survive the end of their readers."""
    sys.stdout = _guard(sys.stdout)
    sys.stderr = _guard(sys.stderr)


@contextmanager
def flushed_output() -> Iterator[None]:
    """Flushes both streams at the end of the block, while an error can still set the exit code."""
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def outlive_readers() -> None:
    """Makes the program continue from now on when the reader of its output is gone."""
    _Output.ends_quietly = False


def _guard(stream: TextIO) -> TextIO:
    """Returns the stream on top of `_Output`; one that is not the system's is returned as it is."""
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError, AttributeError):  # closed, in memory, or none at all
        return stream
    # In a notebook or a test the stream is an object of theirs, which stays as it is.
    if descriptor not in (STDOUT, STDERR) or not isinstance(stream, io.TextIOWrapper):
        return stream
    return io.TextIOWrapper(
        # Errors of a closed pipe come from the lowest layer, when a buffer is flushed, so that is
        # the one that has to handle them.
        io.BufferedWriter(_Output(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _redirect_to_null(descriptor: int) -> None:
    """Redirects a descriptor to the null device, for every library that writes to it."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    # The descriptor and not `sys.stdout`: libraries in C and child processes write to the former.
    os.dup2(null_device, descriptor)
    os.close(null_device)
