"""Digests that identify a sweep's inputs: its speech, its tokens and its models.

Reads only the small files that preparation left, and needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import sha256_file
from core.outside_files import read_arrays, read_json

PREPARED_FORMAT = 2
"""The version of `prepared.json` that is written; 1, which has no `format`, is read as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitLineage:
    """Digest and size of one split's features."""

    split: str
    """`train`, `dev` or `test`."""
    digest: str
    """Changes with the utterances, the tokens and how features are computed."""
    num_utterances: int
    seconds: float
    """Of speech; in training, of all speeds together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLineage:
    """The speech that a sweep's models are trained and evaluated on."""

    corpus: str
    """The corpus's name or folder."""
    corpus_digest: str
    tokenizer_digest: str
    splits: tuple[SplitLineage, ...]
    """Those that have utterances."""
    pseudo_labeled: tuple[str, ...] = ()
    """Splits whose transcripts are the teacher's."""


def read_prepared(folder: Path) -> dict[str, Any]:
    """The contents of a folder's `prepared.json`, of whichever version, with today's keys.

    Raises:
        OSError: if it is missing or unreadable.
        ValueError: if it is no JSON.
        TypeError: if it is no table.
    """
    prepared = dict(read_json(folder / "prepared.json"))
    return prepared if "format" in prepared else upgrade_format_1(prepared)


def upgrade_format_1(prepared: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a `prepared.json` with today's keys, from one of format 1."""
    renamed = {"heard": "pseudo_labeled"}
    return {renamed.get(key, key): value for key, value in prepared.items()}


def speech_lineage(features: Path) -> SpeechLineage | None:
    """Identifies the speech of a folder where it was prepared; None as long as it is not."""
    try:
        prepared = read_prepared(features)
        splits = [_split(features, *store) for store in prepared["stores"].items()]
        return SpeechLineage(
            corpus=prepared["corpus"]["name"],
            corpus_digest=prepared["digest"],
            tokenizer_digest=sha256_file(features / "tokenizer.model"),
            splits=tuple(split for split in splits if split.num_utterances),
            pseudo_labeled=tuple(prepared.get("pseudo_labeled", ())),
        )
    # A folder in which preparation was cut short is one that is not prepared.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def bundle_digest(bundle: Path) -> str | None:
    """Returns the digest of a bundle's checksums; None where there is no bundle."""
    try:
        return sha256_file(bundle / "checksums.json")
    except OSError:
        return None


def _split(features: Path, split: str, store: str) -> SplitLineage:
    seconds = read_arrays(features / store / "arrays.npz", ["seconds"])["seconds"]
    return SplitLineage(
        split=split,
        # A store's folder is named after its split and its digest, as `train-0f3a`.
        digest=store.rpartition("-")[2],
        num_utterances=len(seconds),
        seconds=float(seconds.sum()),
    )
