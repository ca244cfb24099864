"""Transcripts as files: subtitles that players show and people can read."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.base import ConfigError
from core.inference.recognizer import SpokenWord, Transcript
from sweep.cli.output.subtitles import (
    LINE,
    LINES,
    check_format,
    cues_of,
    render_transcript,
    transcript_paths,
)


def spoken(*words):
    return tuple(
        SpokenWord(text=text, start=start, end=end, confidence=0.9) for text, start, end in words
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "BBBB", 12 * "C"]), st.floats(0, 2), st.floats(0.04, 0.5)),
        max_size=40,
    )
)
def test_cues_hold_all_words_in_order_and_overlap_nowhere(told):
    words, now = [], 0.0
    for text, pause, length in told:
        words += spoken((text, now + pause, now + pause + length))
        now += pause + length

    cues = cues_of(words)

    assert " ".join(cue.text for cue in cues).split() == [word.text for word in words]
    assert all(cue.start < cue.end for cue in cues)
    for cue, following in itertools.pairwise(cues):
        assert cue.end <= following.start
    for cue in cues:
        lines = cue.text.split("\n")
        assert len(lines) <= LINES
        assert max(map(len, lines)) <= LINE


def test_a_pause_ends_a_cue():
    first, second = cues_of(spoken(("GO", 0.5, 0.6), ("UP", 0.9, 1.0), ("NOW", 3.0, 3.1)))

    assert (first.text, second.text) == ("GO UP", "NOW")
    assert (first.start, first.end) == (0.5, 1.5)


def test_subtitles_are_as_players_read_them():
    heard = Transcript(
        words=spoken(("A<B", 3661.5, 3662.25), ("C", 3670.0, 3671.5)), seconds=3700.0
    )

    assert render_transcript(Path("x.wav"), heard, "srt") == (
        "1\n01:01:01,500 --> 01:01:02,500\nA<B\n\n2\n01:01:10,000 --> 01:01:11,500\nC\n"
    )
    assert render_transcript(Path("x.wav"), heard, "vtt") == (
        "WEBVTT\n\n01:01:01.500 --> 01:01:02.500\nA&lt;B\n\n01:01:10.000 --> 01:01:11.500\nC\n"
    )
    assert render_transcript(Path("x.wav"), heard, "text") == "A<B C\n"
    told = json.loads(render_transcript(Path("x.wav"), heard, "json", has_words=True))
    assert (told["file"], told["text"]) == ("x.wav", "A<B C")
    assert told["words"][0] == {"text": "A<B", "start": 3661.5, "end": 3662.25, "confidence": 0.9}


def test_two_files_may_not_have_one_transcript():
    files = [(Path("a/x.wav"), Path("x.wav")), (Path("b/x.flac"), Path("x.flac"))]

    with pytest.raises(ConfigError, match=r"`a/x.wav` and `b/x.flac` would both be `out/x.srt`"):
        transcript_paths(files, Path("out"), "srt")


def test_what_no_reader_would_understand_is_refused():
    with pytest.raises(ConfigError, match=r"`--format srt` must have one audio file, .* 2 instead"):
        check_format("srt", num_files=2, has_words=False, has_folder=False)
    with pytest.raises(ConfigError, match=r"`--timestamps` must go with `--format json`"):
        check_format("text", num_files=1, has_words=True, has_folder=False)
