"""A language model is a probability, is read from ARPA files alone, and is asked about words."""

import math

import pytest

from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.evaluation.ngram import BEGIN, END, UNSEEN, LmError, NGram
from tests.support.arpa import write_arpa

pytest.importorskip("flashlight.lib.text.decoder", reason="the extra `lm` is not installed")

TEXTS = ["GO UP", "GO DOWN", "GO UP UP", "STOP"]


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize(
    "before", [(BEGIN,), ("GO",), ("GO", "UP"), (BEGIN, "GO"), ("NEVER",), ("UP", "NEVER")]
)
def test_after_any_words_all_that_may_follow_is_one(tmp_path, order, before):
    write_arpa(TEXTS, tmp_path / "x.arpa", order=order)
    model = NGram(tmp_path / "x.arpa")

    total = sum(math.exp(model.score(before, word)) for word in (*model.words, UNSEEN, END))

    assert total == pytest.approx(1, abs=1e-4)


def test_what_was_often_said_is_likelier(tmp_path):
    write_arpa(TEXTS, tmp_path / "x.arpa")
    model = NGram(tmp_path / "x.arpa")

    assert model.score((BEGIN,), "GO") > model.score((BEGIN,), "STOP")
    assert model.score(("GO",), "UP") > model.score(("GO",), "DOWN") > model.score(("GO",), "STOP")
    assert model.score(("GO",), "NEVER") == model.score(("GO",), UNSEEN)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"no model",
        b"\xff\xfe\x00",
        b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\n\n\\end\\\n",
        b"\\data\\\nngram 1=1\nngram 2=1\n\n\\1-grams:\nx\tA\t0\n\n\\2-grams:\n0\tA A\n\n\\end\\\n",
        b"\\data\\\nngram one=1\n",
    ],
)
def test_a_file_that_is_no_arpa_file_is_named(tmp_path, content, capfd):
    file = tmp_path / "bad.arpa"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(LmError, match=r"bad\.arpa` must be a language model in ARPA format"):
        NGram(file)

    assert capfd.readouterr().err == ""


def test_words_that_no_token_spells_are_refused(tmp_path):
    write_arpa(["go up"], tmp_path / "x.arpa")
    tokenizer = Tokenizer.train(TEXTS, CorpusConfig(tokens="char", vocabulary=20), tmp_path)

    with pytest.raises(LmError, match=r"x\.arpa` must have words that .* can spell.*`go`"):
        NGram(tmp_path / "x.arpa").check_spelling(tokenizer)


@pytest.mark.parametrize(("texts", "order"), [([], 2), ([" "], 3), (["A"], 1)])
def test_no_words_and_no_order_make_no_model(tmp_path, texts, order):
    with pytest.raises(ValueError, match=r"`(texts|order)` must"):
        write_arpa(texts, tmp_path / "x.arpa", order=order)
