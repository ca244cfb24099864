"""Commands that keep a sweep: pack, unpack."""

from pathlib import Path
from typing import Annotated

import typer

from sweep.commands.terminal import Sweep, out

File = Annotated[Path, typer.Argument(metavar="FILE", help="A packed sweep, .tar.gz.")]


def pack(folder: Sweep, file: File) -> None:
    """Put a whole sweep into one file, to keep it or to move it."""
    from sweep.moving import pack as write

    write(folder, file)
    out.print(f"wrote {file}; conformer-sweep unpack {file} DIR makes it a sweep again")


def unpack(file: File, folder: Sweep) -> None:
    """Make a sweep's directory of such a file; it goes on from where it was."""
    from sweep.moving import unpack as read

    read(file, folder)
    out.print(f"made {folder}; conformer-sweep status {folder} says how far it has come")
