"""Token error rate of model outputs on batches: fast, for methods that search."""

from collections.abc import Iterable, Sequence

from core.conformer.output import Output
from core.data.batching import Batch
from core.decoders.ctc import greedy
from core.evaluation.wer import word_errors


def token_error_rate(outputs: Iterable[tuple[Output, Batch]]) -> float:
    """Return the errors of greedy decoding per token of the references."""
    references, hypotheses = list[str](), list[str]()
    for output, batch in outputs:
        hypotheses += [_text(ids) for ids in greedy(output.logits, output.num_frames)]
        pairs = zip(batch.tokens.tolist(), batch.num_tokens.tolist(), strict=True)
        references += [_text(ids[:count]) for ids, count in pairs]
    return word_errors(references, hypotheses).wer


def _text(ids: Sequence[int]) -> str:
    """Write tokens as words, so that `word_errors` counts them."""
    # Tokens (5, 17) are the words "5 17".
    return " ".join(map(str, ids))
