"""Tokens that come with a model: SentencePiece's own file, or a `tokenizer.json` made from one.

The latter holds the same pieces, merged pair by pair in a stated order, or chosen by probability;
both are what SentencePiece knows as BPE and unigram, so that they become its model again.
"""

import base64
from pathlib import Path
from typing import Any

from core.data.audio_decoding import CorpusError
from core.data.tokenizer import FILE_NAME, Tokenizer
from core.importers.safe_read import (
    LARGEST_TOKENIZER,
    ImportingError,
    errors_as_import,
    read_bytes,
    read_json,
    short_repr,
)

FAST = "tokenizer.json"


def read_tokens(folder: Path, *, vocabulary: int, blank: int) -> Tokenizer:
    """The tokens of so many outputs, of which one is the blank; ours is 0, the others follow.

    Raises:
        ImportingError: if there are none, they are not as many, or no SentencePiece could be them.
    """
    own = folder / FILE_NAME
    try:
        if own.is_file():
            tokenizer = Tokenizer.with_blank(read_bytes(own, largest=LARGEST_TOKENIZER))
        else:
            with errors_as_import(FAST, "a fast tokenizer of pieces"):
                tokenizer = _tokenizer_of_table(read_json(folder / FAST), blank)
    except CorpusError as error:
        raise ImportingError(f"`{folder.name}`: {error}") from None
    if tokenizer.size != vocabulary:
        raise ImportingError(
            f"`{folder.name}` must have {vocabulary} tokens, the blank included, as the model has"
            f" outputs, but has {tokenizer.size} instead."
        )
    return tokenizer


def _tokenizer_of_table(table: dict[str, Any], blank: int) -> Tokenizer:
    kind = table["model"]["type"]
    if kind not in ("BPE", "Unigram") or table["model"].get("continuing_subword_prefix"):
        raise ImportingError(
            f"`{FAST}` must be of BPE or Unigram pieces, but is {short_repr(kind)} instead."
        )
    by_id, scores = (_bpe_pieces if kind == "BPE" else _unigram_pieces)(table["model"])
    added = {entry["id"]: entry["content"] for entry in table.get("added_tokens", [])}
    # Added tokens may repeat an id of the vocabulary, and then give its text.
    by_id |= added
    by_id.pop(blank, None)
    ids = sorted(by_id)
    # With the blank at 2 and three other tokens: ids must be 0, 1, 3. A gap would shift all outputs
    # after it by one.
    if ids != [number for number in range(len(ids) + 1) if number != blank][: len(ids)]:
        raise ImportingError(f"`{FAST}` must give each id but the blank's {blank} a token.")
    unknown = _unknown(table["model"], by_id)
    special = {added[number] for number in added if number != blank} - {unknown}
    # Added tokens have no score. Any will do: they are special, so that no text is split into them.
    least = min(scores.values(), default=0.0)
    return Tokenizer.of_pieces(
        [by_id[number] for number in ids],
        [scores.get(by_id[number], least) for number in ids],
        unknown=unknown,
        is_bpe=kind == "BPE",
        special=special,
        charsmap=_charsmap(table.get("normalizer")),
    )


def _bpe_pieces(model: dict[str, Any]) -> tuple[dict[int, str], dict[str, float]]:
    """A piece that an earlier merge makes, SentencePiece must score higher."""
    # Merges `t h`, `th e` and the letters t, h, e give the scores th 0, the -1, and -2 for each
    # letter, which no merge makes.
    by_id = {number: piece for piece, number in model["vocab"].items()}
    scores: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        # Older files write a merge as "t h", newer ones as ["t", "h"].
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        # Two merges may make one piece (`t he`, `th e`): the earlier one counts.
        scores.setdefault(first + second, -float(rank))
    for piece in by_id.values():
        scores.setdefault(piece, -float(len(model["merges"])))
    return by_id, scores


def _unigram_pieces(model: dict[str, Any]) -> tuple[dict[int, str], dict[str, float]]:
    pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
    return {number: piece for number, (piece, _) in enumerate(pieces)}, dict(pieces)


def _unknown(model: dict[str, Any], by_id: dict[int, str]) -> str:
    """BPE names it, unigram tells its id."""
    named = model.get("unk_token")
    if named is None and isinstance(model.get("unk_id"), int):
        named = by_id.get(model["unk_id"])
    if named not in by_id.values():
        raise ImportingError(f"`{FAST}` must have a token for what is unknown, but has none.")
    return str(named)


def _charsmap(normalizer: Any) -> bytes:
    """Returns a normalizer's compiled character map; refuses steps unknown to SentencePiece."""
    if normalizer is None:
        return b""
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    charsmap = b""
    for step in steps:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] not in ("Replace", "Strip", "Prepend"):  # of spaces, as it does itself
            raise ImportingError(
                f"`{FAST}` must normalize as SentencePiece does, but has"
                f" {short_repr(step['type'])}."
            )
    return charsmap
