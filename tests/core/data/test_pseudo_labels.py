"""A teacher's transcripts stand in for missing ones, word for word as `transcribe` prints them."""

from dataclasses import replace

import pytest

from core.bundle import Bundle
from core.data import pseudo_labels
from core.data.audio import audio_files
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus
from core.data.pseudo_labels import PseudoLabeler, pseudo_label
from core.data.tokenizer import Tokenizer, transcript
from core.inference.recognizer import make_labeler, transcribe
from core.testing import SHAPE, small_model


@pytest.fixture(scope="module")
def wordless(demo_config, demo_folder):
    config = demo_config.model_copy(update={"labels": "teacher"})
    return open_corpus(config, demo_folder)


@pytest.fixture(scope="module")
def teacher(demo_corpus, demo_config, tmp_path_factory):
    texts = [transcript(cut) for cut in demo_corpus.train]
    few = demo_config.model_copy(update={"vocabulary": 30})
    tokens = Tokenizer.train(texts, few, tmp_path_factory.mktemp("tokens"))
    model = small_model(3, shape=replace(SHAPE, vocabulary=tokens.size))
    model.frontend.mean.fill_(-8.0)  # about what speech has
    model.frontend.deviation.fill_(3.0)
    return Bundle(model=model, tokenizer=tokens, report={})


def test_labels_are_what_transcribe_prints(wordless, teacher, tmp_path):
    corpus = pseudo_label(wordless, make_labeler(teacher, "it"), tmp_path)

    files = [audio_files(cut)[0] for cut in wordless.train]
    transcripts = [text for _, text in transcribe(teacher, files)]
    assert [transcript(cut) for cut in corpus.train] == transcripts
    assert len(set(transcripts)) > 10  # it recognizes something


def test_a_split_with_words_keeps_them(wordless, demo_corpus, teacher, tmp_path):
    corpus = pseudo_label(wordless, make_labeler(teacher, "it"), tmp_path)

    for split in ("dev", "test"):
        own = [transcript(cut) for cut in getattr(demo_corpus, split)]
        assert [transcript(cut) for cut in getattr(corpus, split)] == own


def test_a_teacher_is_asked_once_and_another_one_anew(wordless, tmp_path):
    asked = []

    def transcribe(waveform):
        asked.append(len(waveform))
        return "WORD"

    first = pseudo_label(wordless, PseudoLabeler(digest="a", transcribe=transcribe), tmp_path)
    again = pseudo_label(wordless, PseudoLabeler(digest="a", transcribe=transcribe), tmp_path)
    assert len(asked) == len(wordless.train)
    other = pseudo_label(wordless, PseudoLabeler(digest="b", transcribe=transcribe), tmp_path)

    assert len(asked) == 2 * len(wordless.train)
    assert first.digest == again.digest != other.digest


def test_a_killed_teacher_is_asked_only_for_the_rest(wordless, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "SAVED_EVERY", 7)
    asked = []

    def transcribe(waveform):
        asked.append(len(waveform))
        if len(asked) == 20:
            raise KeyboardInterrupt
        return f"HEARD {len(waveform)}"

    with pytest.raises(KeyboardInterrupt):
        pseudo_label(wordless, PseudoLabeler(digest="a", transcribe=transcribe), tmp_path)
    interrupted = pseudo_label(wordless, PseudoLabeler(digest="a", transcribe=transcribe), tmp_path)

    assert len(asked) == 20 + len(wordless.train) - 14
    untouched = pseudo_label(
        wordless, PseudoLabeler(digest="a", transcribe=transcribe), tmp_path / "untouched"
    )
    assert list(map(transcript, interrupted.train)) == list(map(transcript, untouched.train))


def test_half_a_file_of_labels_is_asked_for_anew(wordless, tmp_path):
    labeler = PseudoLabeler(digest="a", transcribe=lambda waveform: f"HEARD {len(waveform)}")
    first = pseudo_label(wordless, labeler, tmp_path)
    (file,) = tmp_path.glob("pseudo-labels-train-*.json")
    file.write_text(file.read_text()[:40])

    again = pseudo_label(wordless, labeler, tmp_path)

    assert list(map(transcript, again.train)) == list(map(transcript, first.train))


def test_what_is_judged_against_a_teacher_has_words(wordless, tmp_path):
    bare = wordless.wordless | {"dev"}
    corpus = replace(wordless, wordless=bare)
    lengths = sorted(cut.num_samples for cut in wordless.dev)
    middle = lengths[len(lengths) // 2]

    some = pseudo_label(
        corpus,
        PseudoLabeler(
            digest="some", transcribe=lambda waveform: "WORD" * (len(waveform) >= middle)
        ),
        tmp_path,
    )

    assert len(list(some.train)) == len(wordless.train)
    assert {transcript(cut) for cut in some.dev} == {"WORD"}
    with pytest.raises(CorpusError, match="The dev split must have transcripts or speech in which"):
        pseudo_label(corpus, PseudoLabeler(digest="deaf", transcribe=lambda _: ""), tmp_path)
