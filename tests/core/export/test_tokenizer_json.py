"""`tokenizer.json` spells and joins as SentencePiece does, with the blank last."""

import json

import numpy as np
import pytest

from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.export.tokenizer_json import blank_name, fast_tokenizer

tokenizers = pytest.importorskip("tokenizers")

KINDS = {"word": 9, "unigram": 24, "bpe": 24, "char": 40}
TEXTS = ["ONE TWO THREE", "THREE TEN TWENTY", "TWO TENS", "ONE AND TWO AND TWENTY TWO"]
OTHERS = ["TEN TWO", "NONE", "TWENTY  ONE", " TWO", "ONE Z TWO", "ANDES", ""]


@pytest.fixture(params=KINDS)
def both(request, tmp_path):
    """Ours, and as transformers reads it."""
    config = CorpusConfig(tokens=request.param, vocabulary=KINDS[request.param])
    ours = Tokenizer.train(TEXTS, config, tmp_path)
    written = fast_tokenizer(ours, blank_name(ours))
    return ours, tokenizers.Tokenizer.from_str(json.dumps(written))


def test_texts_are_spelled_with_the_same_pieces(both):
    ours, theirs = both

    for text in [*TEXTS, *OTHERS]:
        assert theirs.encode(text).ids == [i - 1 for i in ours.encode(text)], text


def test_pieces_are_joined_to_the_same_texts(both):
    ours, theirs = both
    chance = np.random.default_rng(0)

    for _ in range(200):
        ids = chance.integers(1, ours.size, chance.integers(0, 9))
        assert " ".join(theirs.decode(list(ids - 1)).split()) == ours.decode(ids.tolist())


def test_the_blank_is_the_last_and_says_nothing(both):
    ours, theirs = both
    last = ours.size - 1

    assert theirs.get_vocab_size() == ours.size
    assert theirs.id_to_token(last) == "<pad>"
    assert theirs.decode([last, last]) == ""


def test_a_blank_is_named_as_no_piece_is():
    pieces = ["<unk>", "<pad>", "\u2581", "A"]
    tokenizer = Tokenizer.of_pieces(pieces, [0.0] * 4, unknown="<unk>", is_bpe=True)

    assert blank_name(tokenizer) not in pieces


def test_the_model_without_its_blank_is_the_one_that_gets_it(both):
    ours, _ = both

    again = Tokenizer.with_blank(ours.without_blank())

    assert again.pieces == ours.pieces
    assert Tokenizer.with_blank(again.without_blank()).model == again.model
    for text in [*TEXTS, *OTHERS]:
        assert again.encode(text) == ours.encode(text)
