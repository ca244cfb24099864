"""Token error rate on batches: fast, for methods that search."""

from collections.abc import Iterable, Sequence

from core.data.batching import Batch
from core.evaluation.wer import word_errors


def token_error_rate(decoded: Iterable[tuple[list[list[int]], Batch]]) -> float:
    """Return the errors of decoded tokens per token of the references."""
    references, hypotheses = list[str](), list[str]()
    for tokens, batch in decoded:
        hypotheses += map(_text, tokens)
        pairs = zip(batch.tokens.tolist(), batch.num_tokens.tolist(), strict=True)
        references += [_text(ids[:count]) for ids, count in pairs]
    return word_errors(references, hypotheses).wer


def _text(ids: Sequence[int]) -> str:
    """Write tokens as words, so that `word_errors` counts them."""
    # Tokens (5, 17) are the words "5 17".
    return " ".join(map(str, ids))
