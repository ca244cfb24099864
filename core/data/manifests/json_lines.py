"""Files of one JSON object a line, read without believing them.

A line ends at a newline alone, as JSON may hold any other separator. A byte-order mark is taken,
compression is recognized by its first bytes, and no size is believed.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.audio_decoding import CorpusError

LONGEST_LINE = 64 << 20
"""Bytes: far more than the longest record, far less than the memory."""
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One object, and where it stands."""

    file: Path
    number: int
    """Counted from 1."""
    values: dict[str, Any]

    @property
    def location(self) -> str:
        """File and line, for messages."""
        return f"`{self.file}`, line {self.number}"


def read_lines(file: Path) -> Iterator[Line]:
    """Yields the objects of a file, one at a time; blank lines are passed over.

    Raises:
        CorpusError: naming the file, the line and what is wrong with it.
    """
    number = 0
    try:
        with _open(file) as opened:
            # One byte more than allowed shows that a line is too long, without reading all of it.
            while line := opened.readline(LONGEST_LINE + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if line.strip():
                    yield Line(file=file, number=number, values=parse_object(line))
    except _LineError as error:
        raise CorpusError(f"`{file}`, line {number}, must be {error}.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(f"`{file}` must be a readable file, but is not ({reason}).") from None


def first_line(file: Path) -> Line | None:
    """The first object of a file, if it has any."""
    return next(read_lines(file), None)


def parse_object(text: bytes) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        ValueError: saying what it must be and what it is; the message has no name in it.
    """
    if len(text) > LONGEST_LINE:
        raise _LineError(f"a line of at most {LONGEST_LINE >> 20} MiB", "longer")
    try:
        values = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _LineError("UTF-8", f"not from byte {error.start} on") from None
    except json.JSONDecodeError as error:
        raise _LineError("one JSON object", f"not ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):  # a number of too many digits, brackets too deep
        raise _LineError("one JSON object", "too deep or holds too long a number") from None
    if not isinstance(values, dict):
        raise _LineError("one JSON object", f"a {_KINDS[type(values)]} instead")
    return values


class _LineError(ValueError):
    def __init__(self, rule: str, actual: str) -> None:
        super().__init__(f"{rule}, but is {actual}")


_KINDS = {
    str: "string",
    int: "number",
    float: "number",
    bool: "truth value",
    list: "list",
    type(None): "null",
}


def _open(file: Path) -> io.BufferedReader | gzip.GzipFile:
    """A regular file alone: a pipe or a device might never end."""
    if not file.is_file():
        kind = "something else" if file.exists() else "missing"
        raise CorpusError(f"`{file}` must be a regular file, but is {kind} instead.")
    with file.open("rb") as opened:
        is_packed = opened.read(2) == _GZIP
    return gzip.open(file, "rb") if is_packed else file.open("rb")
