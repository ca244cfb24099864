"""Manifests as corpora: mixes and changes as lhotse makes them, single files, shared speech."""

import json
import logging
import shutil

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus, open_split
from core.data.tokenizer import transcript


@pytest.fixture
def recordings(tmp_path):
    """Half a second of noise each, of which no two are equal."""
    rng = np.random.default_rng(1)
    made = []
    for name in ("a", "b", "c", "d"):
        samples = np.round(3000 * rng.standard_normal(8_000)) / 32_768
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
        made.append(Recording.from_file(tmp_path / f"{name}.wav"))
    return made


def spoken(recording, text="GO ON", channel=0):
    cut = recording.to_cut()
    cut.supervisions = [
        SupervisionSegment(
            id=f"{recording.id}-said",
            recording_id=recording.id,
            start=0.0,
            duration=recording.duration,
            text=text,
            channel=channel,
        )
    ]
    return cut


def open_test(root, **fields):
    return list(open_split(CorpusConfig(name=str(root), **fields), root.parent, "test"))


def save_cuts(cuts, folder, split="test"):
    folder.mkdir(exist_ok=True)
    CutSet.from_cuts(cuts).to_file(folder / f"{split}.jsonl")
    return folder


CHANGES = {
    "speed": lambda one, _: one.perturb_speed(0.9),
    "volume": lambda one, _: one.perturb_volume(0.5),
    "another rate": lambda one, _: one.resample(8_000),
    "telephone": lambda one, _: one.narrowband("mulaw"),
    "clipping": lambda one, _: one.clip_amplitude(hard=True, gain_db=6.0),
    "a codec": lambda one, _: one.compress("vorbis", 0.5),
    "two changes": lambda one, _: one.perturb_speed(1.1).perturb_volume(2.0),
    "an impulse response": lambda one, other: one.reverb_rir(other.recording),
    "zeros behind": lambda one, _: one.pad(duration=1.0),
    "zeros before": lambda one, _: one.pad(duration=1.0, direction="left"),
    "noise below": lambda one, other: one.mix(other.drop_supervisions(), snr=10),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_lhotse_changes_is_heard_as_lhotse_has_it(change, recordings, tmp_path):
    cut = CHANGES[change](spoken(recordings[0]), spoken(recordings[1]))
    expected = torch.from_numpy(cut.load_audio()[0])

    [one] = open_test(save_cuts([cut], tmp_path / "corpus"))

    assert (one.id, transcript(one)) == (cut.id, "GO ON")
    samples = read_cut(one)
    if cut.sampling_rate == 16_000:
        torch.testing.assert_close(samples, expected)
    else:
        assert len(samples) == 2 * len(expected)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # lhotse draws rooms as NumPy 1 would
def test_a_room_that_lhotse_draws_is_heard(recordings, tmp_path):
    """Each reading draws anew, whatever the seeds: lhotse 1.33 draws from torch's as well."""
    dry = spoken(recordings[0])
    seeds = {"room_rng_seed": 0, "source_rng_seed": 0}
    alone = dry.reverb_rir(**seeds)
    mixed = dry.mix(spoken(recordings[1]).drop_supervisions()).reverb_rir(**seeds)

    for samples in map(read_cut, open_test(save_cuts([alone, mixed], tmp_path / "corpus"))):
        assert len(samples) == 8_000
        assert samples.isfinite().all()
        assert not torch.allclose(samples, torch.from_numpy(dry.load_audio()[0]))


def test_a_loudness_or_tempo_that_cannot_be_made_is_refused_before_anything_is_read(
    recordings, tmp_path
):
    for cut in (
        spoken(recordings[0]).perturb_tempo(1.1),
        spoken(recordings[0]).normalize_loudness(-20),
        spoken(recordings[0]).dereverb_wpe(),
    ):
        with pytest.raises(CorpusError, match=r"write the changed audio out, and make a manifest"):
            open_test(save_cuts([cut], tmp_path / "corpus"))


def test_cuts_in_a_row_are_the_utterances_that_they_were(recordings, tmp_path):
    one, two = spoken(recordings[0], "ONE"), spoken(recordings[1], "TWO")

    utterances = open_test(save_cuts([one.append(two)], tmp_path / "corpus"))

    assert [(cut.id, transcript(cut)) for cut in utterances] == [
        ("a-said", "ONE"),
        ("b-said", "TWO"),
    ]
    for cut, original in zip(utterances, (one, two), strict=True):
        samples = torch.from_numpy(original.load_audio()[0])
        torch.testing.assert_close(read_cut(cut), samples, atol=0, rtol=0)


def test_a_corpus_may_be_one_manifest(recordings, tmp_path):
    root = save_cuts([spoken(recordings[0])], tmp_path / "corpus")
    (tmp_path / "nemo.json").write_text(
        json.dumps({"audio_filepath": "b.wav", "duration": 0.5, "text": "STOP"}) + "\n"
    )

    assert [transcript(cut) for cut in open_test(root / "test.jsonl")] == ["GO ON"]
    assert [(cut.id, transcript(cut)) for cut in open_test(tmp_path / "nemo.json")] == [
        ("b.wav", "STOP")
    ]
    with pytest.raises(CorpusError, match=r"must be a folder with splits .* is one manifest inst"):
        open_corpus(CorpusConfig(name=str(tmp_path / "nemo.json")), tmp_path)


def test_one_file_that_is_no_manifest_is_refused_by_name(tmp_path):
    (tmp_path / "notes.jsonl").write_text("hello\n")
    (tmp_path / "table.csv").write_text("a,b\n")

    with pytest.raises(CorpusError, match=r"notes.jsonl`, line 1, must be one JSON object"):
        open_test(tmp_path / "notes.jsonl")
    with pytest.raises(CorpusError, match=r"table.csv`, line 1, must be one JSON object"):
        open_test(tmp_path / "table.csv")


def test_a_relative_path_is_from_the_manifest_wherever_the_program_starts(
    recordings, tmp_path, monkeypatch
):
    root = tmp_path / "corpus"
    (root / "audio").mkdir(parents=True)
    (tmp_path / "audio").mkdir()
    shutil.copy(tmp_path / "a.wav", root / "audio" / "x.wav")
    shutil.copy(tmp_path / "b.wav", tmp_path / "audio" / "x.wav")
    shutil.copy(tmp_path / "b.wav", tmp_path / "audio" / "y.wav")
    lines = [{"audio_filepath": f"audio/{name}.wav", "text": "GO"} for name in ("x", "y")]
    (root / "test.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)

    relative, here = map(read_cut, open_test(root))

    for samples, original in ((relative, recordings[0]), (here, recordings[1])):
        expected = torch.from_numpy(original.load_audio()[0])
        torch.testing.assert_close(samples, expected, atol=0, rtol=0)


def splits(recordings, folder, **chosen):
    for split, names in chosen.items():
        cuts = [spoken(recordings["abcd".index(name)]) for name in names]
        save_cuts([cut.with_id(f"{split}{n}") for n, cut in enumerate(cuts)], folder, split)
    return folder


def test_speech_that_is_trained_on_and_judged_on_is_said_once(recordings, tmp_path, caplog):
    root = splits(recordings, tmp_path / "corpus", train="ab", dev="cab", test="d")

    with caplog.at_level(logging.WARNING):
        open_corpus(CorpusConfig(name=str(root)), tmp_path)

    [record] = caplog.records
    assert record.getMessage().startswith(
        "2 utterances of the dev and test splits are trained on, such as `dev1`"
    )


def test_equal_names_of_other_speech_in_two_splits_are_no_fault(recordings, tmp_path, caplog):
    root = tmp_path / "corpus"
    save_cuts([spoken(recordings[n]).with_id(f"u{n}") for n in (0, 1)], root, "train")
    save_cuts([spoken(recordings[2]).with_id("u0")], root, "dev")

    with caplog.at_level(logging.WARNING):
        open_corpus(CorpusConfig(name=str(root)), tmp_path)

    assert caplog.text == ""


def stereo(tmp_path, recordings):
    samples = np.stack([one.load_audio()[0] for one in recordings[:2]], axis=1)
    soundfile.write(tmp_path / "stereo.wav", samples, 16_000)
    return Recording.from_file(tmp_path / "stereo.wav")


def test_both_sides_of_a_call_are_two_utterances_of_which_neither_is_the_other(
    recordings, tmp_path, caplog
):
    call = stereo(tmp_path, recordings)
    known = {"start": 0.0, "duration": call.duration, "recording": call}
    sides = [
        MonoCut(id=f"u{n}", channel=n, supervisions=spoken(recordings[0]).supervisions, **known)
        for n in (0, 1)
    ]
    root = save_cuts([sides[0], spoken(recordings[2])], tmp_path / "corpus", "train")
    digests = []
    for side in sides:
        save_cuts([side.with_id("u")], root, "dev")
        with caplog.at_level(logging.WARNING):
            digests.append(open_corpus(CorpusConfig(name=str(root)), tmp_path).digest)

    assert digests[0] != digests[1]
    assert len(caplog.records) == 1  # of the first side, which is trained on


def test_the_digest_changes_with_the_part_that_is_heard(recordings, tmp_path):
    root = splits(recordings, tmp_path / "corpus", train="ab")
    digests = set()
    for begin in (0.0, 0.1, 0.2):
        cut = spoken(recordings[2]).truncate(offset=begin, duration=0.25).with_id("u")
        cut.supervisions = [
            SupervisionSegment(id="u", recording_id="c", start=0.0, duration=0.25, text="GO")
        ]
        save_cuts([cut], root, "dev")
        digests.add(open_corpus(CorpusConfig(name=str(root)), tmp_path).digest)

    assert len(digests) == 3


def test_a_multi_cut_of_whom_nobody_says_which_channel_is_heard_is_refused(recordings, tmp_path):
    call = stereo(tmp_path, recordings)
    cut = MultiCut(
        id="u", start=0.0, duration=call.duration, channel=[0, 1], recording=call, supervisions=[]
    )
    root = save_cuts([cut], tmp_path / "corpus")

    with pytest.raises(CorpusError, match=r"must have one channel, but has 2 instead; name a chan"):
        open_test(root, labels="teacher")


def test_without_words_recordings_are_heard_whole_or_as_they_are_cut(recordings, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    lines = [json.dumps(one.to_dict()) + "\n" for one in recordings[:2]]
    (root / "recordings_train.jsonl").write_text("".join(lines))
    part = {"id": "x", "recording_id": "a", "start": 0.1, "duration": 0.2}
    (root / "supervisions_train.jsonl").write_text(json.dumps(part) + "\n")
    save_cuts([spoken(recordings[2])], root, "dev")

    corpus = open_corpus(CorpusConfig(name=str(root), labels="teacher"), tmp_path)

    assert [(cut.id, cut.duration) for cut in corpus.train] == [("x", 0.2), ("b-1", 0.5)]
