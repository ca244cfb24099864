"""A corpus made ready once for all trials of a sweep: checked, tokenised, its features cached."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from core.config import CorpusConfig
from core.corpora.audio import CorpusError
from core.corpora.corpus import open_corpus
from core.corpora.store import FeatureStore, cached
from core.corpora.text import FILE_NAME, Tokenizer, transcript

_SPLITS = ("train", "dev", "test")
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
    config: CorpusConfig, folder: Path, *, tokenizer: Tokenizer | None = None
) -> Speech:
    """Check the corpus, learn its tokens unless a teacher brings them, and cache its features.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    corpus = open_corpus(config, folder)
    if tokenizer is None:
        tokenizer = Tokenizer.train(map(transcript, corpus.train), config, folder)
    tokenizer.save(folder / FILE_NAME)
    stores = {
        split: cached(corpus, split, tokenizer, config, folder).folder.name
        for split in ("train", "dev", "test")
    }
    prepared = {"corpus": config.model_dump(), "digest": corpus.digest, "stores": stores}
    beside = folder / f".{_INDEX}.{os.getpid()}"
    beside.write_text(json.dumps(prepared, indent=1))
    beside.replace(folder / _INDEX)
    return open_speech(folder)
