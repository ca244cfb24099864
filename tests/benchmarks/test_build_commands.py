"""benchmarks/corpora/build_commands.py makes the corpus `commands` of Speech Commands.

The source is a small copy of the published layout, in which each word is a tone.
"""

import gzip
import importlib
import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.trial import CorpusConfig
from core.data.corpus import open_corpus

ROOT = Path(__file__).parents[2]
RATE = 16_000
LENGTH = 4000
"""Samples of a word here; the published ones have up to 16,000."""
SPEAKERS = [f"{number:08x}" for number in range(0xA0, 0xA0 + 12)]


@pytest.fixture(scope="module")
def build():
    return importlib.import_module("benchmarks.corpora.build_commands")


def tone(word, words):
    """The word's own frequency."""
    time = np.arange(LENGTH) / RATE
    return 0.3 * np.sin(2 * np.pi * (300 + 200 * words.index(word)) * time)


@pytest.fixture(scope="module")
def source(build, tmp_path_factory):
    """The published layout with twelve speakers, and what else the archive holds."""
    folder = tmp_path_factory.mktemp("speech_commands")
    rng = np.random.default_rng(0)
    for word in (*build.WORDS, "cat"):
        (folder / word).mkdir()
        sound = tone(word, (*build.WORDS, "cat"))
        for speaker in SPEAKERS:
            for take in range(rng.integers(3)):
                file = folder / word / f"{speaker}_nohash_{take}.wav"
                soundfile.write(file, sound, RATE, "PCM_16")
    (folder / "_background_noise_").mkdir()
    soundfile.write(folder / "_background_noise_" / "pink_noise.wav", tone("up", build.WORDS), RATE)
    for name in ("testing_list.txt", "validation_list.txt", "README.md"):
        (folder / name).write_text("right/000000a0_nohash_0.wav\n")
    return folder


def archive_of(folder, file):
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, arcname=".")
    return file


@pytest.fixture(scope="module")
def corpus(build, source, tmp_path_factory):
    """The corpus of `--draw`, seed 0."""
    out = tmp_path_factory.mktemp("corpora") / "corpus"
    run(build, source, out, "--draw")
    return out


def run(build, source, out, *options):
    build.main([str(source), "--out", str(out), *map(str, options)])


def contents(out):
    """Transcripts and samples by file: an Ogg stream has a random serial number."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): soundfile.read(path)[0].tobytes()
        if path.suffix == ".ogg"
        else path.read_bytes()
        for path in files
    }


def transcripts(out):
    lines = [line for file in out.rglob("*.trans.txt") for line in file.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


def test_each_part_of_an_utterance_sounds_like_its_word(build, corpus):
    for name, text in transcripts(corpus).items():
        (file,) = corpus.rglob(f"{name}.ogg")
        samples, rate = soundfile.read(file)
        words = text.lower().split()
        assert rate == RATE
        assert len(samples) == LENGTH * len(words)
        for word, part in zip(words, samples.reshape(len(words), LENGTH), strict=True):
            loudest_hz = np.abs(np.fft.rfft(part[1000:-1000])).argmax() * RATE / (LENGTH - 2000)
            assert abs(loudest_hz - (300 + 200 * build.WORDS.index(word))) < 20


def test_it_opens_as_speech_in_three_splits_that_share_no_speaker(build, corpus, tmp_path):
    speech = open_corpus(CorpusConfig(name=str(corpus), tokens="word"), tmp_path)

    ids = [{path.name for path in (corpus / name).iterdir()} for name in build.SPLITS]
    assert all(ids)
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(SPEAKERS)
    counts = [len(list(part)) for part in (speech.train, speech.dev, speech.test)]
    assert sum(counts) == len(transcripts(corpus))


def test_a_folder_and_its_archive_build_the_same_corpus(build, source, corpus, tmp_path):
    archive = archive_of(source, tmp_path / "archive.tar.gz")

    run(build, archive, tmp_path / "same", "--draw")
    run(build, archive, tmp_path / "other", "--draw", "--seed", 6)

    assert contents(tmp_path / "same") == contents(corpus)
    assert transcripts(tmp_path / "other") != transcripts(corpus)


def test_an_interrupted_build_goes_on_to_the_same_corpus(
    build, source, corpus, tmp_path, monkeypatch
):
    write, written = build._write_speaker, []

    def write_four(out, plan, samples):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(plan.number)
        write(out, plan, samples)

    with monkeypatch.context() as patched:
        patched.setattr(build, "_write_speaker", write_four)
        with pytest.raises(KeyboardInterrupt):
            run(build, source, tmp_path / "out", "--draw")
    first = next((tmp_path / "out").rglob(f"{written[0]}-1-0000.ogg"))
    before = first.stat().st_mtime_ns
    (tmp_path / "out" / ".1007.999" / "1").mkdir(parents=True)  # a kill leaves this
    run(build, source, tmp_path / "out", "--draw")

    assert contents(tmp_path / "out") == contents(corpus)
    assert not list((tmp_path / "out").glob(".1*"))
    assert first.stat().st_mtime_ns == before  # it was not written twice


@settings(deadline=None, max_examples=60)
@given(total=st.integers(0, 60), seed=st.integers(0, 2**31))
def test_every_recording_is_used_once_in_two_to_six_words(build, total, seed):
    recordings = [build.Recording("000000a0", "up", take) for take in range(total)]

    utterances = build.draw_utterances(recordings, np.random.default_rng(seed))

    used = [each for utterance in utterances for each in utterance]
    assert len(used) == len(set(used))
    assert total - len(used) <= (1 if total in (1, *range(7, 61)) else 0)
    assert all(2 <= len(utterance) <= 6 for utterance in utterances)


def test_drawn_lengths_are_spread_as_in_the_published_utterances(build):
    """Speakers who have as many recordings as the published ones: shares within 3 points."""
    lines = [
        line.split("\t") for line in build.PUBLISHED.read_text().splitlines() if line[0] != "#"
    ]
    published = Counter(len(words.split()) for *_, words in lines)
    per_speaker = Counter()
    for _, number, _, words in lines:
        per_speaker[number] += len(words.split())
    drawn = Counter()
    for seed in range(20):
        for number, total in per_speaker.items():
            recordings = [build.Recording("000000a0", "up", take) for take in range(total)]
            rng = np.random.default_rng([seed, int(number)])
            drawn.update(map(len, build.draw_utterances(recordings, rng)))

    for length in range(2, 7):
        share = published[length] / published.total()
        assert drawn[length] / drawn.total() == pytest.approx(share, abs=0.03)


def test_the_published_utterances_are_those_of_the_corpus(build, commands_root):
    speakers = {}
    for line in (commands_root / "SPEAKERS.TXT").read_text().splitlines()[1:]:
        number, _, split, name = (part.strip() for part in line.split("|"))
        speakers[number] = (split, name.split()[1])
    lines = [line for line in build.PUBLISHED.read_text().splitlines() if line[0] != "#"]

    names, count = {}, Counter()
    for split, number, speaker, words in (line.split("\t") for line in lines):
        assert speakers[number] == (split, speaker)
        names[f"{number}-1-{count[number]:04d}"] = words.upper()
        count[number] += 1

    assert names == transcripts(commands_root)


def test_without_draw_the_published_speakers_say_the_published_words(build, tmp_path):
    lines = [
        line.split("\t") for line in build.PUBLISHED.read_text().splitlines() if line[0] != "#"
    ]
    chosen = {number for _, number, _, _ in lines[::200]}
    mine = [line for line in lines if line[1] in chosen]
    takes = Counter()
    for _, _, speaker, words in mine:
        for word in words.split():
            folder = tmp_path / "source" / word
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{speaker}_nohash_{takes[speaker, word]}.wav"
            soundfile.write(file, tone(word, build.WORDS), RATE, "PCM_16")
            takes[speaker, word] += 1

    run(build, tmp_path / "source", tmp_path / "out")

    expected = Counter((split, number, words.upper()) for split, number, _, words in mine)
    actual = Counter()
    for name, text in transcripts(tmp_path / "out").items():
        (file,) = (tmp_path / "out").rglob(f"{name}.ogg")
        actual[file.parts[-4], name.split("-")[0], text] += 1
    assert actual == expected


def test_a_word_that_is_missing_is_left_out_and_reported(build, tmp_path, capsys):
    for word, take in [("down", 0), ("left", 0)]:  # of the first utterance, `down left one`
        (tmp_path / "source" / word).mkdir(parents=True)
        file = tmp_path / "source" / word / f"00176480_nohash_{take}.wav"
        soundfile.write(file, tone(word, build.WORDS), RATE, "PCM_16")

    run(build, tmp_path / "source", tmp_path / "out")

    assert list(transcripts(tmp_path / "out").values()) == ["DOWN LEFT"]
    assert "0 of 1343 published utterances have all their words" in capsys.readouterr().err


class TestRefusals:
    """One line that names what is wrong, exit 2, and nothing is lost."""

    def error_line(self, build, capsys, source, out, *options):
        with pytest.raises(SystemExit) as ended:
            run(build, source, out, *options)
        assert ended.value.code == 2
        (line,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")
        ]
        return line

    def test_a_source_that_is_missing(self, build, capsys, tmp_path):
        line = self.error_line(build, capsys, tmp_path / "none", tmp_path / "out")
        assert "must be a folder or a .tar.gz, but is missing" in line
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_something_else(self, build, capsys, tmp_path):
        (tmp_path / "other").mkdir()
        line = self.error_line(build, capsys, tmp_path / "other", tmp_path / "out")
        assert "must hold recordings like" in line

    @pytest.mark.parametrize("share", [0.5, 0.99])
    def test_an_archive_that_was_cut_short(self, build, source, capsys, tmp_path, share):
        whole = archive_of(source, tmp_path / "archive.tar.gz").read_bytes()
        (tmp_path / "cut.tar.gz").write_bytes(whole[: int(share * len(whole))])
        line = self.error_line(build, capsys, tmp_path / "cut.tar.gz", tmp_path / "out")
        assert "download it again" in line

    def test_an_archive_with_a_damaged_middle(self, build, source, capsys, tmp_path):
        content = bytearray(archive_of(source, tmp_path / "archive.tar.gz").read_bytes())
        content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
        (tmp_path / "bad.tar.gz").write_bytes(content)
        line = self.error_line(build, capsys, tmp_path / "bad.tar.gz", tmp_path / "out")
        assert "bad.tar.gz" in line

    def test_a_file_that_is_no_archive(self, build, capsys, tmp_path):
        (tmp_path / "words.tar.gz").write_bytes(b"no archive at all" * 100)
        line = self.error_line(build, capsys, tmp_path / "words.tar.gz", tmp_path / "out")
        assert "cannot be read" in line

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_an_archive_whose_header_asks_for_a_terabyte(self, build, capsys, tmp_path, kind):
        header = tarfile.TarInfo("up/000000a0_nohash_0.wav")
        header.size, header.type = 1 << 40, kind
        with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
        line = self.error_line(build, capsys, tmp_path / "bomb.tar.gz", tmp_path / "out")
        assert "far larger" in line or "asks for more than" in line

    @pytest.mark.parametrize(
        ("rate", "seconds", "channels"), [(8000, 1.0, 1), (RATE, 1.5, 1), (RATE, 1.0, 2)]
    )
    def test_a_recording_of_another_kind(self, build, capsys, tmp_path, rate, seconds, channels):
        (tmp_path / "source" / "down").mkdir(parents=True)
        name = "down/00176480_nohash_0.wav"
        samples = np.zeros((int(rate * seconds), channels))
        soundfile.write(tmp_path / "source" / name, samples, rate, "PCM_16")
        (tmp_path / "source" / "left").mkdir()
        soundfile.write(tmp_path / "source/left/00176480_nohash_0.wav", np.zeros(9), RATE)
        line = self.error_line(build, capsys, tmp_path / "source", tmp_path / "out")
        assert name in line
        assert "must be 16 kHz mono of at most 1 s" in line

    def test_a_recording_that_is_no_audio(self, build, capsys, tmp_path):
        for word in ("down", "left"):
            (tmp_path / "source" / word).mkdir(parents=True)
            (tmp_path / "source" / word / "00176480_nohash_0.wav").write_bytes(b"nothing")
        line = self.error_line(build, capsys, tmp_path / "source", tmp_path / "out")
        assert "must be a WAV file" in line

    def test_a_source_without_any_published_speaker(self, build, source, capsys, tmp_path):
        line = self.error_line(build, capsys, source, tmp_path / "out")
        assert "`--draw` takes other speakers" in line

    def test_a_folder_that_another_build_began(self, build, source, corpus, capsys):
        before = contents(corpus)
        line = self.error_line(build, capsys, source, corpus, "--draw", "--seed", 1)
        assert "begun with other arguments" in line
        assert contents(corpus) == before

    def test_a_folder_that_holds_something_else(self, build, source, capsys, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        line = self.error_line(build, capsys, source, tmp_path / "out", "--draw")
        assert "holds files" in line

    def test_numbers_that_are_none(self, build, source, capsys, tmp_path):
        assert "--seed" in self.error_line(build, capsys, source, tmp_path / "out", "--seed", -1)
        line = self.error_line(build, capsys, source, tmp_path / "out", "--draw", "--speakers", 2)
        assert "`--speakers` at least 3" in line


def test_names_in_an_archive_never_become_paths(build, source, corpus, tmp_path):
    archive = archive_of(source, tmp_path / "archive.tar.gz")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as evil, tarfile.open(archive) as good:
        link = tarfile.TarInfo("up/000000aa_nohash_9.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        evil.addfile(link)
        outside = tarfile.TarInfo("../../../evil.sh")
        outside.size = 4
        evil.addfile(outside, io.BytesIO(b"evil"))
        for member in good:
            evil.addfile(member, good.extractfile(member) if member.isreg() else None)

    (tmp_path / "room").mkdir()
    run(build, tmp_path / "evil.tar.gz", tmp_path / "room" / "out", "--draw")

    assert contents(tmp_path / "room" / "out") == contents(corpus)
    assert not list(tmp_path.rglob("evil.sh"))


def test_it_runs_by_the_command_that_the_docs_name(source, tmp_path):
    module = "benchmarks.corpora.build_commands"
    command = [sys.executable, "-m", module, source, "--out", tmp_path / "o"]
    done = subprocess.run(  # noqa: S603
        [*command, "--draw"], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "SPEAKERS.TXT").read_text().startswith(";ID | SEX | SUBSET")
