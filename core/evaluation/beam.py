"""CTC beam search, with or without an n-gram model of words: flashlight-text is at home here.

It comes with the extra `lm`, and brings KenLM. The language model is asked about whole words, but
hypotheses are of tokens, whatever those are: letters, parts of words or words. So a word is scored
when the next begins, and any word can be heard, also one that the model does not know.

Shapes: T output frames, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.data.tokenizer import Tokenizer
from core.evaluation.greedy import BLANK
from core.evaluation.ngram import NGram, SpelledWords, needs_extra
from core.evaluation.word_alignment import TokenPath

BEAM = 16
LM_WEIGHT = 0.5
WORD_SCORE = 1.0
"""Beside a language model, which makes every further word improbable."""
_TOKENS_A_FRAME = 12
"""The likeliest of a frame, beyond which nothing is tried."""
_WORST = 20.0
"""How far behind the best, in nats, a hypothesis is given up."""
_FRAMES_AT_ONCE = 500
"""Searched through together at least: hypotheses of an hour would not fit into memory."""


class BeamSearch:
    """A decoder of `core.evaluation.word_alignment`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        width: int = BEAM,
        lm: Any = None,
        lm_weight: float = LM_WEIGHT,
        word_score: float = 0.0,
    ) -> None:
        """Read the language model, if there is one.

        Args:
            tokenizer: of the recogniser.
            width: hypotheses that are kept.
            lm: an ARPA file of words.
            lm_weight: of its log-probabilities, beside the recogniser's.
            word_score: added for each word, in nats.

        Raises:
            LmError: if flashlight-text is not installed, or the file is not what it should be.
        """
        needs_extra()
        ngram = None if lm is None else NGram(lm)
        if ngram is not None:
            ngram.check_spelling(tokenizer)
        self._words = SpelledWords(tokenizer.pieces, ngram, weight=lm_weight, word_score=word_score)
        self._width = width

    def __call__(self, parts: Iterable[Float[Tensor, "_ vocabulary"]]) -> TokenPath:
        """The best path, stretch by stretch of speech; words go on across stretches."""
        ids, probabilities = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
        self._words.forget()
        for stretch in stretches(parts):
            found = torch.tensor(self._best(stretch), dtype=torch.long)
            ids.append(found)
            probabilities.append(stretch.gather(1, found[:, None])[:, 0].exp())
            self._words.go_on_after(found)
        return TokenPath(ids=torch.cat(ids), probabilities=torch.cat(probabilities))

    def _best(self, stretch: Float[Tensor, "time vocabulary"]) -> list[int]:
        """A token a frame."""
        from flashlight.lib.text.decoder import (  # noqa: PLC0415  # an extra
            CriterionType,
            LexiconFreeDecoder,
            LexiconFreeDecoderOptions,
        )

        options = LexiconFreeDecoderOptions(
            beam_size=self._width,
            beam_size_token=min(_TOKENS_A_FRAME, stretch.shape[1]),
            beam_threshold=_WORST,
            lm_weight=1.0,  # weighed where words are
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        decoder = LexiconFreeDecoder(options, self._words.lm, BLANK, BLANK, [])
        emissions = stretch.contiguous().float()
        (best, *_) = decoder.decode(emissions.data_ptr(), *emissions.shape)
        return list(best.tokens)[1 : len(stretch) + 1]  # it adds a silence at either end


def stretches(
    parts: Iterable[Float[Tensor, "_ vocabulary"]],
) -> Iterator[Float[Tensor, "time vocabulary"]]:
    """Join parts and cut them again, where the model is surest that nothing is said."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part.float())
        while sum(map(len, held)) > 2 * _FRAMES_AT_ONCE:
            whole = torch.cat(held)
            silent = whole[_FRAMES_AT_ONCE : 2 * _FRAMES_AT_ONCE, BLANK]
            cut = _FRAMES_AT_ONCE + _middle_of_longest_silence(silent.exp())
            yield whole[:cut]
            held = [whole[cut:]]
    if sum(map(len, held)):
        yield torch.cat(held)


def _middle_of_longest_silence(blank: Float[Tensor, " frames"]) -> int:
    """Of frames that are blank for sure; if there is none, the surest frame."""
    is_silent = blank > 1 - 1 / math.e**3
    if not is_silent.any():
        return int(blank.argmax())
    values, lengths = torch.unique_consecutive(is_silent, return_counts=True)
    best = int((lengths * values).argmax())
    return int(lengths[:best].sum() + lengths[best] // 2)
