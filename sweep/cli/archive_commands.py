"""Commands that keep the results of a sweep: pack, unpack and promote."""

from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import Json, Sweep, err, out

File = Annotated[Path, typer.Argument(metavar="FILE", help="Packed sweep, a .tar.gz file.")]


def pack(folder: Sweep, file: File) -> None:
    """Pack a whole sweep into one file, to keep it or to move it."""
    from sweep.storage.archive import pack as write

    write(folder, file)
    out.print(f"wrote {file}; conformer-sweep unpack {file} DIR unpacks it again")


def unpack(
    file: File,
    folder: Sweep,
    trust: Annotated[
        bool, typer.Option("--trust", help="Trust the file and keep the servers that it names.")
    ] = False,
) -> None:
    """Unpack a packed sweep into a directory, from where it can continue."""
    from sweep.storage.archive import unpack as read

    for line in read(file, folder, is_trusted=trust):
        # On stderr, as the notes are warnings about what was changed, and no result.
        err.print(line)
    out.print(f"made {folder}; conformer-sweep status {folder} shows its progress")


def promote(
    folder: Sweep,
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL", help="Number of the trial; 7.2 is a later outcome of trial 7."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    alias: Annotated[str, typer.Option(help="Alias that points to the new version.")],
    as_json: Json = False,
) -> None:
    """Register the model of a finished trial in MLflow as NAME@ALIAS."""
    from dataclasses import asdict

    from sweep.cli.output.json_text import as_json as to_json
    from sweep.tracking.model_registry import promote as register

    registered = register(folder.resolve(), trial, name=name, alias=alias)
    if as_json:
        out.print(to_json({**asdict(registered), "uri": registered.uri}), markup=False)
    else:
        what = "registered as" if registered.is_new else "was already registered as"
        out.print(
            f"{what} version {registered.version}; {registered.uri} points to it", markup=False
        )
