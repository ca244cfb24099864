"""Long audio by windows: speed, memory, and whether the text depends on where windows lie.

Utterances of a corpus are joined with pauses to --minutes of speech in one file, which a bundle
transcribes with the windows of `transcribe`; with the first two of them meeting elsewhere, half a
window from the start; without its first --late seconds; and utterance by utterance. Words agree
that the alignment of two texts finds equal. By default --late is a whole number of output frames:
windows then hear the same frames. Of 7.7 s, half a frame more, a model of 35 % WER heard only 69 %
of its words again: it hears what lies between its frames otherwise, wherever windows are.
Memory is the peak of this process above what it was before, the file of a minute having been heard.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.corpus import open_split
from core.data.tokenizer import transcript as said_in
from core.evaluation.wer import word_errors
from core.features.kaldi import SAMPLE_RATE_HZ
from core.inference.long_audio import transcribe_windows
from core.inference.recognizer import Transcript, transcribe_split, transcript
from core.inference.windows import Windowing


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    model, corpus = bundle.load(args.model), CorpusConfig(name=str(args.corpus.resolve()))
    fitting = Windowing.fitting(model.report)
    windowing = Windowing(seconds=args.window or fitting.seconds, overlap=args.overlap)
    with TemporaryDirectory() as scratch:
        minute, whole, late = (
            Path(scratch) / f"{name}.wav" for name in ("minute", "whole", "late")
        )
        join(corpus, 1.0, args.pause, minute)
        order, said = join(corpus, args.minutes, args.pause, whole)
        cut_off(whole, args.late, late)
        heard_by_windows(model, minute, windowing)
        before = peak_megabytes()
        found, taken = heard_by_windows(model, whole, windowing)
        grown = peak_megabytes() - before
        moved, _ = heard_by_windows(model, whole, replace(windowing, shift=windowing.seconds / 2))
        later, _ = heard_by_windows(model, late, windowing)
        utterances = transcribe_split(model, corpus, "test", Path(scratch)).hypotheses
    alone, reference = " ".join(utterances[i] for i in order), " ".join(said)
    row = {
        "name": f"{args.minutes:g} min",
        "window": windowing.seconds,
        "seconds": found.seconds,
        "real_time_factor": taken / found.seconds,
        "peak_growth_mb": grown,
        "words": len(found.words),
        "agree_shifted": share_that_agrees(found.text, moved.text),
        "agree_late": share_that_agrees(text_from(found, args.late), text_from(later, 0.0)),
        "agree_alone": share_that_agrees(alone, found.text),
        "wer": word_errors([reference], [found.text]).wer,
        "wer_alone": word_errors([reference], [alone]).wer,
    }
    emit("long_audio", [row], {"overlap": args.overlap, "late_seconds": args.late}, args)


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path, help="a bundle's folder")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/commands"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between utterances")
    parser.add_argument("--window", type=float, help="most seconds; by default as `transcribe`")
    parser.add_argument("--overlap", type=float, default=Windowing().overlap)
    parser.add_argument("--late", type=float, default=7.68, help="seconds that are cut off")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def join(
    corpus: CorpusConfig, minutes: float, pause: float, file: Path
) -> tuple[list[int], list[str]]:
    """Write test utterances in turn until it is long enough; say which, and what is said."""
    cuts = list(open_split(corpus, file.parent, "test"))
    silence = np.zeros(round(pause * SAMPLE_RATE_HZ), np.float32)
    order: list[int] = []
    with soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, 1) as opened:
        while opened.tell() < 60 * minutes * SAMPLE_RATE_HZ:
            order.append(len(order) % len(cuts))
            opened.write(read_cut(cuts[order[-1]]).numpy())
            opened.write(silence)
    return order, [said_in(cuts[i]) for i in order]


def cut_off(file: Path, seconds: float, rest: Path) -> None:
    """Write what is left of a file without so many seconds of its beginning."""
    with (
        soundfile.SoundFile(file) as whole,
        soundfile.SoundFile(rest, "w", SAMPLE_RATE_HZ, 1) as to,
    ):
        whole.seek(round(seconds * SAMPLE_RATE_HZ))
        for block in whole.blocks(SAMPLE_RATE_HZ, dtype="float32"):
            to.write(block)


def heard_by_windows(
    model: bundle.Bundle, file: Path, windowing: Windowing
) -> tuple[Transcript, float]:
    """What is heard, and how many seconds that took."""
    began = time.perf_counter()
    found = transcript(model, transcribe_windows(model.model, file, windowing=windowing))
    return found, time.perf_counter() - began


def text_from(heard: Transcript, seconds: float) -> str:
    return " ".join(word.text for word in heard.words if word.start >= seconds)


def share_that_agrees(said: str, heard: str) -> float:
    """Of the words of both, those that the alignment finds equal."""
    both: Sequence[str] = (said, heard)
    if not all(text.split() for text in both):
        return float(said.split() == heard.split())
    found = word_errors([said], [heard])
    hits = len(said.split()) - found.substitutions - found.deletions
    return hits / max(len(text.split()) for text in both)


def peak_megabytes() -> float:
    """Of this process, ever."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
