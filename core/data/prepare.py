"""A corpus made ready once for all trials of a sweep: checked, tokenised, its features cached."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.data.corpus import SPLITS, SplitName, open_corpus
from core.data.feature_cache import FeatureStore, open_or_build
from core.data.pseudo_labels import PseudoLabeler, pseudo_label
from core.data.text_case import check_case
from core.data.tokenizer import FILE_NAME, Tokenizer, transcript
from core.digests import PREPARED_FORMAT, read_prepared
from core.features.spec import NATIVE, FrontendSpec
from core.files import atomic_write

NUM_PARTS = 1 + len(SPLITS)
_INDEX = "prepared.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    tokenizer: Tokenizer
    train: FeatureStore
    dev: FeatureStore
    test: FeatureStore
    """Empty where the corpus has no test split."""
    pseudo_labeled: frozenset[SplitName] = frozenset()
    """Splits whose transcripts are the teacher's."""


def open_speech(folder: Path) -> Speech:
    """Open what `prepare_speech` left.

    Raises:
        CorpusError: if it is missing or damaged.
    """
    try:
        prepared = read_prepared(folder)
        names, pseudo_labeled = prepared["stores"], _pseudo_labeled(prepared)
        train, dev, test = (FeatureStore.open(folder / names[split]) for split in SPLITS)
    # A CorpusError is a ValueError: the next clause would wrap its message into another.
    except CorpusError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorpusError(
            f"`{folder}` must hold prepared speech, but does not ({error})."
        ) from error
    tokens = Tokenizer.load(folder)
    return Speech(tokenizer=tokens, train=train, dev=dev, test=test, pseudo_labeled=pseudo_labeled)


def _pseudo_labeled(prepared: Mapping[str, Any]) -> frozenset[SplitName]:
    """Splits whose transcripts are the teacher's.

    Raises:
        ValueError: if one is none of the splits.
    """
    splits = frozenset(prepared.get("pseudo_labeled", ()))
    if not splits <= frozenset(SPLITS):
        raise ValueError(f"`pseudo_labeled` must be of {', '.join(SPLITS)}")
    return splits


def is_prepared(config: CorpusConfig, folder: Path) -> bool:
    """Whether this very corpus was made ready here, and all of it is still there."""
    try:
        prepared = read_prepared(folder)
        open_speech(folder)
    except (OSError, ValueError):
        return False
    # A new field of the configuration must not make all prepared speech invalid.
    default = CorpusConfig().model_dump()  # of a field that is younger than what lies there
    return bool({**default, **prepared.get("corpus", {})} == config.model_dump())


def prepare_speech(
    config: CorpusConfig,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    frontend_spec: FrontendSpec = NATIVE,
    labeler: PseudoLabeler | None = None,
) -> Iterator[int]:
    """Check the corpus, learn its tokens unless a teacher brings them, and cache its features.

    Args:
        config: the corpus.
        folder: where all of it goes.
        tokenizer: the teacher's.
        frontend_spec: the teacher's features, and so those of all models extracted from it.
        labeler: transcribes speech that has no transcripts.

    Yields:
        How many of the `NUM_PARTS` are ready: the corpus, then each split's features.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    corpus = open_corpus(config, folder)
    if labeler is not None:
        corpus = pseudo_label(corpus, labeler, folder)
    yield 1
    if tokenizer is None:
        tokenizer = Tokenizer.train(map(transcript, corpus.train), config, folder)
    else:
        check_case(map(transcript, corpus.train), tokenizer)
    tokenizer.save(folder / FILE_NAME)
    stores = {}
    for split in SPLITS:
        store = open_or_build(corpus, split, tokenizer, config, folder, frontend_spec=frontend_spec)
        stores[split] = store.folder.name
        yield 1 + len(stores)
    # Written last: whoever reads this file takes everything that it names for complete.
    prepared = {
        "format": PREPARED_FORMAT,
        "corpus": config.model_dump(),
        "digest": corpus.digest,
        "stores": stores,
        "pseudo_labeled": sorted(corpus.wordless),
    }
    atomic_write(folder / _INDEX, json.dumps(prepared, indent=1))
