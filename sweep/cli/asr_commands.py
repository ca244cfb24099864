"""Commands in which a model listens: transcribe and evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sweep.cli.options import AnyModel, Json, out
from sweep.cli.output.transcribe import Following, Telling

if TYPE_CHECKING:  # torch takes seconds
    from core.evaluation.word_alignment import Decoder

Depth = Annotated[
    int | None, typer.Option(help="With so many blocks: the best, if it says which; or the first.")
]
Beam = Annotated[
    int | None,
    typer.Option(help="Search among so many hypotheses; else each frame's best token.", min=1),
]
LanguageModel = Annotated[
    Path | None, typer.Option("--lm", help="An n-gram model of words in ARPA format, for --beam.")
]
LmWeight = Annotated[
    float | None, typer.Option(help="Of its log-probabilities beside the recogniser's; 0.5.", min=0)
]
WordScore = Annotated[
    float | None,
    typer.Option(help="Added for each word, in nats; more makes more words; 1 with --lm."),
]
Runtime = Annotated[
    Literal["torch", "onnxruntime", "int8"] | None,
    typer.Option(help="What runs the model; torch for bundles, onnxruntime for exports."),
]


def transcribe(
    model: AnyModel,
    files: Annotated[list[Path], typer.Argument(help="Audio files, or folders of them.")],
    written_as: Annotated[
        Literal["text", "json", "srt", "vtt"], typer.Option("--format", help="Of what is written.")
    ] = "text",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="In JSON: each word's seconds and confidence.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--out", help="A folder that gets one transcript a file.")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(help="Most seconds heard at a time; else by what the model learned.", min=1),
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Seconds that two neighbouring windows share.", min=0)
    ] = 0.0,
    depth: Depth = None,
    runtime: Runtime = None,
    beam: Beam = None,
    lm: LanguageModel = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    as_json: Json = False,
) -> None:
    """What a model hears in audio files, however long; one that cannot be read stops no other."""
    from core.inference.windows import Windowing
    from sweep.cli.output.subtitles import check_format, places
    from sweep.cli.transcribe_files import files_in, results, seconds_in

    written_as = "json" if as_json else written_as
    opened = _opened(model, depth, runtime)
    fitting = Windowing.fitting(opened.report).seconds
    windowing = Windowing(seconds=window or fitting, overlap=overlap)
    decoder = _decoder(opened, beam, lm, lm_weight, word_score)
    named = files_in(files)
    found = [file for file, _ in named]
    check_format(written_as, num_files=len(found), has_words=timestamps, has_folder=to is not None)
    goes_to = places(named, to, written_as) if to else None
    telling = Telling(written_as, has_words=timestamps, places=goes_to)
    with Following(seconds_in(found)) as bar:
        for result in results(
            opened, found, windowing=windowing, decoder=decoder, advance=bar.advance
        ):
            bar.aside(telling.tell, result)
    bar.summary(is_long=bar.heard > windowing.seconds)
    telling.end(num_files=len(found))


def evaluate(
    model: AnyModel,
    corpus: Annotated[str, typer.Argument(help="demo, librispeech, a folder or a manifest.")],
    split: Annotated[Literal["dev", "test"], typer.Option(help="Which part.")] = "test",
    root: Annotated[str, typer.Option(help="Folder of librispeech.")] = "",
    case: Annotated[
        Literal["as_written", "lower", "upper"], typer.Option(help="In which transcripts are read.")
    ] = "as_written",
    against: Annotated[
        str | None, typer.Option(metavar="MODEL2", help="Another model, compared on the same.")
    ] = None,
    details: Annotated[
        Path | None, typer.Option(help="A .json or .csv that gets a row an utterance.")
    ] = None,
    confusions: Annotated[
        int, typer.Option(help="So many of the most frequent ones are told.", min=0)
    ] = 5,
    depth: Depth = None,
    runtime: Runtime = None,
    beam: Beam = None,
    lm: LanguageModel = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    as_json: Json = False,
) -> None:
    """Word error rate of a model on a corpus, with its interval; which errors; beside another."""
    from core.inference.recognizer import transcribe_split
    from sweep.cli.corpus_option import corpus_config, corpus_folder
    from sweep.cli.output.evaluate import (
        check_details,
        evaluation_lines,
        evaluation_values,
        write_details,
    )
    from sweep.cli.output.json_text import as_json as to_json

    if details is not None:
        check_details(details)
    models = [_opened(name, depth, runtime) for name in (model, against) if name is not None]
    decoders = [_decoder(opened, beam, lm, lm_weight, word_score) for opened in models]
    config = corpus_config(corpus, root, case)
    with corpus_folder() as speech:
        found = [
            transcribe_split(opened, config, split, Path(speech), decoder=decoder)
            for opened, decoder in zip(models, decoders, strict=True)
        ]
    values = evaluation_values(found, confusions)
    if details is not None:
        write_details(found, details)
    out.print(to_json(values) if as_json else "\n".join(evaluation_lines(values)), markup=False)


def _opened(model: str, depth: int | None, runtime: Any) -> Any:
    """A bundle, whole or of fewer blocks, or an export, as the runtime runs it."""
    import torch

    from core.export.benchmark import recognizer_in
    from core.inference.exported_model import open_recognizer
    from core.inference.recognizer import at_depth
    from sweep.snapshot import model_path

    threads = torch.get_num_threads()
    opened = open_recognizer(model_path(model), runtime, threads=threads)
    whole = opened if depth is None else at_depth(opened, depth)
    return recognizer_in(whole, runtime, threads=threads)


def _decoder(
    opened: Any,
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    word_score: float | None,
) -> "Decoder | None":
    """A beam search if one is asked for; None takes each frame's best token."""
    from core.config.base import ConfigError

    if beam is None and (lm, lm_weight, word_score) == (None, None, None):
        return None
    if lm is None and lm_weight is not None:
        raise ConfigError(
            f"`--lm-weight` must go with `--lm`, but is {lm_weight:g} without one instead"
        )
    from core.evaluation.beam import BEAM, LM_WEIGHT, WORD_SCORE, BeamSearch

    if word_score is None:
        word_score = 0.0 if lm is None else WORD_SCORE
    return BeamSearch(
        opened.tokenizer,
        width=BEAM if beam is None else beam,
        lm=lm,
        lm_weight=LM_WEIGHT if lm_weight is None else lm_weight,
        word_score=word_score,
    )
