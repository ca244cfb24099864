"""The command that brings a published recogniser in."""

from pathlib import Path
from typing import Annotated

import typer

from sweep.cli.options import Json, out
from sweep.cli.output.stages import StageReporter


def import_(
    model: Annotated[str, typer.Argument(help="A .nemo file, a folder, or a name of the hub.")],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle: a new folder.")],
    for_sherpa: Annotated[
        bool,
        typer.Option("--for-sherpa", help="Hear what sherpa-onnx will compute, if it is to run."),
    ] = False,
    as_json: Json = False,
) -> None:
    """A published recogniser becomes a bundle: a teacher, or a model to put to work."""
    with StageReporter("starting") as stages:
        from core.importers.load import import_model
        from core.pruning.space import whole_cost
        from sweep.cli.output.json_text import as_json as to_json

        found = import_model(model, to.absolute(), for_sherpa=for_sherpa, announce=stages.announce)
    shape, cost = found.model.shape, whole_cost(found.model, 10.0)
    told = {
        **found.report["imported"],
        "blocks": len(shape.blocks),
        "width": shape.width,
        "tokens": shape.vocabulary,
        "params": int(cost.params),
        "gflops": float(cost.flops) / 1e9,
        "frontend": shape.frontend_spec.to_plain(),
    }
    if as_json:
        out.print(to_json(told), markup=False)
        return
    out.print(
        f"{to}: {told['family']}, {told['blocks']} blocks of width {told['width']},"
        f" {told['params'] / 1e6:.2f} M parameters, {told['gflops']:.3g} GFLOP at 10 s,"
        f" {told['tokens']} tokens.",
        markup=False,
    )
    out.print(f'As a teacher: `[trial.teacher] bundle = "{to}"`.', markup=False)
