"""CTC beam search, with or without an n-gram model of words, by flashlight-text.

Only this module and core/evaluation/ngram.py import flashlight-text, which the extra `lm` installs
together with KenLM. The language model scores whole words, but hypotheses consist of tokens:
characters, parts of words or words. So a word is scored when the next one begins, and any word can
be recognized, also one that the language model does not know. The search is our own around
flashlight's lexicon-free decoder, as pyctcdecode has no current release.

Shapes: T output frames, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from core.data.tokenizer import Tokenizer
from core.decoders.ctc import BLANK
from core.evaluation.ngram import SpelledWords
from core.evaluation.word_alignment import TokenPath

BEAM = 16
LM_WEIGHT = 0.5
WORD_SCORE = 1.0
"""Default with a language model, which makes every further word less probable."""
_TOKENS_A_FRAME = 12
"""Most probable tokens of a frame that are tried."""
_WORST = 20.0
"""Distance from the best hypothesis, in nats, at which one is dropped."""
_FRAMES_AT_ONCE = 500
"""The fewest frames searched together: hypotheses of an hour would not fit into memory."""


class BeamSearch:
    """Beam search as a `Decoder` of core/evaluation/word_alignment.py."""

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
            tokenizer: of the recognizer.
            width: the number of hypotheses.
            lm: an ARPA file of words.
            lm_weight: weight of its log-probabilities relative to the recognizer's.
            word_score: added for each word, in nats.

        Raises:
            LmError: if flashlight-text is not installed, or the file is not in ARPA format.
        """
        self._words = SpelledWords.read(tokenizer, lm, weight=lm_weight, word_score=word_score)
        self._width = width

    def __call__(self, parts: Iterable[Float[Tensor, "_ vocabulary"]]) -> TokenPath:
        """Return the best path, searched stretch by stretch; words may cross stretches."""
        ids, probabilities = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
        self._words.reset()
        for stretch in split_at_silences(parts):
            path = torch.tensor(self._best(stretch), dtype=torch.long)
            ids.append(path)
            probabilities.append(stretch.gather(1, path[:, None])[:, 0].exp())
            self._words.continue_after(path)
        return TokenPath(ids=torch.cat(ids), probabilities=torch.cat(probabilities))

    def _best(self, stretch: Float[Tensor, "time vocabulary"]) -> list[int]:
        """Return one token per frame."""
        from flashlight.lib.text.decoder import (  # noqa: PLC0415  # an extra
            CriterionType,
            LexiconFreeDecoder,
            LexiconFreeDecoderOptions,
        )

        options = LexiconFreeDecoderOptions(
            beam_size=self._width,
            beam_size_token=min(_TOKENS_A_FRAME, stretch.shape[1]),
            beam_threshold=_WORST,
            lm_weight=1.0,  # the weight is applied in SpelledWords
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        # CTC has no silence token: the blank stands for both.
        decoder = LexiconFreeDecoder(options, self._words.lm, BLANK, BLANK, [])
        emissions = stretch.contiguous().float()
        (best, *_) = decoder.decode(emissions.data_ptr(), *emissions.shape)
        return list(best.tokens)[1 : len(stretch) + 1]  # it adds a silence at both ends


def split_at_silences(
    parts: Iterable[Float[Tensor, "_ vocabulary"]],
) -> Iterator[Float[Tensor, "time vocabulary"]]:
    """Join parts and cut them again in the longest silences.

    For example, of 1,500 frames in the buffer the first cut lies between frames 500 and 1,000.
    """
    pending: list[Tensor] = []
    for part in parts:
        pending.append(part.float())
        # What is left in `pending` is at most 1,000 frames: memory does not grow with the
        # recording.
        while sum(map(len, pending)) > 2 * _FRAMES_AT_ONCE:
            whole = torch.cat(pending)
            silent = whole[_FRAMES_AT_ONCE : 2 * _FRAMES_AT_ONCE, BLANK]
            cut = _FRAMES_AT_ONCE + _middle_of_longest_silence(silent.exp())
            yield whole[:cut]
            pending = [whole[cut:]]
    if sum(map(len, pending)):
        yield torch.cat(pending)


def _middle_of_longest_silence(blank: Float[Tensor, " frames"]) -> int:
    """Return the middle of the longest run of blanks above 95 %, or else the most certain blank."""
    is_silent = blank > 1 - 1 / math.e**3  # 0.950
    if not is_silent.any():
        return int(blank.argmax())
    values, lengths = torch.unique_consecutive(is_silent, return_counts=True)
    # Runs of speech have a value of 0. Runs of 3 silent, 2 other and 4 silent frames: 3, 0, 4.
    best = int((lengths * values).argmax())
    # The middle of the third run: 3 + 2 + 4 // 2 = frame 7.
    return int(lengths[:best].sum() + lengths[best] // 2)
