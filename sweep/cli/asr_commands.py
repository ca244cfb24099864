"""Commands that run a model on speech: transcribe and evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sweep.cli.options import AnyModel, Json, out
from sweep.cli.output.stages import StageReporter

if TYPE_CHECKING:  # torch takes seconds
    from core.evaluation.transducer_beam import AnyDecoder

Depth = Annotated[
    int | None,
    typer.Option(help="Number of blocks to run: the best ones if the model lists them."),
]
Beam = Annotated[
    int | None,
    typer.Option(help="Width of the beam search (default: greedy decoding).", min=1),
]
LanguageModel = Annotated[
    Path | None, typer.Option("--lm", help="Word n-gram model in ARPA format, for --beam.")
]
LmWeight = Annotated[
    float | None,
    typer.Option(help="Weight of the log-probabilities of --lm (default: 0.5).", min=0),
]
WordScore = Annotated[
    float | None,
    typer.Option(
        help="Score added for each word, in nats; more gives more words (default: 1 with --lm)."
    ),
]
Runtime = Annotated[
    Literal["torch", "onnxruntime", "int8"] | None,
    typer.Option(help="Inference runtime (default: torch for bundles, onnxruntime for exports)."),
]


Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="Audio files, or folders that hold audio files."),
]
WrittenAs = Annotated[
    Literal["text", "json", "srt", "vtt"],
    typer.Option("--format", help="Format of the transcripts."),
]
Timestamps = Annotated[
    bool,
    typer.Option("--timestamps", help="Add the times and the confidence of each word to JSON."),
]
TranscriptFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for one transcript per audio file.")
]
Window = Annotated[
    float | None,
    typer.Option(
        help="Longest window in seconds (default: the length that the model was trained on).",
        min=1,
    ),
]
Overlap = Annotated[float, typer.Option(help="Seconds that neighboring windows share.", min=0)]


def transcribe(
    model: AnyModel,
    files: Files,
    written_as: WrittenAs = "text",
    timestamps: Timestamps = False,
    to: TranscriptFolder = None,
    window: Window = None,
    overlap: Overlap = 0.0,
    depth: Depth = None,
    runtime: Runtime = None,
    beam: Beam = None,
    lm: LanguageModel = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    as_json: Json = False,
) -> None:
    """Transcribe audio files of any length; a file that cannot be read stops no other."""
    from core.inference.windows import Windowing
    from sweep.cli.output.subtitles import check_format, transcript_paths
    from sweep.cli.output.transcribe import TranscriptionProgress, TranscriptWriter
    from sweep.cli.transcribe_files import audio_seconds, find_audio_files, transcribe_files

    written_as = "json" if as_json else written_as
    with StageReporter("reading the model"):
        recognizer = _open_recognizer(model, depth, runtime)
    trained_seconds = Windowing.fitting(recognizer.report).seconds
    windowing = Windowing(seconds=window or trained_seconds, overlap=overlap)
    decoder = _decoder(recognizer, beam, lm, lm_weight, word_score)
    named_files = find_audio_files(files)
    audio_files = [file for file, _ in named_files]
    # Before the first file is transcribed, which may take hours.
    check_format(
        written_as, num_files=len(audio_files), has_words=timestamps, has_folder=to is not None
    )
    output_files = transcript_paths(named_files, to, written_as) if to else None
    writer = TranscriptWriter(written_as, has_words=timestamps, paths=output_files)
    with TranscriptionProgress(audio_seconds(audio_files)) as bar:
        for result in transcribe_files(
            recognizer, audio_files, windowing=windowing, decoder=decoder, advance=bar.advance
        ):
            bar.print_result(writer.write, result)
    bar.summary(is_long=bar.seconds_done > windowing.seconds)
    writer.finish(num_files=len(audio_files))


Corpus = Annotated[
    str,
    typer.Argument(metavar="CORPUS", help="Corpus: demo, librispeech, a folder or a manifest."),
]
Split = Annotated[Literal["dev", "test"], typer.Option(help="Split of the corpus to evaluate.")]
Case = Annotated[
    Literal["as_written", "lower", "upper"],
    typer.Option(help="Letter case of the transcripts."),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="MODEL2", help="Second model, compared on the same utterances."),
]
Details = Annotated[
    Path | None, typer.Option(help="File (.json or .csv) for one row per utterance.")
]
Confusions = Annotated[
    int, typer.Option(help="Number of the most frequent confusions to list.", min=0)
]


def evaluate(
    model: AnyModel,
    corpus: Corpus,
    split: Split = "test",
    root: Annotated[str, typer.Option(help="Folder that holds LibriSpeech.")] = "",
    case: Case = "as_written",
    against: Against = None,
    details: Details = None,
    confusions: Confusions = 5,
    depth: Depth = None,
    runtime: Runtime = None,
    beam: Beam = None,
    lm: LanguageModel = None,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    as_json: Json = False,
) -> None:
    """Measure the word error rate of one model, or compare two, on a corpus."""
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
    names = [name for name in (model, against) if name is not None]
    transcripts = []
    with StageReporter("reading the model") as stages:
        models = [_open_recognizer(name, depth, runtime) for name in names]
        decoders = [_decoder(recognizer, beam, lm, lm_weight, word_score) for recognizer in models]
        config = corpus_config(corpus, root, case)
        with corpus_folder() as speech:
            for name, recognizer, decoder in zip(names, models, decoders, strict=True):
                stages.announce(f"transcribing `{split}` with {name}")
                transcripts.append(
                    transcribe_split(recognizer, config, split, Path(speech), decoder=decoder)
                )
    values = evaluation_values(transcripts, confusions)
    if details is not None:
        write_details(transcripts, details)
    out.print(to_json(values) if as_json else "\n".join(evaluation_lines(values)), markup=False)


def _open_recognizer(model: str, depth: int | None, runtime: Any) -> Any:
    """Returns a bundle, whole or with fewer blocks, or an export, as the runtime runs it."""
    import torch

    from core.export.benchmark import recognizer_in
    from core.inference.exported_model import open_recognizer
    from core.inference.recognizer import at_depth
    from sweep.snapshot import model_path

    threads = torch.get_num_threads()
    recognizer = open_recognizer(model_path(model), runtime, threads=threads)
    # Cut before it goes to a runtime: a graph cannot lose blocks any more.
    cut = recognizer if depth is None else at_depth(recognizer, depth)
    return recognizer_in(cut, runtime, threads=threads)


def _decoder(
    recognizer: Any,
    beam: int | None,
    lm: Path | None,
    lm_weight: float | None,
    word_score: float | None,
) -> "AnyDecoder | None":
    """Returns the beam search that the options ask for; None means greedy decoding."""
    from core.config.base import ConfigError

    if beam is None and (lm, lm_weight, word_score) == (None, None, None):
        return None
    if lm is None and lm_weight is not None:
        raise ConfigError(
            f"`--lm-weight` must go with `--lm`, but is {lm_weight:g} without one instead"
        )
    from core.evaluation.beam import BEAM, LM_WEIGHT, WORD_SCORE, BeamSearch
    from core.evaluation.transducer_beam import TransducerBeamSearch
    from core.inference.exported_model import ExportedRecognizer

    has_transducer = getattr(recognizer.model, "transducer", None) is not None
    if has_transducer and isinstance(recognizer, ExportedRecognizer):
        raise ConfigError(
            "`--beam` must go with a bundle where the model has a transducer, but this is an export"
            " instead; give the bundle that it was made from, or use the other program's own search"
        )
    make_search = TransducerBeamSearch.of if has_transducer else BeamSearch
    # A language model lowers the score of every word, so that short transcripts win without a
    # reward for each; without one there is nothing to make up for.
    if word_score is None:
        word_score = 0.0 if lm is None else WORD_SCORE
    return make_search(
        recognizer.tokenizer,
        width=BEAM if beam is None else beam,
        lm=lm,
        lm_weight=LM_WEIGHT if lm_weight is None else lm_weight,
        word_score=word_score,
    )
