"""A transducer's beam search finds the likeliest tokens over all alignments."""

import itertools
from dataclasses import replace

import pytest
import torch

from core.bundle import Bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.decoders.lattice import transducer_loss
from core.evaluation.transducer_beam import TransducerBeamSearch
from core.evaluation.word_alignment import join_words
from core.inference.long_audio import compute_frames
from core.inference.recognizer import decode_frames
from core.testing import SHAPE, TRANSDUCERS, small_model, with_transducer
from tests.support.arpa import write_arpa
from tests.support.drawn_recognizers import balance, short_tokenizer

FRAMES = 3
VOCABULARY = 3
KINDS = pytest.mark.parametrize("kind", TRANSDUCERS)


def transducer_of(kind, seed=0):
    shape = replace(SHAPE, vocabulary=VOCABULARY)
    model = small_model(seed, shape=with_transducer(shape, kind)).eval()
    with torch.no_grad():
        model.transducer.joint.output.weight.mul_(4)
    return model.transducer


def speech(seed=0, frames=FRAMES):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, SHAPE.width, generator=generator)


def log_likelihood(transducer, encoded, tokens):
    """The sum over all alignments, by the loss."""
    row = torch.tensor([tokens], dtype=torch.long).reshape(1, -1)
    scores = transducer.scores(encoded[None], row)
    lengths = torch.tensor([len(encoded)]), torch.tensor([len(tokens)])
    return -float(transducer_loss(scores.arcs(), *lengths))


def tokens_of(hypothesis):
    return tuple(symbol.token for symbol in hypothesis.symbols())


@KINDS
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_in_a_wide_beam_a_score_is_the_likelihood_over_all_alignments(kind, seed):
    """Of all transcripts of up to two tokens, both of which may stay at one frame."""
    transducer, encoded = transducer_of(kind, seed), speech(seed)

    found = TransducerBeamSearch(width=100_000, most_symbols=2).search(transducer, encoded)

    scores = {tokens_of(hypothesis): hypothesis.score for hypothesis in found}
    assert len(scores) == len(found)
    for length in range(3):
        for tokens in itertools.product(range(1, VOCABULARY), repeat=length):
            expected = log_likelihood(transducer, encoded, tokens)
            if expected > -1e20:
                assert scores[tokens] == pytest.approx(expected, abs=1e-4)


@KINDS
@pytest.mark.parametrize("width", [1, 4, 16])
@torch.no_grad()
def test_in_a_narrow_beam_a_score_is_at_most_that(kind, width):
    transducer, encoded = transducer_of(kind), speech(frames=12)

    found = TransducerBeamSearch(width=width).search(transducer, encoded)

    assert 1 <= len(found) <= width
    for hypothesis in found:
        whole = log_likelihood(transducer, encoded, tokens_of(hypothesis))
        assert hypothesis.score <= whole + 1e-4


@KINDS
@torch.no_grad()
def test_symbols_have_the_frames_of_an_alignment(kind):
    transducer, encoded = transducer_of(kind), speech(frames=30)

    best, *_ = TransducerBeamSearch(width=8).search(transducer, encoded)

    symbols = best.symbols()
    assert symbols
    frames = [symbol.frame for symbol in symbols]
    assert frames == sorted(frames)
    assert frames[0] >= 0
    assert frames[-1] < 30
    assert all(symbol.log_probability <= 0 for symbol in symbols)
    for symbol, following in itertools.pairwise(symbols):
        assert following.frame >= symbol.frame + symbol.duration


@torch.no_grad()
def test_without_frames_nothing_is_said():
    (only,) = TransducerBeamSearch().search(transducer_of("lstm tdt"), speech(frames=0))

    assert only.symbols() == []


@pytest.mark.parametrize("kind", ["stateless rnnt", "lstm tdt"])
@torch.no_grad()
def test_a_language_model_adds_what_it_says_of_the_words(kind, tmp_path):
    """The scores of whole hypotheses, with and without it, differ by the words' scores."""
    pytest.importorskip("flashlight.lib.text.decoder", reason="the extra `lm` is not installed")
    texts = ["ONE TWO", "TEN TO"]
    tokenizer = Tokenizer.train(texts, CorpusConfig(tokens="word", vocabulary=12), tmp_path)
    write_arpa(texts, tmp_path / "x.arpa", order=2)
    shape = replace(SHAPE, vocabulary=tokenizer.size)
    transducer = small_model(shape=with_transducer(shape, kind)).eval().transducer
    search = TransducerBeamSearch.of(
        tokenizer, width=5000, lm=tmp_path / "x.arpa", lm_weight=2.0, word_score=0.5
    )
    search = replace(search, most_symbols=1)
    plain = replace(search, words=None)

    with_words, without = (
        {tokens_of(each): each.score for each in one.search(transducer, speech(frames=2))}
        for one in (search, plain)
    )

    said = tuple(tokenizer.encode("TEN TO"))
    start, added = search.words.start, 0.0
    for token in said:
        start, more = search.words.after(start, token)
        added += more
    added += search.words.final_score(start)
    assert with_words[said] - without[said] == pytest.approx(added, abs=1e-4)
    assert added != 0


@torch.no_grad()
def test_a_recognizer_s_frames_are_decoded_by_it(tmp_path):
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size)
    model = small_model(5, shape=with_transducer(shape, "lstm rnnt", has_ctc=True)).eval()
    balance(model)
    recognizer = Bundle(model=model, tokenizer=tokenizer, report={})
    frames = compute_frames(model, 0.1 * torch.randn(16_000))
    search = TransducerBeamSearch(width=4)

    words = decode_frames(recognizer, [frames], search)

    best, *_ = search.search(model.transducer, frames.encoded)
    assert join_words(words) == tokenizer.decode(list(tokens_of(best))) != ""
