"""Files that others may have written, read within bounds that are checked before anything is read.

Only plain files are opened: a pipe would be waited for without end, a device never ends. What a
file says of its own sizes is believed only where its real size allows it.
"""

import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes longer than most readers
    import numpy as np

LARGEST_JSON = 256 * 2**20
"""Bytes; the index of a corpus of a million utterances has less."""
LARGEST_SETTINGS = 16 * 2**20
LARGEST_MODEL_OF_TOKENS = 64 * 2**20


class OutsideFileError(ValueError):
    """A file that is not read, as it is no plain file or too large, or says what cannot be."""


def check_plain(path: Path, *, largest: int) -> None:
    """Refuse what is no plain file, or has too many bytes.

    Raises:
        OutsideFileError: saying which.
        OSError: if there is no such file.
    """
    # Raises if there is no such file, before it can be taken for another kind.
    size = path.stat().st_size
    if not path.is_file():
        raise OutsideFileError(f"`{path.name}` must be a plain file, but is another kind")
    if size > largest:
        raise OutsideFileError(
            f"`{path.name}` must have at most {largest} bytes, but has {size} instead"
        )


def read_bytes(path: Path, *, largest: int) -> bytes:
    """A file's content.

    Raises:
        OutsideFileError: if it is no plain file, or too large.
        OSError: if there is no such file.
    """
    check_plain(path, largest=largest)
    return path.read_bytes()


def read_text(path: Path, *, largest: int = LARGEST_SETTINGS) -> str:
    """A file's content as UTF-8.

    Raises:
        OutsideFileError: if it is no plain file, or too large.
        UnicodeDecodeError: if it is not UTF-8.
        OSError: if there is no such file.
    """
    return read_bytes(path, largest=largest).decode("utf-8")


def read_json(path: Path, *, largest: int = LARGEST_JSON) -> Any:
    """The value that a file of JSON holds.

    Raises:
        ValueError: if it is none, too large, or nested too deeply.
        OSError: if there is no such file.
    """
    text = read_text(path, largest=largest)
    try:
        return json.loads(text)
    # 100,000 opening brackets are enough for that.
    except RecursionError:
        raise OutsideFileError(f"`{path.name}` must be JSON, but is nested too deeply") from None


def read_arrays(path: Path, names: Collection[str]) -> dict[str, "np.ndarray"]:
    """NumPy arrays that `np.savez` wrote; no pickled object comes to life.

    Args:
        path: of the file.
        names: of the arrays that it must hold.

    Raises:
        ValueError: if it is damaged, lacks one, or claims to hold more than it has bytes.
        OSError: if there is no such file.
    """
    import numpy as np  # noqa: PLC0415  # see above

    check_stored(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (KeyError, MemoryError, OverflowError, zipfile.BadZipFile, EOFError) as error:
        raise OutsideFileError(f"`{path.name}` must hold arrays, but: {error!r}") from None


def check_stored(path: Path) -> None:
    """Refuse a zip archive that is packed, or claims more than its bytes.

    NumPy and torch write theirs unpacked; a packed one was made to fill the memory.

    Raises:
        OutsideFileError: if it is none, or such a one.
        OSError: if there is no such file.
    """
    if not path.is_file():
        path.stat()  # the system says so if there is none
        raise OutsideFileError(f"`{path.name}` must be a plain file, but is another kind")
    try:
        with zipfile.ZipFile(path) as records:
            status = records.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise OutsideFileError(f"`{path.name}` must be a zip archive, but: {error}") from None
    is_packed = any(record.compress_type != zipfile.ZIP_STORED for record in status)
    # Records may also overlap, so that each claims the same bytes.
    if is_packed or sum(record.file_size for record in status) > path.stat().st_size:
        raise OutsideFileError(f"`{path.name}` must be unpacked inside, but is packed")
