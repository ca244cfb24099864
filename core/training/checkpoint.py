"""Checkpoints that stay whole when the process is killed at any moment.

Each is written under a temporary name with its checksum, then renamed; the newest valid one wins.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from core.files import atomic_folder, flush_to_disk, sha256_file
from core.outside_files import check_stored, read_text

FORMAT = 2
"""The version of what is written. One of another version is refused: the keys of its stages'
states are not those of today."""
STATE, CHECKSUM = "state.pt", "sha256"
"""Files of a checkpoint."""
KEPT = 2
"""Older ones are deleted: one to go on from, one in case its disk block went bad."""


class CheckpointError(ValueError):
    """A folder has checkpoints, but none that can be used."""


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, then delete those it replaces.

    Raises:
        OSError: if the disk is not writable; earlier checkpoints remain.
        RuntimeError: from torch, with an OSError as its cause, if the disk is full; they remain.
    """
    # Zeros in front, so that names sort as numbers do: 000000900 before 000001000.
    final = folder / f"{step:09d}"
    with atomic_folder(final) as tmp_path:
        with (tmp_path / STATE).open("wb") as file:  # a full disk is then the system's error
            torch.save({"format": FORMAT, **state}, file)
        (tmp_path / CHECKSUM).write_text(sha256_file(tmp_path / STATE))
        flush_to_disk(tmp_path / STATE)
    # After a power failure the rename holds only if the folder's entries are on disk: older
    # checkpoints go no earlier.
    flush_to_disk(folder)
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint whose checksum matches, or None if the folder has none.

    It is loaded with `weights_only`, so that no code of it is run.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged, or the newest that is whole
            was written by another version of conformer-sweep.
    """
    paths = _checkpoints(folder)
    for path in paths:
        try:
            check_stored(path / STATE)
            # Damaged: the one before it is tried.
            if read_text(path / CHECKSUM) != sha256_file(path / STATE):
                continue
            state = torch.load(path / STATE, weights_only=True, map_location="cpu")
        except Exception:  # noqa: BLE001, S112  # torch raises whatever its reader trips over
            continue
        if isinstance(state, dict):
            return _without_format(state, path)
    if paths:
        raise CheckpointError(
            f"`{folder}` must hold a checkpoint that matches its checksum, but all {len(paths)}"
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


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first; what a kill left half written starts with a dot."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True)
