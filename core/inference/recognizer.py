"""Recognizers at work: transcripts of files and splits, word error rates, and reduced depth."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.bundle import DEPTH_ORDER, Bundle, BundleError
from core.config.trial import CorpusConfig
from core.conformer.output import DecoderError
from core.data.audio_decoding import CorpusError
from core.data.corpus import SplitName, open_split
from core.data.feature_cache import FeatureStore
from core.data.pseudo_labels import PseudoLabeler
from core.data.text_case import check_case
from core.data.tokenizer import transcript as cut_transcript
from core.decoders.greedy import MOST_SYMBOLS, GreedyDecoder, Symbol
from core.decoders.transducer import Transducer
from core.evaluation.batch_decoding import decode_store
from core.evaluation.transducer_beam import AnyDecoder, TransducerBeamSearch
from core.evaluation.wer import WerReport, wer_report
from core.evaluation.word_alignment import (
    TokenRun,
    Word,
    best_path,
    join_tokens,
    join_words,
    path_words,
)
from core.inference.exported_model import ExportedRecognizer, Recognizer
from core.inference.long_audio import AudioSegment, Frames, compute_frames, transcribe_windows
from core.inference.timestamps import frame_times
from core.inference.windows import Windowing
from core.pruning.extraction import select_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenWord:
    """A word with its times in the file."""

    text: str
    start: float
    """Seconds from the file's start to the first frame of its first token."""
    end: float
    """Seconds to the end of its last token's last frame; with CTC the word may last longer."""
    confidence: float
    """The smallest probability of its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The transcript of a file, as words with times."""

    words: tuple[SpokenWord, ...]
    seconds: float
    """Length of the file."""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitTranscripts:
    """References and hypotheses of a split, by utterance."""

    ids: tuple[str, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]


def at_depth(bundle: Recognizer, depth: int) -> Bundle:
    """Return the recognizer with fewer blocks: the best by its report's order, or the first.

    Raises:
        ValueError: if it does not have as many.
        BundleError: if the report's order does not fit its blocks, or it is an export.
    """
    if isinstance(bundle, ExportedRecognizer):
        raise BundleError(
            f"`--depth` must go with a bundle, whose blocks can be left out, but is {depth} with an"
            " export instead; give the bundle that it was made from"
        )
    count = len(bundle.model.blocks)
    if not 1 <= depth <= count:
        raise ValueError(
            f"`--depth` must be from 1 to {count}, the model's blocks, but is {depth} instead"
        )
    best = bundle.report.get(DEPTH_ORDER) or list(range(count))
    # Not `isinstance`: true and false of a report in JSON would pass for blocks 1 and 0.
    is_list = isinstance(best, list) and all(type(number) is int for number in best)
    if not is_list or sorted(best) != list(range(count)):
        raise BundleError(
            f"`{DEPTH_ORDER}` of the bundle's report must name each of its {count} blocks,"
            f" but is {str(best)[:80]} instead."
        )
    return replace(bundle, model=select_blocks(bundle.model, best[:depth]))


def make_labeler(bundle: Bundle, digest: str) -> PseudoLabeler:
    """Return a labeler that uses the recognizer with this digest."""
    return PseudoLabeler(digest=digest, transcribe=partial(transcribe_waveform, bundle))


def transcribe_waveform(
    bundle: Recognizer, waveform: Float[Tensor, " samples"], *, most_symbols: int = MOST_SYMBOLS
) -> str:
    """Return the transcript of samples at 16 kHz; "" if they are too short for a frame.

    A transducer says at most `most_symbols` tokens at one frame.
    """
    frames = [compute_frames(bundle.model, waveform)]
    return join_words(decode_frames(bundle, frames, most_symbols=most_symbols))


def transcribe(
    bundle: Recognizer, files: Iterable[Path], *, resample: bool = True
) -> Iterator[tuple[Path, str]]:
    """Yield each file with its transcript, which is "" if it is too short for a frame.

    Raises:
        CorpusError: naming a file that is missing, empty, unreadable or of a refused sample rate.
    """
    windowing = Windowing.fitting(bundle.report)
    for file in files:
        parts = transcribe_windows(bundle.model, file, windowing=windowing, resample=resample)
        yield file, transcript(bundle, parts).text


def transcript(
    bundle: Recognizer, parts: Iterable[AudioSegment], decoder: AnyDecoder | None = None
) -> Transcript:
    """Decode the segments of a file, by the best token of each frame unless by a decoder.

    Raises:
        DecoderError: if there is a decoder of CTC, and the model has no CTC head.
    """
    seconds = 0.0

    def frames() -> Iterator[Frames]:
        nonlocal seconds
        for part in parts:
            seconds += part.seconds
            yield part.frames

    # Words need all segments, so that `seconds` is the length of the whole file from here on.
    words = decode_frames(bundle, frames(), decoder)
    times = frame_times(bundle.model.frontend_spec)
    spoken = (
        SpokenWord(
            text=word.text,
            start=min(times.begin(word.first), seconds),
            end=min(times.end(word.last), seconds),
            confidence=word.confidence,
        )
        for word in words
    )
    return Transcript(words=tuple(spoken), seconds=seconds)


def decode_frames(
    bundle: Recognizer,
    parts: Iterable[Frames],
    decoder: AnyDecoder | None = None,
    *,
    most_symbols: int = MOST_SYMBOLS,
) -> list[Word]:
    """Decode frames by the transducer, if there is one, or else by the CTC head.

    Args:
        bundle: the recognizer.
        parts: its frames, in order.
        decoder: instead of greedy search; one of CTC is taken instead of a transducer, too.
        most_symbols: of a transducer at one frame.

    Raises:
        DecoderError: if there is a decoder of CTC, and the model has no CTC head.
    """
    transducer = getattr(bundle.model, "transducer", None)
    if isinstance(decoder, TransducerBeamSearch):
        assert isinstance(transducer, Transducer), "the beam search is of a bundle in torch"
        best, *_ = decoder.search(transducer, _encoded(parts))
        return join_tokens(map(_token_run, best.symbols()), bundle.tokenizer)
    if transducer is None or decoder is not None:
        path = (decoder or best_path)(map(_of_ctc, parts))
        return path_words(path, bundle.tokenizer)
    symbols = _greedy_symbols(transducer, parts, most_symbols)
    return join_tokens(map(_token_run, symbols), bundle.tokenizer)


def _greedy_symbols(
    transducer: GreedyDecoder, parts: Iterable[Frames], most_symbols: int
) -> list[Symbol]:
    encoded = _encoded(parts)[None]
    num_frames = torch.tensor([encoded.shape[1]])
    return transducer.greedy(encoded, num_frames, most_symbols=most_symbols)[0]


def _encoded(parts: Iterable[Frames]) -> Float[Tensor, "time width"]:
    return torch.cat([part.encoded for part in parts if part.encoded is not None])


def _of_ctc(frames: Frames) -> Float[Tensor, "part vocabulary"]:
    if frames.log_probabilities is None:
        raise DecoderError
    return frames.log_probabilities


def _token_run(symbol: Symbol) -> TokenRun:
    # A token of TDT with a duration of 3 at frame 10 is said to end with frame 12.
    return TokenRun(
        id=symbol.token,
        first=symbol.frame,
        last=symbol.frame + max(symbol.duration, 1) - 1,
        confidence=math.exp(symbol.log_probability),
    )


def evaluate(
    bundle: Recognizer,
    corpus: CorpusConfig,
    split: SplitName,
    folder: Path,
    *,
    runs_on: nn.Module | None = None,
) -> WerReport:
    """Return the word error rate on a split; see `transcribe_split`.

    Args:
        bundle: the recognizer.
        corpus: has the split.
        split: train, dev or test.
        folder: where a demo corpus is synthesized.
        runs_on: used instead of the bundle's model, such as its graph in another runtime.
    """
    transcripts = transcribe_split(bundle, corpus, split, folder, runs_on=runs_on)
    return wer_report(transcripts.references, transcripts.hypotheses)


def read_split(
    bundle: Recognizer, corpus: CorpusConfig, split: SplitName, folder: Path, *, features: Path
) -> FeatureStore:
    """Return a split as the features that a recognizer reads, with its transcripts.

    Args:
        bundle: the recognizer.
        corpus: has the split.
        split: train, dev or test.
        folder: where a demo corpus is synthesized.
        features: a new folder, for the features.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    cuts = open_split(corpus, folder, split)
    check_case(map(cut_transcript, cuts), bundle.tokenizer)
    return FeatureStore.build(
        cuts,
        bundle.tokenizer,
        features,
        is_training=False,
        frontend_spec=bundle.model.frontend_spec,
    )


def transcribe_split(
    bundle: Recognizer,
    corpus: CorpusConfig,
    split: SplitName,
    folder: Path,
    *,
    runs_on: nn.Module | None = None,
    decoder: AnyDecoder | None = None,
) -> SplitTranscripts:
    """Transcribe a split.

    Args:
        bundle: the recognizer.
        corpus: has the split.
        split: train, dev or test.
        folder: where a demo corpus is synthesized.
        runs_on: used instead of the bundle's model, such as its graph in another runtime.
        decoder: used instead of the best token of each frame.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    with TemporaryDirectory() as scratch:
        store = read_split(bundle, corpus, split, folder, features=Path(scratch) / "features")
        model = bundle.model if runs_on is None else runs_on
        texts = decode_store(
            model,
            store,
            bundle.tokenizer,
            torch.device("cpu"),
            shortest=bundle.model.frontend_spec.shortest,
            decoder=decoder,
        )
        return SplitTranscripts(
            ids=tuple(store.ids), references=tuple(store.texts), hypotheses=tuple(texts)
        )


def transcribe_array(bundle: Recognizer, samples: np.ndarray, sample_rate_hz: int) -> Transcript:
    """Transcribe samples in memory exactly as a file that holds them, however long.

    Args:
        bundle: the recognizer.
        samples: one channel, of shape (samples,); floats in [-1, 1], or 16-bit integers.
        sample_rate_hz: any rate; other rates than 16 kHz are resampled.

    Raises:
        CorpusError: if the samples are no such array, are empty or hold NaN or infinity.
    """
    waveform = _checked_samples(samples, sample_rate_hz)
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "samples.wav"
        # A sample of float32 is the same in the file.
        soundfile.write(file, waveform, sample_rate_hz, format="WAV", subtype="FLOAT")
        windowing = Windowing.fitting(bundle.report)
        return transcript(bundle, transcribe_windows(bundle.model, file, windowing=windowing))


def _checked_samples(samples: np.ndarray, sample_rate_hz: int) -> Float[np.ndarray, " samples"]:
    array = np.asarray(samples)
    if sample_rate_hz < 1:
        raise CorpusError(
            f"`sample_rate` must be a positive integer in Hz, but is {sample_rate_hz} instead."
        )
    if array.ndim != 1 or array.size == 0:
        raise CorpusError(
            "`samples` must be one channel of shape (samples,), and not empty, but has the shape"
            f" {array.shape} instead; mix channels down first."
        )
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise CorpusError(
            "`samples` must be floats in [-1, 1] or 16-bit integers, but are"
            f" {array.dtype} instead."
        )
    # As audio files are decoded: -32768 is -1, and 32767 a little less than 1.
    scale = 32768.0 if array.dtype == np.int16 else 1.0
    waveform = array.astype(np.float32) / np.float32(scale)
    if not np.isfinite(waveform).all():
        raise CorpusError("`samples` must be finite, but hold NaN or infinity instead.")
    return waveform
