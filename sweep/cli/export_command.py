"""The command by which a model leaves: export."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sweep.cli.options import Json, Model, out
from sweep.cli.output.stages import StageReporter


def export(
    model: Model,
    trial: Annotated[str, typer.Argument(help="Of a sweep, if MODEL is only its DIR.")] = "",
    *,
    to: Annotated[
        Literal["bundle", "onnx", "sherpa", "transformers"],
        typer.Option(help="What will load it."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    int8: Annotated[bool, typer.Option("--int8", help="Also in 8-bit integers.")] = False,
    verify_on: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Speech to verify the texts of sherpa-onnx or transformers on; again for more.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Leave with a model: a folder that other programs load, verified before it is there."""
    with StageReporter("starting") as stages:
        from core.export.export import export as exported
        from sweep.cli.output.json_text import as_json as to_json
        from sweep.snapshot import model_path

        done = exported(
            model_path(f"{model}:{trial}" if trial else model),
            folder.absolute(),
            to,
            is_int8=int8,
            verify_on=verify_on or (),
            announce=stages.announce,
        )
    if as_json:
        out.print(to_json(asdict(done)), markup=False)
        return
    for line in done.verified:
        out.print(line, markup=False)
    out.print(f"{done.folder}: {', '.join(done.files)}", markup=False)
