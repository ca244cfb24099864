"""Corpora without transcripts: plain folders, wordless manifests, and transcripts left unread."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, RecordingSet

from core.config.base import ConfigError
from core.config.trial import CorpusConfig, TrialConfig
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus
from core.data.sources.audio_folder import split_names
from core.data.tokenizer import transcript


def write_noises(folder, count, *, suffix="wav"):
    folder.mkdir(parents=True)
    for i in range(count):
        noise = 0.1 * np.random.default_rng(i).standard_normal(16000)
        soundfile.write(folder / f"{i}.{suffix}", noise, 16000)


@pytest.fixture
def root(tmp_path):
    """Three splits of plain files."""
    write_noises(tmp_path / "speech" / "train" / "deep" / "down", 3)
    write_noises(tmp_path / "speech" / "dev", 2, suffix="flac")
    write_noises(tmp_path / "speech" / "test", 2)
    return tmp_path / "speech"


def open_root(root, **fields):
    return open_corpus(CorpusConfig(name=str(root), labels="teacher", **fields), root.parent)


def test_a_plain_folder_is_a_corpus_where_a_teacher_labels(root):
    corpus = open_root(root)

    assert [cut.id for cut in corpus.train] == [f"deep/down/{i}.wav" for i in range(3)]
    assert [cut.id for cut in corpus.dev] == ["0.flac", "1.flac"]
    assert corpus.wordless == {"train", "dev", "test"}


def test_hidden_files_and_folders_are_no_speech(root):
    (root / "train" / "._0.wav").write_bytes(b"of macOS")
    for hidden in (root / "train" / "deep" / ".trash", root / ".hidden"):
        hidden.mkdir()
        (hidden / "x.wav").write_bytes(b"no audio")

    corpus = open_root(root)

    assert [cut.id for cut in corpus.train] == [f"deep/down/{i}.wav" for i in range(3)]
    assert split_names(root) == ["dev", "test", "train"]


def test_a_plain_folder_needs_a_teacher_and_says_so(root):
    with pytest.raises(
        CorpusError, match=r'without transcripts its audio needs `corpus.labels = "'
    ):
        open_corpus(CorpusConfig(name=str(root)), root.parent)


def test_transcripts_of_dev_and_test_are_what_is_judged_against(root):
    (root / "dev" / "1" / "2").mkdir(parents=True)
    for file in list((root / "dev").glob("*.flac")):
        file.rename(root / "dev" / "1" / "2" / file.name)
    (root / "dev" / "1" / "2" / "1-2.trans.txt").write_text("0 GO\n1 STOP\n")

    corpus = open_root(root)

    assert corpus.wordless == {"train", "test"}
    assert [transcript(cut) for cut in corpus.dev] == ["GO", "STOP"]


@pytest.mark.parametrize("garbage", [b"0 NONSENSE\n", b"\xff\xfe no text", b"", b"9 OF NOTHING\n"])
def test_no_transcript_of_the_training_speech_is_read(root, garbage):
    without = open_root(root)
    (root / "train" / "deep" / "down" / "deep-down.trans.txt").write_bytes(garbage)

    corpus = open_root(root)

    assert corpus.digest == without.digest
    assert not any(map(transcript, corpus.train))


def test_manifests_lose_their_words_or_have_none(root):
    folder = root.parent / "listed"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        recordings = RecordingSet.from_dir(root / split, "*.wav") or RecordingSet.from_dir(
            root / split, "*.flac"
        )
        recordings.to_file(folder / f"x_recordings_{split}.jsonl.gz")

    corpus = open_root(folder)

    assert corpus.wordless == {"train", "dev", "test"}
    assert (len(corpus.train), len(corpus.dev)) == (3, 2)


def test_the_words_of_a_manifests_training_speech_count_for_nothing(root, demo_corpus):
    folder = root.parent / "listed"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        cuts = CutSet.from_cuts(getattr(demo_corpus, split))
        cuts.to_file(folder / f"{split}.jsonl.gz")
    before = open_root(folder)
    garbled = demo_corpus.train.map_supervisions(_garble)
    CutSet.from_cuts(garbled).to_file(folder / "train.jsonl.gz")

    after = open_root(folder)

    assert after.digest == before.digest
    assert after.wordless == {"train"}
    assert not any(map(transcript, after.train))


def _garble(spoken):
    return replace(spoken, text="NOT WHAT WAS SAID")


def test_who_labels_must_be_brought():
    with pytest.raises(ConfigError, match=r"`teacher.bundle` must be the folder of a trained"):
        TrialConfig.parse({"corpus": {"labels": "teacher"}})
    with pytest.raises(ConfigError, match=r'where `corpus.name = "none"`, but is empty'):
        TrialConfig.parse({"corpus": {"name": "none"}})


def test_an_empty_file_is_named(root):
    (root / "train" / "deep" / "nothing.wav").touch()

    with pytest.raises(CorpusError, match=r"`.*nothing.wav` must hold speech, but is an empty"):
        open_root(root)


def test_a_split_without_audio_is_none(root):
    shutil.rmtree(root / "test")
    (root / "test").mkdir()

    assert len(open_root(root).test) == 0
