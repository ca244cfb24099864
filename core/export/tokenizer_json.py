"""A SentencePiece model as the `tokenizer.json` that transformers reads, with the blank last.

Unlike SentencePiece, the format lists merges of pairs in order: that of the pieces they make.
"""

import base64
from collections.abc import Iterator
from typing import Any

from core.data.tokenizer import BLANK, Pieces, Tokenizer
from core.inference.graph_interface import ExportError

_SPACE = "\u2581"
_UNKNOWN = " \u2047 "
"""SentencePiece's text for the unknown token."""


def fast_tokenizer(tokenizer: Tokenizer, blank: str) -> dict[str, Any]:
    """Return the contents of `tokenizer.json`: our ids less one, then the blank.

    Raises:
        ExportError: if the tokenizer falls back to bytes.
    """
    pieces = tokenizer.describe_pieces()
    if pieces.has_bytes:
        raise ExportError(
            "Tokens for transformers must consist of characters, but these have bytes for unknown"
            " characters; `--to onnx` exports them."
        )
    # In the order of their ids, in which the blank comes last.
    special = [*sorted(pieces.special - {BLANK}), BLANK]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(pieces, i, blank) for i in special],
        "normalizer": _normalizer(pieces),
        "pre_tokenizer": _spaces(pieces, is_split=pieces.kind == "word"),
        "post_processor": None,
        "decoder": _decoder(pieces),
        "model": _model(pieces, blank),
    }


def blank_name(tokenizer: Tokenizer) -> str:
    """Return `<pad>`, as in published models, or a name that no piece has."""
    # `<pad>`, or else `<<pad>>`, and so on.
    taken = set(tokenizer.pieces[1:])
    name = "<pad>"
    while name in taken:
        name = f"<{name}>"
    return name


def _their_id(ours: int, size: int) -> int:
    # Of 4 tokens, ours 0 1 2 3 are 3 0 1 2 there.
    return (ours - 1) % size


def _special(pieces: Pieces, number: int, blank: str) -> dict[str, Any]:
    return {
        "id": _their_id(number, len(pieces.symbols)),
        "content": blank if number == BLANK else pieces.symbols[number],
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


# The blank's score, 0, has no effect: no text holds it. Unknown characters in a row are one unknown
# token (`fuse_unk`), as in SentencePiece.
def _model(pieces: Pieces, blank: str) -> dict[str, Any]:
    symbols = [*pieces.symbols[1:], blank]
    unknown = _their_id(pieces.unknown, len(symbols))
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    if pieces.kind == "unigram":
        scores = [*pieces.scores[1:], 0.0]
        listed = [list(pair) for pair in zip(symbols, scores, strict=True)]
        return {"type": "Unigram", "unk_id": unknown, "vocab": listed, "byte_fallback": False}
    if pieces.kind == "word":
        return {"type": "WordLevel", "vocab": vocabulary, "unk_token": symbols[unknown]}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": symbols[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in _merges(pieces)],
    }


def _merges(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Yield every pair of pieces that makes a piece, the pieces of highest score first.

    Example: "the" can be made from "t" + "he" and "th" + "e", if these four are pieces.
    """
    # No text holds these, so no pair is merged to one of them or from one.
    aside = pieces.special | {pieces.unknown}
    ranks = {symbol: i for i, symbol in enumerate(pieces.symbols) if i not in aside}
    if pieces.kind == "char":
        return
    # SentencePiece merges the pair whose piece scores highest, the format the pair that is listed
    # first: sorted by falling score both choose the same.
    for symbol in sorted(ranks, key=lambda symbol: -pieces.scores[ranks[symbol]]):
        pairs = [(symbol[:cut], symbol[cut:]) for cut in range(1, len(symbol))]
        valid_pairs = [
            (first, second) for first, second in pairs if first in ranks and second in ranks
        ]
        yield from sorted(valid_pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _normalizer(pieces: Pieces) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if pieces.charsmap:
        text = base64.b64encode(pieces.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    # As SentencePiece does: no spaces at the ends, and one between two words.
    if pieces.is_squeezed:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _spaces(pieces: Pieces, *, is_split: bool) -> dict[str, Any]:
    scheme = "always" if pieces.is_prefixed else "never"
    return {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": scheme,
        "split": is_split,
    }


def _decoder(pieces: Pieces) -> dict[str, Any]:
    unknown = {"String": pieces.symbols[pieces.unknown]}
    # Before U+2581 becomes a space: the spaces around U+2047 are SentencePiece's own.
    named = {"type": "Replace", "pattern": unknown, "content": _UNKNOWN}
    return {"type": "Sequence", "decoders": [named, _spaces(pieces, is_split=True)]}
