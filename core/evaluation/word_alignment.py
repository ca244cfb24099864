"""Words with their frames and confidence, from a path of one token per frame.

Shapes: T output frames, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.data.tokenizer import WORD_START, Tokenizer
from core.decoders.ctc import BLANK


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPath:
    """One token per frame; an hour takes a megabyte."""

    ids: Int[Tensor, " frames"]
    probabilities: Float[Tensor, " frames"]


Decoder = Callable[[Iterable[Float[Tensor, "_ vocabulary"]]], TokenPath]
"""A function that finds a path through log-probabilities, which come in parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word and the output frames of its first and its last token."""

    text: str
    first: int
    last: int
    confidence: float
    """The smallest probability of its tokens, each at the frame where it is largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRun:
    """A token and the run of frames that output it."""

    id: int
    first: int
    last: int
    confidence: float


def best_path(parts: Iterable[Float[Tensor, "_ vocabulary"]]) -> TokenPath:
    """Return the best token of each frame."""
    best = [part.max(dim=1) for part in parts]
    if not best:
        return TokenPath(ids=torch.zeros(0, dtype=torch.long), probabilities=torch.zeros(0))
    return TokenPath(
        ids=torch.cat([part.indices for part in best]),
        probabilities=torch.cat([part.values.float() for part in best]).exp(),
    )


def path_words(path: TokenPath, tokenizer: Tokenizer) -> list[Word]:
    """Merge repeats, drop blanks, and join pieces to words.

    For example, the frames `_tu _tu blank rn blank _on` are the words "turn" at frames 0 to 3 and
    "on" at frame 5.
    """
    return join_tokens(_token_runs(path), tokenizer)


def join_tokens(tokens: Iterable[TokenRun], tokenizer: Tokenizer) -> list[Word]:
    """Join tokens to words: a piece that starts a word begins a new one."""
    pieces = tokenizer.pieces
    groups: list[list[TokenRun]] = []
    for token in tokens:
        if not groups or pieces[token.id].startswith(WORD_START):
            groups.append([])
        groups[-1].append(token)
    return [
        Word(
            text=text,
            first=group[0].first,
            last=group[-1].last,
            confidence=min(token.confidence for token in group),
        )
        for group in groups
        for text in tokenizer.decode([token.id for token in group]).split()
    ]


def join_words(words: Iterable[Word]) -> str:
    return " ".join(word.text for word in words)


def _token_runs(path: TokenPath) -> list[TokenRun]:
    # Frames 5 5 0 7: runs of 2, 1 and 1 that end before frames 2, 3 and 4.
    ids, lengths = torch.unique_consecutive(path.ids, return_counts=True)
    ends = lengths.cumsum(0).tolist()
    probabilities = path.probabilities.tolist()
    return [
        TokenRun(
            id=id_,
            first=end - length,
            last=end - 1,
            confidence=max(probabilities[end - length : end]),
        )
        for id_, length, end in zip(ids.tolist(), lengths.tolist(), ends, strict=True)
        if id_ != BLANK
    ]
