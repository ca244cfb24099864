"""Transcripts in upper or lower case, as a recognizer's tokens are written."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut

from core.config.trial import Case
from core.data.audio_decoding import CorpusError
from core.data.tokenizer import Tokenizer

CASE_FUNCTIONS: Mapping[Case, Callable[[str], str]] = {
    "as_written": str,
    "lower": str.lower,
    "upper": str.upper,
}
MAX_SAMPLED = 1000
"""Utterances that tell how transcripts are written."""


def change_case(cuts: CutSet, case: Case) -> CutSet:
    return cuts if case == "as_written" else cuts.map(partial(_change_case_of_cut, case))


def _change_case_of_cut(case: Case, cut: Cut) -> Cut:
    return cut.map_supervisions(partial(_change_case_of_supervision, case))


def _change_case_of_supervision(case: Case, spoken: SupervisionSegment) -> SupervisionSegment:
    return spoken if spoken.text is None else spoken.transform_text(CASE_FUNCTIONS[case])


def check_case(texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """See that transcripts are not merely written in another case than a recognizer's tokens.

    Raises:
        CorpusError: if most words are unknown to the tokens, and would be known in the other case.
    """
    words = {word for text in islice(texts, MAX_SAMPLED) for word in text.split()}
    unknown = {
        case: _unknown(map(write, words), tokenizer) for case, write in CASE_FUNCTIONS.items()
    }
    as_written = unknown.pop("as_written")
    best = min(unknown, key=lambda case: len(unknown[case]))
    # Refused only on clear evidence. Of 10 words, 8 are unknown: that is refused if another case
    # leaves 4 of them unknown, but not if it leaves 5.
    if 2 * len(as_written) <= len(words) or 2 * len(unknown[best]) > len(as_written):
        return
    example = min(word for word in as_written if CASE_FUNCTIONS[best](word) not in unknown[best])
    raise CorpusError(
        "The transcripts must be written as the recognizer's tokens are, but"
        f" `{example}` is unknown to them and `{CASE_FUNCTIONS[best](example)}` is not;"
        f' `corpus.case = "{best}"` in a search space, or `--case {best}`, writes them so.'
    )


def _unknown(words: Iterable[str], tokenizer: Tokenizer) -> set[str]:
    return {word for word in words if tokenizer.unknown in tokenizer.encode(word)}
