"""The address that a sweep's directory is a copy of; known without any library of a store."""

from pathlib import Path

COPY_FOLDER = ".store"
"""Folder of a working copy's own notes; it is never sent."""
ADDRESS = "address"
"""The note with the address of the store."""


def is_address(text: str) -> bool:
    """Returns whether a command's DIR names an object store and not a folder."""
    return "://" in text


def address_of(folder: Path) -> str | None:
    """Returns the address that a directory is a working copy of, or None for any other."""
    note = folder / COPY_FOLDER / ADDRESS
    return note.read_text(encoding="utf-8") if note.is_file() else None


def display_name(folder: Path) -> str:
    """Returns the name to show for a directory: of a working copy, its address."""
    return address_of(folder) or str(folder)
