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
    """The identifier of a sweep: created once, stored in its folder, and moved with it.

    Raises:
        ConfigError: if the file holds anything else; the identifier is part of MLflow's queries.
    """
    file = folder / "sweep.id"
    if not file.exists():
        # If two processes create it, the first one counts.
        with suppress(FileExistsError), whole_file(file) as tmp_path:
            tmp_path.write_text(uuid.uuid4().hex, encoding="utf-8")
    text = read_text(file, largest=LONGEST_ID).strip()
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise ConfigError(f"`{file}` must hold 32 digits and letters a to f, but does not.")
    return text
