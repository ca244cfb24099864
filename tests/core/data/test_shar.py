"""Shar folders as lhotse writes them, whole, halved and with payloads."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_split
from core.data.tokenizer import transcript

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tar'>:ResourceWarning")


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    samples = np.round(3000 * np.random.default_rng(0).standard_normal((16_000, 2))) / 32_768
    soundfile.write(folder / "stereo.wav", samples, 16_000)
    return Recording.from_file(folder / "stereo.wav")


def supervision(name, start, duration, text, channel=0):
    return SupervisionSegment(
        id=name, recording_id="stereo", start=start, duration=duration, text=text, channel=channel
    )


def write_shar(cuts, root, size=2):
    """A split that lhotse itself writes."""
    (root / "test").mkdir(parents=True)
    CutSet.from_cuts(cuts).to_shar(root / "test", fields={"recording": "flac"}, shard_size=size)
    return root


def mono(recording, name, channel, *spoken, duration=1.0):
    return MonoCut(
        id=name,
        start=0,
        duration=duration,
        channel=channel,
        recording=recording,
        supervisions=list(spoken) or [supervision(name, 0, duration, "GO", channel)],
    )


def open_test(root):
    return list(open_split(CorpusConfig(name=str(root)), root.parent, "test"))


def samples_of(recording, channel, begin=0, end=16_000):
    samples = soundfile.read(recording.sources[0].source, dtype="float32")[0]
    return torch.from_numpy(samples[begin:end, channel].copy())


@pytest.fixture
def root(stereo, tmp_path):
    return write_shar([mono(stereo, f"u{n}", n % 2) for n in range(4)], tmp_path / "corpus")


def test_each_channel_is_heard(root, stereo):
    utterances = open_test(root)

    assert [cut.id for cut in utterances] == ["u0", "u1", "u2", "u3"]
    for number, cut in enumerate(utterances):
        torch.testing.assert_close(read_cut(cut), samples_of(stereo, number % 2), atol=0, rtol=0)


def test_a_multi_cut_gives_both_sides(stereo, tmp_path):
    both = [supervision("a", 0, 0.5, "ONE", 0), supervision("b", 0.25, 0.75, "TWO", 1)]
    call = MultiCut(
        id="call", start=0, duration=1.0, channel=[0, 1], recording=stereo, supervisions=both
    )

    one, two = open_test(write_shar([call], tmp_path / "corpus"))

    assert [transcript(one), transcript(two)] == ["ONE", "TWO"]
    torch.testing.assert_close(read_cut(one), samples_of(stereo, 0, 0, 8_000), atol=0, rtol=0)
    torch.testing.assert_close(read_cut(two), samples_of(stereo, 1, 4_000), atol=0, rtol=0)


def test_what_nobody_transcribed_is_not_heard(stereo, tmp_path, caplog):
    cuts = [
        mono(stereo, "a", 0, supervision("u", 0.5, 0.25, "ONE")),
        mono(stereo, "b", 0, supervision("v", -0.5, 1.0, "TWO")),
    ]

    with caplog.at_level(logging.WARNING):
        one, two = open_test(write_shar(cuts, tmp_path / "corpus"))

    torch.testing.assert_close(read_cut(one), samples_of(stereo, 0, 8_000, 12_000), atol=0, rtol=0)
    torch.testing.assert_close(read_cut(two), samples_of(stereo, 0, 0, 8_000), atol=0, rtol=0)
    assert caplog.text.count("they are clipped to it") == 1


def repack_archive(archive, change):
    """Writes an archive anew, each member changed."""
    with tarfile.open(archive) as opened:
        members = [(one, opened.extractfile(one).read()) for one in opened]
    with tarfile.open(archive, "w") as opened:
        for number, (member, content) in enumerate(members):
            for header, data in change(number, member, content):
                header.size = len(data)
                opened.addfile(header, io.BytesIO(data))


def describe_as(values):
    """Changes what is said of the first utterance's audio."""

    def change(number, member, content):
        if number == 1:
            content = json.dumps({**json.loads(content), **values}).encode()
        yield member, content

    return change


def link(number, member, content):
    if number == 0:
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        content = b""
    yield member, content


def without_last(number, member, content):
    if number < 2:
        yield member, content


def uneven(number, member, content):
    if number < 3:
        yield member, content


def rename(_number, member, content):
    member.name = member.name.replace("u0", "../u0")
    yield member, content


def silent(number, member, content):
    if number < 2:
        member.name = f"u0.{('nodata', 'nometa')[number]}"
    yield member, content


REVERB = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": None}}]
COMMAND = {"type": "command", "channels": [0], "source": "touch mark"}
RIR = {"id": "r", "sources": [COMMAND], "sampling_rate": 16_000, "num_samples": 9, "duration": 0.1}
BAD = {
    "a source that is run": (describe_as({"sources": [COMMAND]}), "is a `command` instead"),
    "a response that is run": (
        describe_as({"transforms": [{**REVERB[0], "kwargs": {"rir": RIR}}]}),
        r"`transforms.0.kwargs.rir.sources.0` must name an audio file, but is a `command`",
    ),
    "a file for a source": (
        describe_as({"sources": [{"type": "file", "channels": [0], "source": "/etc/passwd"}]}),
        "must have one source of type `shar`",
    ),
    "two sources": (
        describe_as({"sources": [{"type": "shar", "channels": [n]} for n in (0, 1)]}),
        "must have one source of type `shar`",
    ),
    "no rate": (describe_as({"sampling_rate": None}), "`sampling_rate` must be a whole number"),
    "another rate": (
        describe_as({"sampling_rate": 8_000, "num_samples": 8_000}),
        "must have 1 channels of 8000 samples a second, but has 1 of 16000",
    ),
    "more channels": (
        describe_as({"sources": [{"type": "shar", "channels": [0, 1]}], "channel_ids": [0, 1]}),
        "must have 2 channels of 16000 samples a second, but has 1 of 16000",
    ),
    "a link": (link, "must hold files of at most"),
    "too few": (without_last, "must hold the audio of `u1`, but holds no more"),
    "no description": (uneven, "must describe `u1.flac`, but ends with it"),
    "another name": (rename, r"must hold the audio of `u0`, but holds that of `\.\./u0`"),
    "a placeholder": (silent, "`u0` of .* must have audio, but has none"),
    "no JSON": (
        lambda number, member, content: [(member, b"{" if number == 1 else content)],
        "must be one JSON object",
    ),
    "no audio": (
        lambda number, member, content: [(member, b"no" if number == 0 else content)],
        "`u0` of .* must be readable audio",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_is_refused_by_name_and_nothing_of_it_is_run(case, root, monkeypatch):
    change, rule = BAD[case]
    monkeypatch.chdir(root)
    repack_archive(root / "test" / "recording.000000.tar", change)

    with pytest.raises(CorpusError, match=rule) as caught:
        open_test(root)

    assert str(caught.value).isprintable()
    assert "recording.000000.tar" in str(caught.value)
    assert not (root / "mark").exists()


@pytest.mark.parametrize(
    ("removed", "rule"),
    [
        (["recording.000001.tar"], r"cuts.000001.* must have `recording.000001.tar` beside it"),
        (["cuts.000000.jsonl.gz"], r"recording.000000.tar` must have `cuts.000000.jsonl.gz`"),
        (["recording.000000.tar", "recording.000001.tar"], "but is in an archive that is not here"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(root, removed, rule):
    for name in removed:
        (root / "test" / name).unlink()

    with pytest.raises(CorpusError, match=rule):
        open_test(root)


def test_an_archive_cut_short_is_refused_by_name(root):
    archive = root / "test" / "recording.000001.tar"
    archive.write_bytes(archive.read_bytes()[:3_000])

    with pytest.raises(CorpusError, match=r"recording.000001.tar` must be a readable tar file"):
        open_test(root)


def test_cuts_without_archives_are_read_from_their_files(stereo, tmp_path):
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    CutSet.from_cuts([mono(stereo, "a", 1)]).to_file(folder / "cuts.000000.jsonl.gz")

    [one] = open_test(tmp_path / "corpus")

    torch.testing.assert_close(read_cut(one), samples_of(stereo, 1), atol=0, rtol=0)
