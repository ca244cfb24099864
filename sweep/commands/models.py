"""Commands that put a model to work: transcribe, evaluate, adapt."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sweep.commands.terminal import Json, Model, err, out

Depth = Annotated[
    int | None, typer.Option(help="With so many blocks: the best, if it says which; or the first.")
]


def transcribe(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """What a model hears in audio files."""
    from core.deploy.recognise import transcribe as recognise
    from sweep.views import as_json as to_json

    opened = _opened(model, depth)
    heard: list[dict[str, str]] = []
    for file, text in recognise(opened, files):
        heard.append({"file": str(file), "text": text})
        if not as_json:
            out.print(f"{file}: {text}", markup=False)
    if as_json:
        out.print(to_json(heard), markup=False)


def evaluate(
    model: Model,
    corpus: Annotated[str, typer.Argument(help="demo, librispeech or a folder.")],
    split: Annotated[Literal["dev", "test"], typer.Option(help="Which part.")] = "test",
    root: Annotated[str, typer.Option(help="Folder of librispeech.")] = "",
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Word error rate of a model on a corpus, with its interval."""
    from core.deploy.recognise import evaluate as judge
    from sweep.views import as_json as to_json
    from sweep.views import corpus_config, corpus_folder, wer_line, wer_values

    opened = _opened(model, depth)
    with corpus_folder() as speech:
        report: Any = judge(opened, corpus_config(corpus, root), split, Path(speech))
    values = wer_values(report)
    out.print(to_json(values) if as_json else wer_line(values), markup=False)


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
    from sweep.adapting import adaptation_config, adapted_lines, report_line
    from sweep.views import as_json as to_json
    from sweep.views import model_folder

    order = adaptation_config(
        corpus, memory, root=root, steps=steps, memory_share=memory_share, file=config
    )
    story = adapted(order, model_folder(model), to.absolute())
    found: dict[str, Any] | None = None
    while found is None:
        try:
            err.print(report_line(next(story)), markup=False)
        except StopIteration as stop:
            found = stop.value
    lines = [to_json(found)] if as_json else adapted_lines(found or {})
    out.print("\n".join(lines), markup=False)


def _opened(model: str, depth: int | None) -> Any:
    """A bundle, whole or of fewer blocks."""
    from core.deploy import bundle
    from core.deploy.recognise import at_depth
    from sweep.views import model_folder

    opened = bundle.load(model_folder(model))
    return opened if depth is None else at_depth(opened, depth)
