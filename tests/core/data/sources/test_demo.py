import sys
from typing import get_args

import numpy as np
import pytest
import soundfile

from core.config.trial import DemoCommand, DemoConfig
from core.data.audio_decoding import CorpusError
from core.data.sources import demo, tts
from core.data.tokenizer import transcript

TINY = DemoConfig(train_utterances=6, dev_utterances=2, test_utterances=2)


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_equal_configs_speak_equal_corpora_bit_for_bit(tmp_path):
    first, second = (contents(demo.speak(TINY, tmp_path / name)) for name in "ab")

    assert first == second
    assert sum(name.endswith(".flac") for name in first) == 10


def test_a_corpus_is_spoken_once_and_again_when_the_config_changes(tmp_path):
    folder = tmp_path / "demo"
    demo.speak(TINY, folder)
    before = (folder / "demo.json").stat().st_mtime_ns
    demo.speak(TINY, folder)
    unchanged = (folder / "demo.json").stat().st_mtime_ns
    first = contents(folder)
    demo.speak(TINY.model_copy(update={"seed": 1}), folder)

    assert before == unchanged
    assert contents(folder) != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]


def test_a_half_spoken_corpus_is_spoken_again(tmp_path):
    folder = demo.speak(TINY, tmp_path / "demo")
    whole = contents(folder)
    (folder / "demo.json").unlink()
    next(folder.rglob("*.flac")).unlink()

    assert contents(demo.speak(TINY, folder)) == whole


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("train_utterances", [2, 5, 50, 1000])
def test_training_says_every_word_of_dev_and_test(train_utterances, seed):
    config = DemoConfig(train_utterances=train_utterances, seed=seed)

    script = demo.write_script(config)

    words = {split: {w for line in script[split] for w in line.text.split()} for split in script}
    assert words["dev"] | words["test"] <= words["train"]
    assert [len(script[split]) for split in script] == [train_utterances, 150, 200]


def test_sentences_are_two_to_six_words_of_a_small_vocabulary():
    texts = [line.text for line in demo.write_script(DemoConfig())["train"]]

    assert {len(text.split()) for text in texts} == {2, 3, 4, 5, 6}
    assert 30 <= len({word for text in texts for word in text.split()}) <= 60


def test_speech_sounds_like_speech(demo_corpus):
    for cut in demo_corpus.train:
        samples = cut.load_audio()[0]
        words_per_second = len(transcript(cut).split()) / (len(samples) / 16000)
        assert cut.sampling_rate == 16000
        assert 0.8 < words_per_second < 5
        assert 0.005 < np.sqrt(np.mean(samples**2)) < 0.3


def test_a_missing_synthesiser_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)

    with pytest.raises(CorpusError, match=r"pip install \"conformer-sweep\[demo\]\""):
        demo.speak(TINY, tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_voice_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(tts.VOICES, "train", "nobody")

    with pytest.raises(CorpusError, match="eSpeak NG must have the voice `nobody`"):
        demo.speak(TINY, tmp_path / "demo")


def test_audio_is_flac_at_16_khz_under_the_librispeech_names(tmp_path):
    folder = demo.speak(TINY, tmp_path / "demo")

    for file in folder.rglob("*.flac"):
        speaker, chapter, _ = file.stem.split("-")
        assert file.parent == folder / file.parts[-4] / speaker / chapter
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")


def test_only_the_commands_that_are_asked_for_are_spoken():
    config = TINY.model_copy(update={"train_utterances": 50, "commands": ["call", "what"]})

    script = demo.write_script(config)

    firsts = {line.text.split()[0] for lines in script.values() for line in lines}
    assert firsts == {"call", "what"}


def test_every_command_of_the_config_begins_a_sentence_and_no_other_word_does():
    rng = np.random.default_rng(0)

    firsts = {demo._sentence(rng).split()[0] for _ in range(1000)}

    assert firsts == set(get_args(DemoCommand))
