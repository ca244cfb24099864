"""Commands that keep what a sweep found: pack, unpack, promote."""

from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import Json, Sweep, err, out

File = Annotated[Path, typer.Argument(metavar="FILE", help="A packed sweep, .tar.gz.")]


def pack(folder: Sweep, file: File) -> None:
    """Put a whole sweep into one file, to keep it or to move it."""
    from sweep.storage.archive import pack as write

    write(folder, file)
    out.print(f"wrote {file}; conformer-sweep unpack {file} DIR makes it a sweep again")


def unpack(
    file: File,
    folder: Sweep,
    trust: Annotated[
        bool, typer.Option("--trust", help="The file is my own: keep the servers that it names.")
    ] = False,
) -> None:
    """Make a sweep's directory of such a file; it goes on from where it was."""
    from sweep.storage.archive import unpack as read

    for line in read(file, folder, is_trusted=trust):
        err.print(line)
    out.print(f"made {folder}; conformer-sweep status {folder} says how far it has come")


def promote(
    folder: Sweep,
    trial: Annotated[str, typer.Argument(help="Its number; 7.2 is a later outcome of trial 7.")],
    name: Annotated[str, typer.Option(help="Of the registered model.")],
    alias: Annotated[str, typer.Option(help="What points at it from now on.")],
    as_json: Json = False,
) -> None:
    """Put a finished trial's model into MLflow's registry, where NAME@ALIAS finds it."""
    from dataclasses import asdict

    from sweep.cli.output.json_text import as_json as to_json
    from sweep.tracking.model_registry import promote as register

    done = register(folder.resolve(), trial, name=name, alias=alias)
    if as_json:
        out.print(to_json({**asdict(done), "uri": done.uri}), markup=False)
    else:
        what = "registered as" if done.is_new else "was there already as"
        out.print(f"{what} version {done.version}; {done.uri} points at it", markup=False)
