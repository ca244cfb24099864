import logging
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus
from core.data.feature_cache import FeatureStore, open_or_build
from core.data.sources.librispeech import load_split
from core.data.tokenizer import Tokenizer, transcript
from core.features.kaldi import log_mel


@pytest.fixture(scope="module")
def tokenizer(demo_corpus, demo_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return Tokenizer.train(map(transcript, demo_corpus.train), demo_config, folder)


def features_of(cut):
    waveform = read_cut(cut)
    return log_mel(waveform[None], torch.tensor([len(waveform)]))[0][0]


def spoken(root, seconds_of_each, words):
    folder = root / "dev" / "1" / "2"
    folder.mkdir(parents=True)
    for i, seconds in enumerate(seconds_of_each):
        noise = 0.1 * np.random.default_rng(i).standard_normal(int(seconds * 16000))
        soundfile.write(folder / f"1-2-{i}.wav", noise, 16000)
    lines = [f"1-2-{i} {words}\n" for i in range(len(seconds_of_each))]
    (folder / "1-2.trans.txt").write_text("".join(lines))
    return load_split(root, "dev")


def test_speech_to_be_judged_on_is_kept_exactly(demo_corpus, tokenizer, tmp_path):
    store = FeatureStore.build(demo_corpus.dev, tokenizer, tmp_path / "dev", is_training=False)

    assert store.ids == [cut.id for cut in demo_corpus.dev]
    for i, cut in enumerate(demo_corpus.dev):
        item = store.item(i)
        torch.testing.assert_close(item.features, features_of(cut), atol=1e-5, rtol=0)
        assert item.text == transcript(cut)
        assert item.tokens.tolist() == tokenizer.encode(item.text)
        assert item.seconds == cut.duration
        assert len(item.features) == store.num_frames[i]


def test_training_speech_is_kept_nearly_exactly(demo_corpus, tokenizer, tmp_path):
    store = FeatureStore.build(demo_corpus.train, tokenizer, tmp_path / "a", is_training=True)

    for i, cut in enumerate(demo_corpus.train):
        torch.testing.assert_close(store.item(i).features, features_of(cut), atol=0.01, rtol=0)


def test_speeds_are_copies_of_other_lengths(demo_corpus, tokenizer, tmp_path):
    cuts = CutSet.from_cuts(list(demo_corpus.train)[:3])

    store = FeatureStore.build(
        cuts, tokenizer, tmp_path / "a", is_training=True, speeds=[0.9, 1.0, 1.1]
    )

    assert [name.partition("@")[2] for name in store.ids] == ["0.9", "", "1.1"] * 3
    slow, usual, fast = store.seconds[:3]
    assert (slow, fast) == (
        pytest.approx(usual / 0.9, abs=1e-3),
        pytest.approx(usual / 1.1, abs=1e-3),
    )
    assert store.texts[0] == store.texts[1] == store.texts[2]


def test_what_ctc_cannot_learn_is_left_out_of_training_and_counted(tokenizer, tmp_path, caplog):
    # Four words need four output frames of 40 ms, and one more between two equal ones.
    cuts = spoken(tmp_path, [1.0, 0.06, 0.18, 0.24], "ON ON OFF OFF")

    with caplog.at_level(logging.WARNING):
        store = FeatureStore.build(cuts, tokenizer, tmp_path / "a", is_training=True)

    assert store.ids == ["1-2-0"]
    assert sum(store.left_out.values()) == 3
    assert store.left_out["shorter than the front end's receptive field"] == 1
    assert "2 training utterances are shorter than their tokens and left out" in caplog.text
    assert FeatureStore.open(tmp_path / "a").left_out == store.left_out


def test_no_word_of_dev_is_lost(tokenizer, tmp_path):
    cuts = spoken(tmp_path, [0.001, 0.06, 0.24], "ON ON OFF OFF")

    store = FeatureStore.build(cuts, tokenizer, tmp_path / "a", is_training=False)

    assert len(store) == 3
    assert store.num_frames.tolist() == [0, 6, 24]
    assert store.item(0).features.shape == (0, 80)


def test_nothing_left_to_train_on_is_an_error(tokenizer, tmp_path):
    cuts = spoken(tmp_path, [0.1, 0.1], "ON ON OFF OFF")

    with pytest.raises(CorpusError, match="but all 2 are too short instead"):
        FeatureStore.build(cuts, tokenizer, tmp_path / "a", is_training=True)
    assert not (tmp_path / "a").exists()


def test_an_empty_split_is_an_empty_store(tokenizer, tmp_path):
    store = FeatureStore.build([], tokenizer, tmp_path / "test", is_training=False)

    assert len(store) == 0


def test_statistics_are_mean_and_deviation_of_all_frames(demo_corpus, tokenizer, tmp_path):
    store = FeatureStore.build(demo_corpus.dev, tokenizer, tmp_path / "dev", is_training=False)
    frames = torch.cat([store.item(i).features for i in range(len(store))])

    mean, std = store.statistics()

    torch.testing.assert_close(mean, frames.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, frames.std(0, unbiased=False), atol=1e-4, rtol=0)


def write_store(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.bin")}


def test_features_are_computed_once(demo_corpus, demo_config, tokenizer, tmp_path):
    open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path)
    first = write_store(tmp_path)
    again = open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path)

    assert len(first) == 1
    assert write_store(tmp_path) == first
    assert again.ids == [cut.id for cut in demo_corpus.dev]


def test_features_of_other_speech_or_tokens_or_speeds_are_others(
    demo_corpus, demo_config, tokenizer, tmp_path
):
    other = replace(demo_corpus, digest="other")
    letters = CorpusConfig(tokens="char")
    spelling = Tokenizer.train(map(transcript, demo_corpus.train), letters, tmp_path / "letters")
    faster = demo_config.model_copy(update={"speeds": [1.0, 1.1]})

    def store_folder(split, corpus=demo_corpus, tokens=tokenizer, config=demo_config):
        return open_or_build(corpus, split, tokens, config, tmp_path).folder

    assert (
        len({store_folder("dev"), store_folder("dev", other), store_folder("dev", tokens=spelling)})
        == 3
    )
    assert store_folder("train") != store_folder("train", config=faster)
    assert store_folder("dev") == store_folder("dev", config=faster)


@pytest.mark.parametrize("file", ["features.bin", "arrays.npz", "index.json"])
def test_a_store_cut_short_is_named_and_computed_again(
    file, demo_corpus, demo_config, tokenizer, tmp_path
):
    folder = open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path).folder
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(CorpusError, match="must be a feature store, but is missing or damaged"):
        FeatureStore.open(folder)
    open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path)
    assert (folder / file).read_bytes() == whole
    assert list(tmp_path.iterdir()) == [folder]


def test_audio_that_breaks_off_is_named(demo_corpus, tokenizer, tmp_path):
    cut = demo_corpus.dev[0]
    whole = Path(cut.recording.sources[0].source).read_bytes()
    folder = tmp_path / "dev" / "1" / "2"
    folder.mkdir(parents=True)
    (folder / "1-2-3.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "1-2.trans.txt").write_text("1-2-3 ON\n")
    cuts = load_split(tmp_path, "dev")  # its header is whole

    with pytest.raises(CorpusError, match=r"1-2-3.flac` must be readable audio, but is not"):
        FeatureStore.build(cuts, tokenizer, tmp_path / "store", is_training=False)
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_named_and_leaves_nothing_behind(demo_corpus, tokenizer, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/dev'"):
            FeatureStore.build(demo_corpus.dev, tokenizer, tmp_path / "dev", is_training=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
def test_real_speech_is_cached_whole(commands_root, tmp_path):
    config = CorpusConfig(name=str(commands_root), tokens="word")
    corpus = open_corpus(config, tmp_path)
    tokenizer = Tokenizer.train(map(transcript, corpus.train), config, tmp_path)

    store = open_or_build(corpus, "train", tokenizer, config, tmp_path)

    assert len(store) == 1118
    assert store.left_out == {}
    assert tokenizer.size == 9 + 2
    assert store.seconds.sum() / 3600 == pytest.approx(1.125, abs=0.01)


def test_tokens_are_counted_over_all_utterances(demo_corpus, tokenizer, tmp_path):
    store = FeatureStore.build(demo_corpus.dev, tokenizer, tmp_path / "dev", is_training=False)

    counts = store.token_counts(tokenizer.size + 2)

    tokens = [token for i in range(len(store)) for token in store.item(i).tokens.tolist()]
    assert counts.tolist() == [tokens.count(token) for token in range(tokenizer.size + 2)]
