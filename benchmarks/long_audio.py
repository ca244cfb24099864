"""Long audio by windows: speed, memory, and whether the text depends on where windows lie.

Utterances of a corpus are joined with pauses to --minutes of speech in one file, which a bundle
transcribes with windows of the default size, with the same half a window earlier, and utterance by
utterance. Words agree that the alignment of two texts finds equal; memory is the peak of this
process above what it was before, the file of a minute having been heard.
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
from measuring import arguments, emit

from core.config import CorpusConfig
from core.corpora.audio import read_cut
from core.corpora.corpus import open_split
from core.corpora.features import SAMPLE_RATE_HZ
from core.corpora.text import transcript as said_in
from core.deploy import bundle
from core.deploy.hearing import hear
from core.deploy.recognise import heard_in, transcript
from core.deploy.windows import Windowing
from core.evaluation.wer import word_errors


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    model, corpus = bundle.load(args.model), CorpusConfig(name=str(args.corpus.resolve()))
    windowing = Windowing(seconds=args.window, overlap=args.overlap)
    with TemporaryDirectory() as scratch:
        minute, whole = Path(scratch) / "minute.wav", Path(scratch) / "whole.wav"
        join(corpus, 1.0, args.pause, minute)
        order, said = join(corpus, args.minutes, args.pause, whole)
        heard_by_windows(model, minute, windowing)
        before = peak_megabytes()
        text, row = heard_by_windows(model, whole, windowing)
        grown = peak_megabytes() - before
        shifted = replace(windowing, shift=windowing.seconds / 2)
        moved, _ = heard_by_windows(model, whole, shifted)
        alone = heard_in(model, corpus, "test", Path(scratch)).hypotheses
    rows = [
        {
            "name": f"{args.minutes:g} min",
            **row,
            "peak_growth_mb": grown,
            "words": len(text.split()),
            "agree_shifted": share_that_agrees(text, moved),
            "agree_alone": share_that_agrees(" ".join(alone[i] for i in order), text),
            "wer": word_errors([" ".join(said)], [text]).wer,
        }
    ]
    emit("long_audio", rows, {"window": args.window, "overlap": args.overlap}, args)


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path, help="a bundle's folder")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/commands"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between utterances")
    parser.add_argument("--window", type=float, default=Windowing().seconds)
    parser.add_argument("--overlap", type=float, default=Windowing().overlap)
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


def heard_by_windows(
    model: bundle.Bundle, file: Path, windowing: Windowing
) -> tuple[str, dict[str, float]]:
    began = time.perf_counter()
    found = transcript(model, hear(model.model, file, windowing=windowing))
    taken = time.perf_counter() - began
    return found.text, {"seconds": found.seconds, "real_time_factor": taken / found.seconds}


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
