import numpy as np
import pytest
import soundfile

from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.sources.librispeech import fetch, load_split, split_names
from core.data.tokenizer import transcript


@pytest.fixture
def corpus(tmp_path):
    """One split with two utterances: root, and the folder that holds them."""
    folder = tmp_path / "dev-clean" / "84" / "121123"
    folder.mkdir(parents=True)
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(folder / "84-121123-0000.flac", noise, 16000)
    soundfile.write(folder / "84-121123-0001.wav", noise[:8000], 8000)
    (folder / "84-121123.trans.txt").write_text(
        "84-121123-0000 GO  DO YOU HEAR\n\n84-121123-0001 BUT IN LESS\n"
    )
    return tmp_path, folder


def test_a_split_is_a_cut_an_utterance(corpus):
    root, _ = corpus

    first, second = load_split(root, "dev-clean")

    assert split_names(root) == ["dev-clean"]
    assert (first.id, transcript(first), first.duration) == (
        "84-121123-0000",
        "GO DO YOU HEAR",
        1.0,
    )
    assert (second.sampling_rate, second.duration, second.supervisions[0].speaker) == (
        *(8000, 1.0),
        "84",
    )
    assert len(read_cut(first)) == len(read_cut(second)) == 16000


def test_real_utterances_load(strays_root):
    splits = {name: load_split(strays_root, name) for name in split_names(strays_root)}

    assert {name: len(cuts) for name, cuts in splits.items()} == {"dev-clean": 6, "test-clean": 14}
    for cuts in splits.values():
        for cut in cuts:
            assert len(read_cut(cut)) == cut.num_samples
            assert transcript(cut).isupper()


FIRST, TRANSCRIPT = "84-121123-0000.flac", "84-121123.trans.txt"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (FIRST, None, r"`84-121123-0000` of `.*trans.txt` must have an audio file beside it"),
        (FIRST, b"", r"84-121123-0000.flac` must hold speech, but is an empty file"),
        (FIRST, b"no audio", r"84-121123-0000.flac` must be readable audio, but is not \(Error op"),
        (FIRST, np.zeros(0), r"84-121123-0000.flac` must"),
        (FIRST, np.zeros((9, 2)), r"84-121123-0000.flac` must have one channel, but has 2 instead"),
        (TRANSCRIPT, b"84-121123-0000 GO", r"84-121123-0001.wav` must have a line in a transcript"),
        (TRANSCRIPT, b"84-121123-0000", r"`84-121123-0000` must have words in `.*trans.txt`, but"),
        (TRANSCRIPT, b"84-121123-0000 A\n84-121123-0000 A", r"must name `84-121123-0000` once"),
        (TRANSCRIPT, b"84-121123-0000 \xff", r"trans.txt` must be UTF-8, but is not"),
    ],
)
def test_bad_speech_is_named_in_one_line(corpus, file, content, message):
    root, folder = corpus
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        soundfile.write(folder / file, content, 16000)

    with pytest.raises(CorpusError, match=message) as caught:
        load_split(root, "dev-clean")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("\ufeff84-121123-0000 GO ON\n84-121123-0001 BUT\n", ["GO ON", "BUT"]),
        ("84-121123-0000 GO ON\r\n84-121123-0001 BUT\r\n", ["GO ON", "BUT"]),
        *(
            (f"84-121123-0000 GO{end}ON{end}\n84-121123-0001 BUT\n", ["GO ON", "BUT"])
            for end in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r")
        ),
    ],
)
def test_a_newline_alone_ends_a_line_and_a_byte_order_mark_is_no_word(corpus, content, texts):
    root, folder = corpus
    (folder / TRANSCRIPT).write_bytes(content.encode())

    assert [transcript(cut) for cut in load_split(root, "dev-clean")] == texts


def test_hidden_files_are_neither_speech_nor_transcripts(corpus):
    root, folder = corpus
    for name in (f"._{FIRST}", f"._{TRANSCRIPT}", ".hidden.wav"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07 of macOS\xff")
    for hidden in (root / ".cache", root / "dev-clean" / ".cache", folder / ".cache"):
        (hidden / "1" / "1").mkdir(parents=True)
        (hidden / "1" / "1" / "x.wav").write_bytes(b"no audio")
        (hidden / "1" / "1" / "1-1.trans.txt").write_bytes(b"\xff")

    assert split_names(root) == ["dev-clean"]
    assert len(load_split(root, "dev-clean")) == 2


def test_librispeech_that_is_there_is_not_fetched(corpus, tmp_path_factory):
    root, _ = corpus
    above = tmp_path_factory.mktemp("above")
    (above / "LibriSpeech").symlink_to(root)

    assert fetch(root, ["dev-clean"]) == root
    assert fetch(above, ["dev-clean"]) == above / "LibriSpeech"


def test_librispeech_that_cannot_be_fetched_is_named(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file, no folder")

    with pytest.raises(CorpusError, match=r"hold LibriSpeech's dev-clean, dev-other.*taken` has"):
        fetch(taken, ["dev*"])
