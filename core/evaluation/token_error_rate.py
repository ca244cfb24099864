"""Errors counted in tokens, on speech that is in batches: quick, for methods that search."""

from collections.abc import Iterable, Sequence

from core.conformer.model import Output
from core.data.batching import Batch
from core.evaluation.greedy import greedy
from core.evaluation.wer import word_errors


def token_error_rate(heard: Iterable[tuple[Output, Batch]]) -> float:
    """Wrong tokens of greedy decoding, a token of what was said."""
    said, found = list[str](), list[str]()
    for output, batch in heard:
        found += [_text(ids) for ids in greedy(output.logits, output.num_frames)]
        pairs = zip(batch.tokens.tolist(), batch.num_tokens.tolist(), strict=True)
        said += [_text(ids[:count]) for ids, count in pairs]
    return word_errors(said, found).wer


def _text(ids: Sequence[int]) -> str:
    """Tokens as words, for those who count errors of words."""
    return " ".join(map(str, ids))
