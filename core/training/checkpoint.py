"""Checkpoints that a kill at any moment leaves whole.

They are written beside, checksummed, then renamed; the newest valid one wins.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from core.files import remove_leftovers, temporary_path
from core.outside_files import check_stored, read_text

FORMAT = 2
"""The version of what is written. One of another version is refused: the keys of its stages'
states are not those of today."""
KEPT = 2
"""Older ones are deleted: one to go on from, one in case its disk block went bad."""


class CheckpointError(ValueError):
    """No checkpoint of a folder can be used although there are some."""


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, then delete those it replaces.

    Raises:
        OSError: if the disk is not writable; earlier checkpoints are still there.
        RuntimeError: torch's, with an OSError behind it, if the disk is full; they are, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    final = folder / f"{step:09d}"
    beside = temporary_path(final)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        with (beside / "state.pt").open("wb") as file:  # a full disk is then the system's error
            torch.save({"format": FORMAT, **state}, file)
        (beside / "sha256").write_text(_digest(beside / "state.pt"))
        _flush(beside / "state.pt")
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in _found(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint whose checksum holds, or None where there never was one.

    Weights only: a checkpoint runs no code.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged, or the newest that is whole
            was written by another version of conformer-sweep.
    """
    found = _found(folder)
    for path in found:
        try:
            check_stored(path / "state.pt")
            if read_text(path / "sha256") != _digest(path / "state.pt"):
                continue
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        except Exception:  # noqa: BLE001, S112  # torch raises whatever its reader trips over
            continue
        if isinstance(state, dict):
            return _without_format(state, path)
    if found:
        raise CheckpointError(
            f"`{folder}` must hold a checkpoint that matches its checksum, but all {len(found)}"
            " are damaged; delete the folder to start this trial again"
        )
    return None


def _without_format(state: dict[str, Any], path: Path) -> dict[str, Any]:
    written = state.pop("format", 1)
    if written != FORMAT:
        raise CheckpointError(
            f"`{path}` must be a checkpoint of format {FORMAT}, but is of format"
            f" {str(written)[:40]} instead; delete the folder `{path.parent}` to start again from"
            " its beginning, or go on with the version of conformer-sweep that wrote it (0.1 wrote"
            " format 1)"
        )
    return state


def _found(folder: Path) -> list[Path]:
    """Newest first; what a kill left half written starts with a dot."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold it before the name points to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
