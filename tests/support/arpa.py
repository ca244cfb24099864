"""Writes a small n-gram model of words in ARPA format, for tests.

Interpolated absolute discounting (Ney et al., 1994): a constant is subtracted from each count, and
its share goes to shorter histories. For real language models use KenLM's or SRILM's tools.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from core.evaluation.ngram import BEGIN, END, UNSEEN
from core.files import temporary_path

_DISCOUNT = 0.75

Gram = tuple[str, ...]


def write_arpa(texts: Iterable[str], file: Path, *, order: int = 3) -> None:
    """Count, smooth and write; the file appears whole.

    Raises:
        ValueError: if the order is not at least 2, or there are no words.
    """
    if order < 2:
        raise ValueError(
            f"`order` must be at least 2, as KenLM reads them, but is {order} instead."
        )
    counts = _counts(texts, order)
    if not counts[0]:
        raise ValueError("`texts` must have words, but there are none instead.")
    probabilities, backoffs = _interpolate(counts)
    lines = ["\\data\\", *(f"ngram {n}={len(p)}" for n, p in enumerate(probabilities, 1))]
    for n, table in enumerate(probabilities, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram, probability in sorted(table.items()):
            line = f"{_log10(probability):.6f}\t{' '.join(gram)}"
            weight = f"\t{_log10(backoffs.get(gram, 1.0)):.6f}" if n < order else ""
            lines.append(line + weight)
    tmp_path = temporary_path(file)
    tmp_path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    tmp_path.replace(file)


def _counts(texts: Iterable[str], order: int) -> list[Counter[Gram]]:
    """Count the grams of each length, the sentence's ends included."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = [BEGIN, *text.split(), END]
        if len(words) == 2:
            continue
        for n, table in enumerate(counts, 1):
            table.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    counts[0].pop((BEGIN,), None)  # it follows no word
    return counts


def _interpolate(counts: list[Counter[Gram]]) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Return probabilities by length, and the weight that each history gives to shorter ones."""
    backoffs: dict[Gram, float] = {}
    tables: list[dict[Gram, float]] = []
    for table in counts:
        total, kinds = defaultdict[Gram, int](int), defaultdict[Gram, int](int)
        for gram, count in table.items():
            total[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        backoff = {history: _DISCOUNT * kinds[history] / total[history] for history in total}
        shorter = tables[-1] if tables else {}
        even = 1 / (len(counts[0]) + 1)
        tables.append(
            {
                gram: (count - _DISCOUNT) / total[gram[:-1]]
                + backoff[gram[:-1]] * shorter.get(gram[1:], even)
                for gram, count in table.items()
            }
        )
        backoffs |= backoff
    unseen = backoffs.pop(()) / (len(counts[0]) + 1)
    tables[0] |= {(UNSEEN,): unseen, (BEGIN,): 0.0}
    return tables, backoffs


def _log10(probability: float) -> float:
    return math.log10(probability) if probability else -99.0
