"""Checkpoints that stay whole when the process is killed at any moment.

They are written under a temporary name, checksummed, then renamed; the newest valid one is loaded.
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
NUM_KEPT = 2
"""Older ones are deleted: one to resume from, one in case the newest is damaged on disk."""


class CheckpointError(ValueError):
    """A folder has checkpoints, but none that can be used."""


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, then delete those it replaces.

    Raises:
        OSError: if the disk is not writable; earlier checkpoints remain.
        RuntimeError: from torch, with an OSError as its cause, if the disk is full; they remain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    final = folder / f"{step:09d}"
    tmp_path = temporary_path(final)
    try:
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        with (tmp_path / "state.pt").open("wb") as file:  # so that a full disk raises OSError
            torch.save({"format": FORMAT, **state}, file)
        (tmp_path / "sha256").write_text(_digest(tmp_path / "state.pt"))
        _flush(tmp_path / "state.pt")
        shutil.rmtree(final, ignore_errors=True)
        tmp_path.rename(final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    for old in _checkpoint_folders(folder)[NUM_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint whose checksum matches, or None if the folder has none.

    It is loaded with `weights_only`, so that no code of it is run.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged, or the newest that is whole
            was written by another version of conformer-sweep.
    """
    checkpoints = _checkpoint_folders(folder)
    for path in checkpoints:
        try:
            check_stored(path / "state.pt")
            if read_text(path / "sha256") != _digest(path / "state.pt"):
                continue
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        except Exception:  # noqa: BLE001, S112  # torch raises errors of many classes
            continue
        if isinstance(state, dict):
            return _without_format(state, path)
    if checkpoints:
        raise CheckpointError(
            f"`{folder}` must hold a checkpoint that matches its checksum, but all"
            f" {len(checkpoints)} are damaged; delete the folder to start this trial again"
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


def _checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, newest first; incomplete ones start with a dot."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Write a file to disk before it gets its final name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
