"""Pseudo-labels: a teacher's transcripts of untranscribed speech, written next to the features.

The texts are those that the command `transcribe` prints: each utterance alone, greedily, as it was
recorded.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut
from torch import Tensor

from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import SPLITS, Corpus, SplitName
from core.files import atomic_write
from core.outside_files import read_json

SAVED_EVERY = 500
"""Most utterances that are transcribed again after a kill."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabeler:
    """A recognizer that transcribes training speech."""

    digest: str
    """Digest of the whole recognizer: another one's labels are not taken for its own."""
    transcribe: Callable[[Float[Tensor, " samples"]], str]
    """Returns the words in samples at 16 kHz."""


def pseudo_label(corpus: Corpus, labeler: PseudoLabeler, folder: Path) -> Corpus:
    """Returns the corpus with the labeler's transcripts wherever it has none of its own.

    Where the labeler recognizes nothing, training learns silence; such utterances of the dev and
    test splits are left out, as a word error rate needs words.

    Raises:
        CorpusError: naming what cannot be decoded, a name that two utterances have, or a split in
            which nothing is recognized at all.
    """
    labeled: dict[SplitName, CutSet] = {}
    for split in SPLITS:
        if split in corpus.wordless:
            texts = _transcribe_split(corpus, split, labeler, folder)
            labeled[split] = _label_split(getattr(corpus, split), split, texts)
    # Equal speech, labeler and splits give equal texts, so the texts themselves are not hashed.
    parts = (corpus.digest, labeler.digest, *labeled)
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return replace(corpus, **labeled, digest=digest) if labeled else corpus


def _transcribe_split(
    corpus: Corpus, split: SplitName, labeler: PseudoLabeler, folder: Path
) -> dict[str, str]:
    """Transcribes a split: texts by utterance.

    Each utterance is transcribed once: texts are saved under the digests of speech and labeler.
    """
    named = hashlib.sha256(f"{corpus.digest} {split} {labeler.digest}".encode()).hexdigest()
    file = folder / f"pseudo-labels-{split}-{named[:16]}.json"
    known_texts = _read_known(file)
    texts: dict[str, str] = {}
    num_asked = 0
    for cut in getattr(corpus, split):
        if cut.id in texts:
            raise CorpusError(
                f"`{cut.id}` of the {split} split must be the name of one utterance to be labelled,"
                " but is that of two instead."
            )
        is_known = cut.id in known_texts
        texts[cut.id] = known_texts[cut.id] if is_known else labeler.transcribe(read_cut(cut))
        num_asked += not is_known
        if not is_known and num_asked % SAVED_EVERY == 0:
            # The union: texts of utterances that this pass has not come to yet must not be lost.
            atomic_write(file, json.dumps(known_texts | texts))
    if num_asked:
        atomic_write(file, json.dumps(known_texts | texts))
    return texts


def _read_known(file: Path) -> dict[str, str]:
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError):
        return {}  # not asked yet, or damaged


def _label_split(cuts: CutSet, split: SplitName, texts: Mapping[str, str]) -> CutSet:
    silent = sum(not text for text in texts.values())
    if silent and split != "train":
        if silent == len(texts):
            raise CorpusError(
                f"The {split} split must have transcripts or speech in which the teacher recognizes"
                f" words, but it recognizes none in all {len(texts)} utterances instead."
            )
        log.warning(
            "%d of %d %s utterances, in which the teacher recognizes nothing, are left out.",
            *(silent, len(texts), split),
        )
        cuts = cuts.filter(partial(_has_text, texts))
    return cuts.map(partial(_with_text, texts))


def _has_text(texts: Mapping[str, str], cut: Cut) -> bool:
    return bool(texts[cut.id])


def _with_text(texts: Mapping[str, str], cut: Cut) -> Cut:
    spoken = SupervisionSegment(
        id=cut.id, recording_id=cut.id, start=0.0, duration=cut.duration, text=texts[cut.id]
    )
    labeled = cut.drop_supervisions()
    labeled.supervisions = [spoken]
    return labeled
