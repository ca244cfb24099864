"""A bundle at work: files to text, and a corpus to a word error rate; at less than its depth."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.bundle import DEPTH_ORDER, Bundle, BundleError
from core.config.trial import CorpusConfig
from core.data.corpus import SplitName, open_split
from core.data.feature_cache import FeatureStore
from core.data.pseudo_labels import PseudoLabeler
from core.data.text_case import check_case
from core.data.tokenizer import transcript as said_in
from core.evaluation.batch_decoding import decode_store
from core.evaluation.wer import WerReport, wer_report
from core.evaluation.word_alignment import Decoder, best_path, join_words, path_words
from core.inference.exported_model import ExportedRecognizer, Recognizer
from core.inference.long_audio import AudioSegment, log_probabilities, transcribe_windows
from core.inference.timestamps import frame_times
from core.inference.windows import Windowing
from core.pruning.extraction import of_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenWord:
    """A word, and when in its file it is said."""

    text: str
    start: float
    """In seconds, as `end`: the first frame of its first token."""
    end: float
    """The last frame of its last token: CTC's tokens are short, the word may sound on."""
    confidence: float
    """Of its tokens' probabilities the smallest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """What is said in a file."""

    words: tuple[SpokenWord, ...]
    seconds: float
    """That the file lasts."""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitTranscripts:
    """What was said and what was heard in a split, utterance by utterance."""

    ids: tuple[str, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]


def at_depth(bundle: Recognizer, depth: int) -> Bundle:
    """The recogniser with so many of its blocks: the best by its report's order, or the first.

    Raises:
        ValueError: if it does not have so many.
        BundleError: if the report's order is none of its blocks, or it is an export.
    """
    if isinstance(bundle, ExportedRecognizer):
        raise BundleError(
            f"`--depth` must go with a bundle, whose blocks can be left out, but is {depth} with an"
            " export instead; give the bundle that it was made of"
        )
    count = len(bundle.model.blocks)
    if not 1 <= depth <= count:
        raise ValueError(
            f"`--depth` must be from 1 to {count}, the model's blocks, but is {depth} instead"
        )
    best = bundle.report.get(DEPTH_ORDER) or list(range(count))
    is_list = isinstance(best, list) and all(type(number) is int for number in best)
    if not is_list or sorted(best) != list(range(count)):
        raise BundleError(
            f"`{DEPTH_ORDER}` of the bundle's report must name each of its {count} blocks,"
            f" but is {str(best)[:80]} instead."
        )
    return replace(bundle, model=of_blocks(bundle.model, best[:depth]))


def make_labeler(bundle: Bundle, digest: str) -> PseudoLabeler:
    """The recogniser of that digest, to label speech by."""
    return PseudoLabeler(digest=digest, transcribe=partial(transcribe_waveform, bundle))


def transcribe_waveform(bundle: Recognizer, waveform: Float[Tensor, " samples"]) -> str:
    """What `transcribe` writes of samples at 16 kHz; speech too short for a frame gives nothing."""
    path = best_path([log_probabilities(bundle.model, waveform)])
    return join_words(path_words(path, bundle.tokenizer))


def transcribe(
    bundle: Recognizer, files: Iterable[Path], *, resample: bool = True
) -> Iterator[tuple[Path, str]]:
    """One text a file, in order; speech too short for a frame gives an empty one.

    Raises:
        CorpusError: naming a file that is missing, empty, unreadable or of a refused sample rate.
    """
    windowing = Windowing.fitting(bundle.report)
    for file in files:
        parts = transcribe_windows(bundle.model, file, windowing=windowing, resample=resample)
        yield file, transcript(bundle, parts).text


def transcript(
    bundle: Recognizer, parts: Iterable[AudioSegment], decoder: Decoder | None = None
) -> Transcript:
    """What is said in the parts of a file, by each frame's best token if not by a decoder."""
    heard = 0.0

    def counted() -> Iterator[Float[Tensor, "_ vocabulary"]]:
        nonlocal heard
        for part in parts:
            heard += part.seconds
            yield part.log_probabilities

    words = path_words((decoder or best_path)(counted()), bundle.tokenizer)
    times = frame_times(bundle.model.frontend_spec)
    spoken = (
        SpokenWord(
            text=word.text,
            start=min(times.begin(word.first), heard),
            end=min(times.end(word.last), heard),
            confidence=word.confidence,
        )
        for word in words
    )
    return Transcript(words=tuple(spoken), seconds=heard)


def evaluate(
    bundle: Recognizer,
    corpus: CorpusConfig,
    split: SplitName,
    folder: Path,
    *,
    heard_by: nn.Module | None = None,
) -> WerReport:
    """Word error rate on a split; see `heard_in`."""
    found = transcribe_split(bundle, corpus, split, folder, heard_by=heard_by)
    return wer_report(found.references, found.hypotheses)


def transcribe_split(
    bundle: Recognizer,
    corpus: CorpusConfig,
    split: SplitName,
    folder: Path,
    *,
    heard_by: nn.Module | None = None,
    decoder: Decoder | None = None,
) -> SplitTranscripts:
    """What a recogniser hears in a split.

    Args:
        bundle: the recogniser.
        corpus: its speech.
        split: a part of it.
        folder: where a demo corpus is spoken.
        heard_by: instead of the bundle's model, such as its graph in another runtime.
        decoder: instead of each frame's best token.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    cuts = open_split(corpus, folder, split)
    check_case(map(said_in, cuts), bundle.tokenizer)
    with TemporaryDirectory() as scratch:
        frontend_spec = bundle.model.frontend_spec
        store = FeatureStore.build(
            cuts,
            bundle.tokenizer,
            Path(scratch) / "features",
            is_training=False,
            frontend_spec=frontend_spec,
        )
        model = bundle.model if heard_by is None else heard_by
        texts = decode_store(
            model,
            store,
            bundle.tokenizer,
            torch.device("cpu"),
            shortest=frontend_spec.shortest,
            decoder=decoder,
        )
        return SplitTranscripts(
            ids=tuple(store.ids), references=tuple(store.texts), hypotheses=tuple(texts)
        )
