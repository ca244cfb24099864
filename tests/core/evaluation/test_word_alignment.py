"""Words of a path are those that greedy decoding says, each where its tokens are."""

import pytest
import torch

from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.decoders.ctc import greedy
from core.evaluation.word_alignment import best_path, join_words, path_words

TEXTS = ["ONE TWO THREE", "TWO ONE", "NONE TO THREE TEN"] * 4


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [("char", 16), ("word", 16), ("bpe", 20), ("unigram", 20)]
)
@pytest.mark.parametrize("seed", range(5))
def test_words_are_those_of_greedy_decoding_in_any_parts(tokens, vocabulary, seed, tmp_path):
    config = CorpusConfig(tokens=tokens, vocabulary=vocabulary)
    tokenizer = Tokenizer.train(TEXTS, config, tmp_path)
    chance = torch.Generator().manual_seed(seed)
    frames = torch.randn(60, tokenizer.size, generator=chance).log_softmax(1)

    words = path_words(best_path(frames.split([13, 1, 46])), tokenizer)

    (ids,) = greedy(frames[None], torch.tensor([60]))
    assert join_words(words) == tokenizer.decode(ids)
    assert words
    assert all(0 <= word.first <= word.last < 60 for word in words)
    assert [word.first for word in words] == sorted(word.first for word in words)


def test_a_word_lasts_from_its_first_token_to_its_last_and_is_as_sure_as_its_worst(tmp_path):
    tokenizer = Tokenizer.train(["AB"], CorpusConfig(tokens="char", vocabulary=8), tmp_path)
    start, a, b = (tokenizer.pieces.index(piece) for piece in ("\u2581", "A", "B"))
    said = [0, start, a, a, 0, b, 0, 0, start, b]
    sure = [1.0, 0.9, 0.5, 0.8, 1.0, 0.7, 1.0, 1.0, 0.6, 0.95]
    frames = torch.full((10, tokenizer.size), -50.0)
    frames[range(10), said] = torch.tensor(sure).log()

    first, second = path_words(best_path([frames]), tokenizer)

    assert (first.text, first.first, first.last) == ("AB", 1, 5)
    assert (second.text, second.first, second.last) == ("B", 8, 9)
    assert first.confidence == pytest.approx(0.7)
    assert second.confidence == pytest.approx(0.6)


def test_nothing_heard_says_nothing(tmp_path):
    tokenizer = Tokenizer.train(["AB"], CorpusConfig(tokens="char", vocabulary=8), tmp_path)

    assert path_words(best_path([]), tokenizer) == []
