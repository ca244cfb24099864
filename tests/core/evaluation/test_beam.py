"""A beam search finds the likeliest labelling, and a language model changes which that is."""

import itertools
import sys
from collections import defaultdict

import pytest
import torch

from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.evaluation.beam import BeamSearch, split_at_silences
from core.evaluation.ngram import LmError
from core.evaluation.word_alignment import best_path, join_words, path_words
from tests.support.arpa import write_arpa

pytest.importorskip("flashlight.lib.text.decoder", reason="the extra `lm` is not installed")


def tokenizer_of(tokens, folder, texts=("ONE TWO", "TEN TO")):
    return Tokenizer.train(list(texts), CorpusConfig(tokens=tokens, vocabulary=12), folder)


def heard(decoder, frames, tokenizer):
    return join_words(path_words(decoder([frames]), tokenizer))


def likeliest(frames, tokenizer):
    """By all paths there are."""
    found = defaultdict(float)
    for path in itertools.product(range(frames.shape[1]), repeat=len(frames)):
        said = tuple(token for token, _ in itertools.groupby(path) if token)
        found[said] += frames[range(len(frames)), path].sum().exp().item()
    return tokenizer.decode(max(found, key=found.get))


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_likeliest_labelling_of_all(seed, tmp_path):
    tokenizer = tokenizer_of("word", tmp_path)
    frames = torch.randn(4, tokenizer.size, generator=torch.Generator().manual_seed(seed))
    frames[:, 1] = -30.0  # what is unknown is not said
    frames = frames.log_softmax(1)

    assert heard(BeamSearch(tokenizer, width=500), frames, tokenizer) == likeliest(
        frames, tokenizer
    )


@pytest.mark.parametrize("tokens", ["word", "char", "bpe", "unigram"])
def test_a_language_model_decides_what_sounds_alike(tokens, tmp_path):
    texts = ["ONE TWO", "ONE TWO", "TEN TO", "TEN TO"]
    tokenizer = tokenizer_of(tokens, tmp_path, texts)
    write_arpa(texts, tmp_path / "x.arpa", order=2)
    said, alike = (tokenizer.encode(text) for text in ("ONE TO", "ONE TWO"))
    frames = mixed(said, alike, tokenizer.size)
    plain = BeamSearch(tokenizer, width=32)
    informed = BeamSearch(tokenizer, width=32, lm=tmp_path / "x.arpa", lm_weight=2.0)

    assert heard(best_path, frames, tokenizer) == "ONE TO"
    assert heard(plain, frames, tokenizer) == "ONE TO"
    assert heard(informed, frames, tokenizer) == "ONE TWO"


def mixed(said, alike, vocabulary):
    """Frames of both token by token, the first a little louder, with silence between."""
    longest = max(len(said), len(alike))
    chances = torch.full((2 * longest, vocabulary), 1e-6)
    chances[1::2, 0] = 1.0
    for tokens, chance in ((said, 0.55), (alike, 0.45)):
        for i in range(longest):
            chances[2 * i, tokens[i] if i < len(tokens) else 0] += chance
    return chances.log().log_softmax(1)


def test_long_speech_is_cut_in_silence_and_joined_as_it_was():
    chance = torch.Generator().manual_seed(0)
    frames = torch.randn(4_000, 5, generator=chance).log_softmax(1)
    silence = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).clamp(min=1e-9).log()
    frames[::100] = frames[1::100] = silence

    cut = list(split_at_silences(frames.split(777)))

    assert torch.equal(torch.cat(cut), frames)
    assert len(cut) > 2
    assert all(torch.equal(each[0], silence) for each in cut)
    assert max(map(len, cut)) <= 1_000


def test_long_speech_says_the_same_in_any_parts(tmp_path):
    tokenizer = tokenizer_of("word", tmp_path)
    write_arpa(["ONE TWO", "TEN TO"], tmp_path / "x.arpa", order=2)
    chance = torch.Generator().manual_seed(1)
    frames = (3 * torch.randn(1_500, tokenizer.size, generator=chance)).log_softmax(1)
    search = BeamSearch(tokenizer, width=4, lm=tmp_path / "x.arpa")

    whole, parts = search([frames]), search(frames.split(400))

    assert torch.equal(whole.ids, parts.ids)
    assert len(whole.ids) == 1_500


def test_an_absent_package_is_named_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "flashlight", None)  # as Python marks what is not there

    with pytest.raises(LmError, match=r"`flashlight-text`.*pip install \"conformer-sweep\[lm\]\""):
        BeamSearch(tokenizer_of("word", tmp_path))
