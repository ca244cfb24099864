"""A corpus made ready once for all trials of a sweep: checked, tokenised, its features cached."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.config import CorpusConfig
from core.corpora.audio import CorpusError
from core.corpora.corpus import SplitName, open_corpus
from core.corpora.store import FeatureStore, cached
from core.corpora.text import FILE_NAME, Tokenizer, transcript
from core.hearing import NATIVE, Hearing

_SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
NUM_PARTS = 1 + len(_SPLITS)
_INDEX = "prepared.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    tokenizer: Tokenizer
    train: FeatureStore
    dev: FeatureStore
    test: FeatureStore
    """Empty where the corpus has no test split."""


def open_speech(folder: Path) -> Speech:
    """Open what `prepare_speech` left.

    Raises:
        CorpusError: if it is missing or damaged.
    """
    try:
        names = json.loads((folder / _INDEX).read_text())["stores"]
        train, dev, test = (FeatureStore.open(folder / names[split]) for split in _SPLITS)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CorpusError(
            f"`{folder}` must hold prepared speech, but does not ({error})."
        ) from error
    return Speech(tokenizer=Tokenizer.load(folder), train=train, dev=dev, test=test)


def is_prepared(config: CorpusConfig, folder: Path) -> bool:
    """Whether this very corpus was made ready here, and all of it is still there."""
    try:
        prepared = json.loads((folder / _INDEX).read_text())
        open_speech(folder)
    except (OSError, ValueError):
        return False
    return bool(prepared.get("corpus") == config.model_dump())


def prepare_speech(
    config: CorpusConfig,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    hearing: Hearing = NATIVE,
) -> Iterator[int]:
    """Check the corpus, learn its tokens unless a teacher brings them, and cache its features.

    Those are what the teacher hears, and so what all that is cut from it will hear.

    Yields:
        How many of the `NUM_PARTS` are ready: the corpus, then each split's features.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    corpus = open_corpus(config, folder)
    yield 1
    if tokenizer is None:
        tokenizer = Tokenizer.train(map(transcript, corpus.train), config, folder)
    tokenizer.save(folder / FILE_NAME)
    stores = {}
    for split in _SPLITS:
        store = cached(corpus, split, tokenizer, config, folder, hearing=hearing)
        stores[split] = store.folder.name
        yield 1 + len(stores)
    prepared = {"corpus": config.model_dump(), "digest": corpus.digest, "stores": stores}
    beside = folder / f".{_INDEX}.{os.getpid()}"
    beside.write_text(json.dumps(prepared, indent=1))
    beside.replace(folder / _INDEX)
