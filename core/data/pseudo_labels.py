"""What a teacher hears in speech that nobody has transcribed, written beside the features.

The texts are those that `transcribe` prints: each utterance alone, greedily, as it was recorded.
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
"""At most so many utterances are asked about again after a kill."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabeler:
    """A recogniser that labels."""

    digest: str
    """Of the whole recogniser: another one's labels are not taken for its own."""
    hears: Callable[[Float[Tensor, " samples"]], str]
    """The words in samples at 16 kHz."""


def pseudo_label(corpus: Corpus, hearer: PseudoLabeler, folder: Path) -> Corpus:
    """The corpus with the hearer's words wherever it has none of its own.

    Where the hearer hears nothing, training learns that nothing is said; speech to be judged on is
    left out there, as a word error rate needs words.

    Raises:
        CorpusError: naming what cannot be decoded or told apart, or a split in which nothing is
            heard at all.
    """
    heard: dict[SplitName, CutSet] = {}
    for split in SPLITS:
        if split in corpus.wordless:
            texts = _texts(corpus, split, hearer, folder)
            heard[split] = _said(getattr(corpus, split), split, texts)
    parts = (corpus.digest, hearer.digest, *heard)
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    return replace(corpus, **heard, digest=digest) if heard else corpus


def _texts(corpus: Corpus, split: SplitName, hearer: PseudoLabeler, folder: Path) -> dict[str, str]:
    """By utterance; each is asked once, and kept under the names of speech and hearer."""
    named = hashlib.sha256(f"{corpus.digest} {split} {hearer.digest}".encode()).hexdigest()
    file = folder / f"heard-{split}-{named[:16]}.json"
    kept = _kept(file)
    texts: dict[str, str] = {}
    num_asked = 0
    for cut in getattr(corpus, split):
        if cut.id in texts:
            raise CorpusError(
                f"`{cut.id}` of the {split} split must be the name of one utterance to be labelled,"
                " but is that of two instead."
            )
        is_known = cut.id in kept
        texts[cut.id] = kept[cut.id] if is_known else hearer.hears(read_cut(cut))
        num_asked += not is_known
        if not is_known and num_asked % SAVED_EVERY == 0:
            atomic_write(file, json.dumps(kept | texts))
    if num_asked:
        atomic_write(file, json.dumps(kept | texts))
    return texts


def _kept(file: Path) -> dict[str, str]:
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError):
        return {}  # not asked yet, or damaged


def _said(cuts: CutSet, split: SplitName, texts: Mapping[str, str]) -> CutSet:
    silent = sum(not text for text in texts.values())
    if silent and split != "train":
        if silent == len(texts):
            raise CorpusError(
                f"The {split} split must have transcripts or speech in which the teacher hears"
                f" words, but it hears none in all {len(texts)} utterances instead."
            )
        log.warning(
            "%d of %d %s utterances, in which the teacher hears nothing, are left out.",
            *(silent, len(texts), split),
        )
        cuts = cuts.filter(partial(_is_heard, texts))
    return cuts.map(partial(_saying, texts))


def _is_heard(texts: Mapping[str, str], cut: Cut) -> bool:
    return bool(texts[cut.id])


def _saying(texts: Mapping[str, str], cut: Cut) -> Cut:
    spoken = SupervisionSegment(
        id=cut.id, recording_id=cut.id, start=0.0, duration=cut.duration, text=texts[cut.id]
    )
    said = cut.drop_supervisions()
    said.supervisions = [spoken]
    return said
