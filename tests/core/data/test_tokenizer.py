import logging

import pytest

from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.data.tokenizer import BLANK, Tokenizer

TEXTS = ["TURN ON THE LIGHT", "SET TIMER TO FIVE MINUTES", "DON'T STOP"] * 5
KINDS = ["word", "unigram", "bpe", "char"]


def learn(folder, texts=TEXTS, *, tokens="unigram", vocabulary=128):
    config = CorpusConfig(tokens=tokens, vocabulary=vocabulary)
    return Tokenizer.train(texts, config, folder)


@pytest.mark.parametrize("tokens", KINDS)
def test_text_goes_to_pieces_and_back(tokens, tmp_path):
    tokenizer = learn(tmp_path, tokens=tokens)

    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


@pytest.mark.parametrize("tokens", KINDS)
def test_blank_is_no_piece_of_any_text_and_says_nothing(tokens, tmp_path):
    tokenizer = learn(tmp_path, tokens=tokens)
    ids = [i for text in TEXTS for i in tokenizer.encode(text)]

    assert BLANK not in ids
    assert tokenizer.unknown not in ids
    assert tokenizer.pieces[BLANK] == "<blk>"
    assert tokenizer.decode([BLANK, *tokenizer.encode(TEXTS[0]), BLANK]) == TEXTS[0]
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("tokens", KINDS)
def test_equal_texts_give_equal_pieces(tokens, tmp_path):
    first, second = (learn(tmp_path / name, tokens=tokens) for name in "ab")

    assert first.model == second.model
    assert first.digest == second.digest


@pytest.mark.parametrize("tokens", KINDS)
def test_a_text_too_small_for_the_vocabulary_gives_fewer_pieces(tokens, tmp_path):
    tokenizer = learn(tmp_path, ["A B"], tokens=tokens, vocabulary=1000)

    assert 3 <= tokenizer.size < 10
    assert tokenizer.decode(tokenizer.encode("B A")) == "B A"


def test_a_saved_tokenizer_loads_from_its_file_and_its_folder(tmp_path):
    tokenizer = learn(tmp_path)

    assert Tokenizer.load(tmp_path).model == tokenizer.model
    assert Tokenizer.load(tmp_path / "tokenizer.model").model == tokenizer.model
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.model"]


def test_words_outside_the_vocabulary_are_counted_in_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = learn(tmp_path, ["GO GO STOP", "GO", "STOP LEFT"], tokens="word", vocabulary=4)

    assert "1 of 3 training transcripts hold a word outside the 4 pieces" in caplog.text
    assert tokenizer.unknown in tokenizer.encode("LEFT")


@pytest.mark.parametrize("tokens", ["unigram", "bpe"])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(tokens, tmp_path):
    with pytest.raises(CorpusError, match=r"`corpus.vocabulary` must be at least 20 .*is 10 inst"):
        learn(tmp_path, tokens=tokens, vocabulary=10)
    learn(tmp_path, tokens=tokens, vocabulary=20)


def test_no_text_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="The training text must have words, but is empty"):
        learn(tmp_path, ["", " "])


def test_a_missing_and_a_damaged_tokenizer_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.model.* must be a Sentence.*is missing instead"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(CorpusError, match=r"bad\.model.* but is damaged instead"):
        Tokenizer.load(tmp_path / "bad.model")


@pytest.mark.parametrize("tokens", KINDS)
def test_a_grown_tokenizer_spells_what_it_could_not_and_the_old_as_before(tokens, tmp_path):
    old = learn(tmp_path, tokens=tokens)
    new_texts = ["PLAY QUIZ SONGS", "STOP THE MUSIC"]
    assert any(old.unknown in old.encode(text) for text in new_texts)

    grown = old.with_words(new_texts)

    assert grown.pieces[: old.size] == old.pieces
    assert [grown.encode(text) for text in TEXTS] == [old.encode(text) for text in TEXTS]
    assert [grown.decode(grown.encode(text)) for text in new_texts] == new_texts
    assert not any(grown.unknown in grown.encode(text) for text in new_texts)
    assert all(old.unknown in old.encode(p.strip("\u2581")) for p in grown.pieces[old.size :])


@pytest.mark.parametrize("tokens", KINDS)
def test_a_tokenizer_that_lacks_nothing_does_not_grow(tokens, tmp_path):
    tokenizer = learn(tmp_path, tokens=tokens)

    assert tokenizer.with_words(TEXTS) is tokenizer
    assert tokenizer.with_words(["NEW"]).model == tokenizer.with_words(["NEW"]).model


@pytest.mark.parametrize("is_bpe", [False, True])
def test_where_no_word_can_begin_with_a_letter_the_space_is_what_is_added(is_bpe):
    pieces = ["<unk>", "\u2581a", "b"]
    tokenizer = Tokenizer.of_pieces(pieces, [0.0, -2.0, -3.0], unknown="<unk>", is_bpe=is_bpe)

    grown = tokenizer.with_words(["ab cd"])

    assert grown.pieces[: tokenizer.size] == tokenizer.pieces
    assert set(grown.pieces[tokenizer.size :]) == {"c", "d", "\u2581"}
    assert grown.decode(grown.encode("ab cd b")) == "ab cd b"
    assert grown.encode("ab") == tokenizer.encode("ab")
