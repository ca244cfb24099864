"""The identifier of a sweep, which stays the same wherever its folder moves."""

import re
import uuid
from contextlib import suppress
from pathlib import Path

from core.config.base import ConfigError
from core.files import whole_file
from core.outside_files import read_text

LONGEST_ID = 100
"""Bytes."""


def identity(folder: Path) -> str:
    """By what its runs are known: drawn once, kept in the folder, wherever that moves.

    Raises:
        ConfigError: if what lies there was not drawn by us; it becomes part of questions to MLflow.
    """
    file = folder / "sweep.id"
    if not file.exists():
        with suppress(FileExistsError), whole_file(file) as beside:  # of two, the first counts
            beside.write_text(uuid.uuid4().hex, encoding="utf-8")
    found = read_text(file, largest=LONGEST_ID).strip()
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        raise ConfigError(f"`{file}` must hold 32 digits and letters a to f, but does not.")
    return found
