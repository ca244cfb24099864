"""The command `import`, which turns a published recognizer into a bundle."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sweep.cli.options import Json, out
from sweep.cli.output.stages import StageReporter


def import_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Recognizer: a .nemo file, a folder, or a name on the Hugging Face Hub.",
        ),
    ],
    to: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the bundle.")],
    for_sherpa: Annotated[
        bool,
        typer.Option("--for-sherpa", help="Use the feature extraction of sherpa-onnx."),
    ] = False,
    decoder: Annotated[
        Literal["all", "ctc", "transducer"],
        typer.Option(help="Decoders of a hybrid to import: both, or one."),
    ] = "all",
    as_json: Json = False,
) -> None:
    """Import a published recognizer as a bundle, to use as a teacher or as it is."""
    with StageReporter("starting") as stages:
        from core.importers.load import import_model
        from core.pruning.space import whole_cost
        from sweep.cli.output.json_text import as_json as to_json

        bundle = import_model(
            model,
            to.absolute(),
            for_sherpa=for_sherpa,
            branch=decoder,
            announce=stages.announce,
        )
    shape, cost = bundle.model.shape, whole_cost(bundle.model, 10.0)
    info = {
        **bundle.report["imported"],
        "blocks": len(shape.blocks),
        "width": shape.width,
        "tokens": shape.vocabulary,
        "decoders": shape.decoders,
        "params": int(cost.params),
        "gflops": float(cost.flops) / 1e9,
        "frontend": shape.frontend_spec.to_plain(),
    }
    if as_json:
        out.print(to_json(info), markup=False)
        return
    out.print(
        f"{to}: {info['family']}, {' and '.join(shape.decoders)}, {info['blocks']} blocks"
        f" of width {info['width']},"
        f" {info['params'] / 1e6:.2f} M parameters, {info['gflops']:.3g} GFLOP at 10 s,"
        f" {info['tokens']} tokens.",
        markup=False,
    )
    out.print(f'As a teacher: `[trial.teacher] bundle = "{to}"`.', markup=False)
