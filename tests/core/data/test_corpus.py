import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from core.config.trial import CorpusConfig
from core.data.audio import check_rate, read_file
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus, open_split, with_memory


def write_split(root, split, seconds_of_each, *, rate_hz=16000, words="GO"):
    folder = root / split / "1" / "2"
    folder.mkdir(parents=True)
    for i, seconds in enumerate(seconds_of_each):
        noise = 0.1 * np.random.default_rng(i).standard_normal(int(seconds * rate_hz))
        soundfile.write(folder / f"1-2-{split}-{i}.wav", noise, rate_hz)
    lines = [f"1-2-{split}-{i} {words}\n" for i in range(len(seconds_of_each))]
    (folder / "1-2.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def root(tmp_path):
    """Three splits of one-second noises."""
    for split in ("train-a", "dev-a", "test-a"):
        write_split(tmp_path / "speech", split, [1, 1, 1])
    return tmp_path / "speech"


def open_root(root, **fields):
    return open_corpus(CorpusConfig(name=str(root), **fields), root.parent)


def test_globs_choose_the_splits(root):
    write_split(root, "train-b", [1, 1])

    both, one = open_root(root), open_root(root, train="train-b")

    assert (len(both.train), len(both.dev), len(both.test)) == (5, 3, 3)
    assert [cut.id for cut in one.train] == ["1-2-train-b-0", "1-2-train-b-1"]


def test_a_corpus_may_lack_a_test_split_but_no_other(root):
    shutil.rmtree(root / "test-a")
    assert len(open_root(root).test) == 0

    with pytest.raises(CorpusError, match=r"`corpus.dev` must match a split of .*\(dev-a, train-a"):
        open_root(root, dev="nix*")
    with pytest.raises(CorpusError, match=r"`corpus.train` must match.* but is `nix` instead"):
        open_root(root, train="nix")


def test_one_split_opens_without_the_others(root):
    shutil.rmtree(root / "train-a")

    cuts = open_split(CorpusConfig(name=str(root)), root.parent, "test")

    assert len(cuts) == 3


def test_training_speech_may_not_judge(root):
    with pytest.raises(
        CorpusError, match=r"`corpus.train` and `corpus.dev` .* both choose `dev-a`"
    ):
        open_root(root, train="*")


def test_a_name_in_two_splits_that_are_read_together_is_refused(root):
    shutil.copytree(root / "dev-a", root / "dev-b")

    assert len(open_root(root, dev="dev-a").dev) == 3
    with pytest.raises(
        CorpusError, match=r"`1-2-dev-a-0` of `.*dev-b` must be the name of one utt"
    ):
        open_root(root)
    with pytest.raises(CorpusError, match=r"`1/2/1-2-dev-a-0.wav` of `.*dev-b` must be the name"):
        open_root(root, labels="teacher", train="dev-*", dev="test-a", test="none")


def test_one_training_utterance_is_too_few(root):
    shutil.rmtree(root / "train-a")
    write_split(root, "train-a", [1])

    with pytest.raises(
        CorpusError, match="at least 2 utterances of at most 30 s to train on, but ha"
    ):
        open_root(root)


def test_long_utterances_are_left_out_of_training_only(root, caplog):
    for split in ("train-b", "dev-b"):
        write_split(root, split, [3, 1])

    with caplog.at_level(logging.WARNING):
        corpus = open_root(root, max_seconds=2.0)

    assert (len(corpus.train), len(corpus.dev)) == (4, 5)
    assert "1 of 5 training utterances are longer than `corpus.max_seconds` = 2" in caplog.text
    with pytest.raises(CorpusError, match=r"at most 0.5 s to train on, but have 0 instead"):
        open_root(root, max_seconds=0.5)


def test_another_sample_rate_is_changed_or_refused_by_name(root):
    write_split(root, "dev-b", [1], rate_hz=8000)

    assert len(open_root(root).dev) == 4
    with pytest.raises(CorpusError, match=r"dev-b-0.wav` must have 16000 .* but has 8000 instead"):
        open_root(root, resample=False)


def test_a_file_is_read_at_16_khz_or_refused_by_name(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)

    assert read_file(tmp_path / "a.wav").shape == (16000,)
    with pytest.raises(CorpusError, match=r"a.wav` must have 16000 samples a second"):
        read_file(tmp_path / "a.wav", resample=False)
    with pytest.raises(CorpusError, match=r"b.wav` must be an audio file, but is missing"):
        read_file(tmp_path / "b.wav")
    check_rate("a.wav", 16000, resample=False)


def test_what_is_no_corpus_is_refused_by_name(tmp_path):
    with pytest.raises(CorpusError, match=r"but `.*` holds neither instead"):
        open_root(tmp_path)
    with pytest.raises(CorpusError, match=r"but `.*nowhere` is no folder instead"):
        open_root(tmp_path / "nowhere")


def test_librispeech_must_have_a_root(tmp_path):
    with pytest.raises(CorpusError, match=r"`corpus.root` must be LibriSpeech's folder"):
        open_corpus(CorpusConfig(name="librispeech"), tmp_path)


def test_librispeech_opens_by_name_where_it_lies(root):
    config = CorpusConfig(
        name="librispeech", root=str(root), train="train-a", dev="dev-a", test="test-a"
    )

    assert len(open_corpus(config, root.parent).train) == 3


def test_the_digest_moves_with_the_corpus_and_changes_with_it(root, tmp_path):
    before = open_root(root).digest
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    assert open_root(moved).digest == before

    transcript = root / "dev-a" / "1" / "2" / "1-2.trans.txt"
    transcript.write_text(transcript.read_text().replace("dev-a-1 GO", "dev-a-1 NO"))
    samples = np.random.default_rng(9).standard_normal(16000)
    soundfile.write(next(moved.rglob("1-2-train-a-0.wav")), 0.1 * samples, 16000)

    assert open_root(root).digest != before
    assert open_root(moved).digest != before


def test_real_commands_open(commands_root):
    corpus = open_corpus(CorpusConfig(name=str(commands_root)), commands_root)

    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (1118, 100, 125)
    speakers = [
        {cut.supervisions[0].speaker for cut in cuts}
        for cuts in (corpus.train, corpus.dev, corpus.test)
    ]
    assert list(map(len, speakers)) == [364, 37, 48]
    assert not set.intersection(*speakers)


def test_little_memory_is_heard_as_often_as_balances_it(root, tmp_path):
    write_split(tmp_path / "old", "train-a", [0.3, 0.3], words="STOP")
    write_split(tmp_path / "old", "dev-a", [0.3], words="STOP")
    new, old = open_root(root), open_root(tmp_path / "old")

    for balance, times in [(0.0, 1), (1.0, 2), (1.5, 3)]:  # two old ones beside three new
        ids = [cut.id for cut in with_memory(new, old, share=1.0, seed=0, balance=balance).train]
        assert len(ids) == len(set(ids)) == 3 + 2 * times


def test_a_share_of_old_speech_is_heard_among_the_new(root, tmp_path):
    old_root = tmp_path / "old"
    write_split(old_root, "train-a", [0.3] * 40, words="STOP")
    write_split(old_root, "dev-a", [0.3], words="STOP")
    new, old = open_root(root), open_root(old_root)

    some, more = (with_memory(new, old, share=share, seed=0) for share in (0.2, 0.6))

    memories = [[cut.id for cut in corpus.train] for corpus in (some, more)]
    assert memories[0][:3] == [cut.id for cut in new.train]
    assert set(memories[0]) < set(memories[1])
    assert 0 < len(memories[0]) - 3 < len(memories[1]) - 3 < 40
    assert len({some.digest, more.digest, new.digest, old.digest}) == 4
    assert some.dev is new.dev
    assert with_memory(new, old, share=0.2, seed=0).digest == some.digest
    other = with_memory(new, old, share=0.2, seed=1)
    assert [cut.id for cut in other.train] != memories[0]
    assert len(with_memory(new, new, share=1.0, seed=0).train) == 6
    # A share of 0.5 with seed 12 is not one of 0.51 with seed 2.
    alike = [with_memory(new, old, share=a, seed=b).digest for a, b in ((0.5, 12), (0.51, 2))]
    assert len(set(alike)) == 2
    with pytest.raises(CorpusError, match=r"`memory_share` must leave training utterances"):
        with_memory(new, old, share=1e-9, seed=0)
