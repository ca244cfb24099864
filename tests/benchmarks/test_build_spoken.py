"""benchmarks/corpora/build_spoken.py makes the texts of the corpus `spoken` and speaks them."""

import importlib
import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = ROOT.parent / "shared" / "data" / "text"

needs_texts = pytest.mark.skipif(not TEXTS.is_dir(), reason="../shared/data/text is not there")


@pytest.fixture(scope="module")
def build():
    return importlib.import_module("benchmarks.corpora.build_spoken")


@pytest.fixture
def metadata(build, tmp_path):
    """LJ Speech's metadata.csv, of other sentences."""
    lines = [
        f"LJ{number // 500:03}-{number % 500:04}|No. {number}|Number {number}, he said."
        for number in range(build.LJ_SENTENCES)
    ]
    lines[1] = "LJ000-0001|x|\"Müller\" don't like the debtors' side; forty-nine, a.m."
    lines[2] = "LJ000-0002|Mr.|Mister “quoted”"
    file = tmp_path / "metadata.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def chapters(build):
    return [line for line in build.CHAPTERS.read_text().splitlines() if line[0] != "#"]


@pytest.fixture
def dev_clean(build, tmp_path):
    """Two sentences in each chapter of dev-clean."""
    folder = tmp_path / "LibriSpeech"
    for name in chapters(build):
        chapter = folder / "dev-clean" / name.replace("-", "/")
        chapter.mkdir(parents=True)
        lines = [f"{name}-{number:04} CHAPTER {'AB'[number]}\n" for number in range(2)]
        (chapter / f"{name}.trans.txt").write_text("".join(lines))
    return folder


def archive_of(folder, file):
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, arcname="LibriSpeech")
        outside = tarfile.TarInfo("../../evil.txt")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"evil"))
    return file


def test_sentences_become_upper_case_words(build, metadata):
    lines = list(build.lj_sentences(metadata))

    assert lines[1] == "LJ000-0001 M LLER DON'T LIKE THE DEBTORS SIDE FORTY NINE A M"
    assert lines[2] == "LJ000-0002 MISTER QUOTED"
    assert len(lines) == build.LJ_SENTENCES


def test_a_folder_and_its_archive_have_the_same_texts(build, dev_clean, tmp_path):
    archive = archive_of(dev_clean, tmp_path / "dev-clean.tar.gz")

    lines = list(build.dev_clean_sentences(dev_clean))

    assert lines == list(build.dev_clean_sentences(archive))
    assert [line.split("-00")[0] for line in lines[::2]] == chapters(build)


@needs_texts
def test_dev_clean_gives_the_texts_of_the_results_to_the_letter(build, tmp_path):
    published = (TEXTS / build.LIBRISPEECH_FILE).read_text().splitlines()
    for line in published:
        speaker, chapter, _ = line.split()[0].split("-")
        folder = tmp_path / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{line}\n")

    assert list(build.dev_clean_sentences(tmp_path)) == published


@needs_texts
def test_what_is_normalized_already_stays_as_it_is(build, tmp_path):
    published = (TEXTS / build.LJ_FILE).read_text().splitlines()
    lines = ["{}|raw|{}".format(*line.split(" ", 1)) for line in published]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")

    assert list(build.lj_sentences(tmp_path / "metadata.csv")) == published


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="needs the extra `demo`"
)
def test_the_corpus_is_spoken_in_the_librispeech_layout(build, metadata, dev_clean, tmp_path):
    options = ["--train", "3", "--held-out", "2", "--texts", tmp_path / "texts"]
    sources = ["--lj", metadata.parent, "--librispeech", dev_clean, "--out", tmp_path / "out"]

    build.main([str(option) for option in (*options, *sources)])

    counts = {
        split: len(list((tmp_path / "out" / split).rglob("*.flac")))
        for split in ("train", "dev", "test")
    }
    assert counts == {"train": 3, "dev": 2, "test": 2}
    assert (tmp_path / "texts" / build.LJ_FILE).is_file()


class TestRefusals:
    """One line that names what is wrong, exit 2, and no corpus."""

    def error_line(self, build, capsys, tmp_path, lj, librispeech, *options):
        out = tmp_path / "out"
        values = ["--lj", lj, "--librispeech", librispeech, "--out", out, *options]
        with pytest.raises(SystemExit) as ended:
            build.main([str(value) for value in values])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def test_another_table(self, build, capsys, tmp_path, dev_clean):
        (tmp_path / "other.csv").write_text("a,b\n")
        line = self.error_line(build, capsys, tmp_path, tmp_path / "other.csv", dev_clean)
        assert "line 1 is 'a,b' instead" in line

    def test_a_table_that_was_cut_short(self, build, capsys, tmp_path, metadata, dev_clean):
        metadata.write_text(metadata.read_text()[:-40])
        line = self.error_line(build, capsys, tmp_path, metadata, dev_clean)
        assert "LJ Speech 1.1" in line or "must have lines" in line

    def test_a_table_that_is_missing(self, build, capsys, tmp_path, dev_clean):
        line = self.error_line(build, capsys, tmp_path, tmp_path / "none.csv", dev_clean)
        assert "must be a file, but is missing" in line

    def test_a_missing_chapter(self, build, capsys, tmp_path, metadata, dev_clean):
        next(dev_clean.rglob("84-121550.trans.txt")).unlink()
        line = self.error_line(build, capsys, tmp_path, metadata, dev_clean)
        assert "has no 84-121550.trans.txt" in line

    def test_an_archive_that_was_cut_short(self, build, capsys, tmp_path, metadata, dev_clean):
        whole = archive_of(dev_clean, tmp_path / "dev-clean.tar.gz").read_bytes()
        (tmp_path / "cut.tar.gz").write_bytes(whole[:-100])
        line = self.error_line(build, capsys, tmp_path, metadata, tmp_path / "cut.tar.gz")
        assert "download it again" in line

    def test_a_folder_that_is_there(self, build, capsys, tmp_path, metadata, dev_clean):
        (tmp_path / "out").mkdir()
        line = self.error_line(build, capsys, tmp_path, metadata, dev_clean)
        assert "must be a new folder" in line

    def test_no_sentences(self, build, capsys, tmp_path, metadata, dev_clean):
        line = self.error_line(build, capsys, tmp_path, metadata, dev_clean, "--train", "0")
        assert "`--train` and `--held-out` must be at least 1" in line
