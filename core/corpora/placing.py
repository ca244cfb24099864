"""Folders and files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replaced(file: Path, text: str) -> None:
    """Write a file beside, then put it in the place of what is there."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; when all went well, it takes its place.

    What lay at `folder` is moved away first, so that whoever has its files open keeps them.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = beside.with_name(f"{beside.name}.old")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk does not say where
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
