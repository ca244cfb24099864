"""Commands that measure or change a model: bench and adapt."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sweep.cli.options import Json, Model, err, out, print_table
from sweep.cli.output.stages import StageReporter


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Model: folder of a bundle or an export, DIR:TRIAL of a sweep, or an ONNX graph.",
        ),
    ],
    seconds: Annotated[
        float, typer.Option(help="Length of the utterance in seconds.", min=0.1)
    ] = 10.0,
    batch: Annotated[
        int, typer.Option(help="Utterances in a batch when throughput is measured.", min=1)
    ] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads of each runtime.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Largest number of timed passes.", min=1)] = 7,
    int8: Annotated[
        bool, typer.Option("--int8", help="Measure the model in 8-bit integers, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure latency, real-time factor and throughput of a model in each runtime."""
    with StageReporter("starting") as stages:
        from core.export.benchmark import benchmark_model
        from sweep.cli.output.bench import bench_table, bench_title
        from sweep.cli.output.json_text import as_json as to_json
        from sweep.snapshot import model_path

        measured = benchmark_model(
            model_path(model),
            utterance_seconds=seconds,
            batch=batch,
            threads=threads,
            repeats=repeats,
            is_int8=int8,
            announce=stages.announce,
        )
    if as_json:
        out.print(to_json(measured), markup=False)
        return
    out.print(bench_title(measured), markup=False)
    print_table(bench_table(measured))


def adapt(
    model: Model,
    corpus: Annotated[
        str, typer.Option(help="Speech with the new words: demo, librispeech or a folder.")
    ],
    to: Annotated[Path, typer.Option("--out", help="New folder for the adapted bundle.")],
    memory: Annotated[
        str, typer.Option(help="Corpus with the old words; a share of it is trained on again.")
    ] = "",
    memory_share: Annotated[
        float | None,
        typer.Option(help="Share of --memory's training utterances to use (default: 0.05)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Total optimizer steps (default: 600).", min=1)
    ] = None,
    root: Annotated[str, typer.Option(help="Folder that holds LibriSpeech.")] = "",
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with the tables `trial` and `memory` for all other settings."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Teach a model new words while it keeps the old ones and its shape; resumable."""
    from core.adaptation import adapt as adapted
    from sweep.cli.output.adapt import adaptation_config, adaptation_lines, report_line
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.snapshot import model_path

    settings = adaptation_config(
        corpus, memory, root=root, steps=steps, memory_share=memory_share, file=config
    )
    reports = adapted(settings, model_path(model), to.absolute())
    summary: dict[str, Any] | None = None
    # By hand, because a generator's return value is lost in a `for` loop.
    while summary is None:
        try:
            err.print(report_line(next(reports)), markup=False)
        except StopIteration as stop:
            summary = stop.value
    lines = [to_json(summary)] if as_json else adaptation_lines(summary or {})
    out.print("\n".join(lines), markup=False)
