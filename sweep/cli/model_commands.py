"""Commands about a model itself: bench and adapt."""

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
            help="The folder of a bundle or of an export, DIR:TRIAL of a sweep, or an ONNX graph.",
        ),
    ],
    seconds: Annotated[float, typer.Option(help="Length of an utterance.", min=0.1)] = 10.0,
    batch: Annotated[int, typer.Option(help="Utterances at a time for throughput.", min=1)] = 8,
    threads: Annotated[int, typer.Option(help="Of each runtime.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Passes that a median is of, at most.", min=1)] = 7,
    int8: Annotated[bool, typer.Option("--int8", help="In 8-bit integers, too.")] = False,
    as_json: Json = False,
) -> None:
    """How fast a model is here: latency, real-time factor and throughput, in each runtime."""
    with StageReporter("starting") as stages:
        from core.export.benchmark import benchmark_model
        from sweep.cli.output.bench import bench_table, bench_title
        from sweep.cli.output.json_text import as_json as to_json
        from sweep.snapshot import model_path

        found = benchmark_model(
            model_path(model),
            utterance_seconds=seconds,
            batch=batch,
            threads=threads,
            repeats=repeats,
            is_int8=int8,
            announce=stages.announce,
        )
    if as_json:
        out.print(to_json(found), markup=False)
        return
    out.print(bench_title(found), markup=False)
    print_table(bench_table(found))


def adapt(
    model: Model,
    corpus: Annotated[str, typer.Option(help="New speech: demo, librispeech or a folder.")],
    to: Annotated[Path, typer.Option("--out", help="The adapted bundle: a new folder.")],
    memory: Annotated[str, typer.Option(help="The old speech; some of it is heard again.")] = "",
    memory_share: Annotated[
        float | None, typer.Option(help="How much of it: 0.05 of its training utterances.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of both stages together; 600.", min=1)] = None,
    root: Annotated[str, typer.Option(help="Folder of librispeech.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="TOML of `[trial]` and `[memory]` for all else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Teach a model new words; it keeps the old ones and its shape. Again, it goes on."""
    from core.adaptation import adapt as adapted
    from sweep.cli.output.adapt import adaptation_config, adapted_lines, report_line
    from sweep.cli.output.json_text import as_json as to_json
    from sweep.snapshot import model_path

    order = adaptation_config(
        corpus, memory, root=root, steps=steps, memory_share=memory_share, file=config
    )
    story = adapted(order, model_path(model), to.absolute())
    found: dict[str, Any] | None = None
    while found is None:
        try:
            err.print(report_line(next(story)), markup=False)
        except StopIteration as stop:
            found = stop.value
    lines = [to_json(found)] if as_json else adapted_lines(found or {})
    out.print("\n".join(lines), markup=False)
