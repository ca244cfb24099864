"""Whether sherpa-onnx hears what `transcribe` hears: one bundle, a corpus, in floats and in 8 bits.

In floats every text must be equal; in 8-bit integers the word error rate may differ by 0.3 %.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import CorpusConfig
from core.data.audio import audio_files
from core.data.corpus import SplitName, open_split
from core.data.tokenizer import transcript
from core.evaluation.wer import word_errors
from core.export.export import export
from core.export.sherpa import Precision
from core.export.verify import Texts, compare_texts

PRECISIONS: tuple[Precision, ...] = ("float", "int8")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--corpus", required=True, help="a folder in the LibriSpeech layout")
    parser.add_argument("--exported", type=Path, help="its export to sherpa with --int8, if done")
    args = parser.parse_args()
    opened = bundle.load(args.bundle)
    files, said = zip(*utterances(CorpusConfig(name=args.corpus)), strict=True)
    with TemporaryDirectory() as scratch:
        folder = args.exported or Path(scratch) / "export"
        if not args.exported:
            export(args.bundle, folder, "sherpa", is_int8=True)
        heard = {name: compare_texts(opened, folder, files, name) for name in PRECISIONS}
    rows = [row(name, texts, said) for name, texts in heard.items()]
    first = next(iter(heard.values()))
    emit("sherpa", rows, judged(rows) | {"sherpa_onnx": first.version}, args)


def utterances(corpus: CorpusConfig) -> Iterator[tuple[Path, str]]:
    """Files of dev and test, and what is said in them."""
    splits: tuple[SplitName, ...] = ("dev", "test")
    for split in splits:
        for cut in open_split(corpus, Path(), split):
            (file,) = audio_files(cut)
            yield file, transcript(cut)


def row(name: str, texts: Texts, said: Sequence[str]) -> dict[str, Any]:
    """Texts equal to those of `transcribe`, alone and in batches, and word error rates."""
    return {
        "name": name,
        "utterances": len(said),
        "equal": texts.equal,
        "with_words": texts.with_words,
        "wer_transcribe": word_errors(said, texts.reference).wer,
        "wer_alone": word_errors(said, texts.alone).wer,
        "wer_together": word_errors(said, texts.together).wer,
    }


def judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the laws are about."""
    floats, integers = rows
    added = max(integers[key] - floats[key] for key in ("wer_alone", "wer_together"))
    return {"different": floats["utterances"] - floats["equal"], "wer_added_int8": added}


if __name__ == "__main__":
    main()
