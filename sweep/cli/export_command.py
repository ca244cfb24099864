"""The command `export`, which writes a model in a format of other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sweep.cli.options import Json, Model, out
from sweep.cli.output.stages import StageReporter


def export(
    model: Model,
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL", help="Number of the trial, if MODEL is the DIR of a sweep."
        ),
    ] = "",
    *,
    to: Annotated[
        Literal["bundle", "onnx", "sherpa", "onnx-asr", "transformers"],
        typer.Option(help="Format of the export."),
    ],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the export.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Export the model in 8-bit integers, too.")
    ] = False,
    verify_on: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Audio file on which the export's runtime is verified; repeat for several.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to a folder that other programs load, verified before it is written."""
    with StageReporter("starting") as stages:
        from core.export.export import export as exported
        from sweep.cli.output.json_text import as_json as to_json
        from sweep.snapshot import model_path

        done = exported(
            # `export DIR 7` and `export DIR:7` mean the same.
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
