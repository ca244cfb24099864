"""The command `sensitivity`: how far the output moves as parts of a model lose units."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from core.outside_files import read_json
from sweep.cli.calibration_options import MINUTES, AnyRecognizer, Audio, Minutes, Root, Tables
from sweep.cli.options import Json, out, print_table
from sweep.cli.output.json_text import as_json as as_text
from sweep.cli.output.stages import StageReporter


def sensitivity(
    model: AnyRecognizer,
    to: Annotated[Path, typer.Option("--out", help="New folder for the results.")],
    audio: Audio = None,
    minutes: Minutes = None,
    root: Root = "",
    tables: Tables = None,
    seed: Annotated[int, typer.Option(help="Seed of the random generator.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Show which parts of a model matter: the divergence of its output as each part loses units.

    `prune --audio` with the same model, speech, --tables and --out reuses these tables.
    """
    if not audio:
        raise ValueError("`--audio` must name speech, but is missing")
    with StageReporter("starting") as stages:
        from core.methods.obs import Settings
        from core.one_shot.with_speech import SENSITIVITY, PruningRequest, measure_sensitivity
        from sweep.cli.calibration_options import open_unpruned, read_speech, title_of
        from sweep.cli.corpus_option import corpus_folder
        from sweep.report.sensitivity_page import write_sensitivity

        folder = to.absolute()
        source, dense = open_unpruned(model, folder, announce=stages.announce)
        stages.announce("reading the speech")
        with corpus_folder() as spoken:
            speech = read_speech(
                audio,
                dense.model.frontend_spec,
                seconds=60 * (minutes or MINUTES),
                root=root,
                spoken=Path(spoken),
            )
        request = PruningRequest(
            model=source, settings=Settings(tables=tables or "fisher"), seed=seed
        )
        measure_sensitivity(request, dense, speech, folder, announce=stages.announce)
        stages.announce("drawing")
        rows = read_json(folder / SENSITIVITY)
        write_sensitivity(rows, folder, title=title_of(model, source))
    if as_json:
        out.print(as_text(rows), markup=False)
        return
    print_table(sensitivity_table(rows))
    out.print(f"page  {to}/sensitivity.html", markup=False)


def sensitivity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a row for each part, in order of computation."""
    from sweep.report.sensitivity_page import SHARES, kl_of_share

    table = Table(
        title="Sensitivity",
        caption="KL in nats a frame from the unpruned model's output, without so many units",
    )
    for heading in ("part", "units", "FLOPs (%)", "a quarter", "half", "three quarters", "all"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for row in rows:
        levels = [kl_of_share(row, share) for share in SHARES]
        table.add_row(
            row["axis"],
            f"{row['units']}",
            f"{100 * row['flops_share']:.1f}",
            *(f"{kl:.2g}" for kl in levels),
        )
    return table
