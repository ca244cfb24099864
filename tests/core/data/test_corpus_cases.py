"""Corpora that people have: the right utterances, samples and words, or one clear line.

What is right comes from soundfile's slices of the files and from lhotse's and NeMo's definitions.
Each case writes a tiny corpus; `AUDIO` stands for the folder of the files it names.
"""

import copy
import gzip
import json
import logging
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch

from core.config.trial import CorpusConfig
from core.data.audio import (
    read_cut,
    resample_to_16khz,
)
from core.data.audio_decoding import (
    CorpusError,
)
from core.data.corpus import open_split
from core.data.tokenizer import transcript

NAN, INF = math.nan, math.inf


class GONE:
    """In the place of a value: the key is not there."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Two seconds each: mono, stereo, 8 kHz, one file a channel; and what is no audio."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    left_channel, right = (np.round(3000 * rng.standard_normal((2, 32_000))) / 32_768).clip(
        -0.9, 0.9
    )
    soundfile.write(folder / "mono.wav", left_channel, 16_000)
    soundfile.write(folder / "right.wav", right, 16_000)
    soundfile.write(folder / "mono.flac", left_channel, 16_000)
    soundfile.write(folder / "stereo.wav", np.stack([left_channel, right], axis=1), 16_000)
    soundfile.write(folder / "8k.wav", left_channel[:16_000], 8_000)
    soundfile.write(folder / "a b ü 語.wav", left_channel, 16_000)
    (folder / "text.wav").write_text("no audio at all")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "folder.wav").mkdir()
    return folder


def with_changes(values, changes):
    """A record with some keys changed; a path such as sources.0.type reaches into it."""
    values = copy.deepcopy(values)
    for path, value in changes.items():
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        inner = values
        for part in way:
            inner = inner[part]
        if value is GONE:
            inner.pop(last, None)
        else:
            inner[last] = value
    return {key: value for key, value in values.items() if value is not GONE}


def rec(file="mono.wav", *, channels=1, rate=16_000, **changes):
    """A recording as lhotse writes it."""
    ids = list(range(channels))
    sources = [{"type": "file", "channels": ids, "source": f"AUDIO/{file}"}]
    record = {"id": "r", "sources": sources, "sampling_rate": rate, "num_samples": 2 * rate}
    return with_changes({**record, "duration": 2.0, "channel_ids": ids}, changes)


def sup(name="u", start=0.0, duration=2.0, text="GO ON", channel=0, **changes):
    record = {"id": name, "recording_id": "r", "start": start, "duration": duration}
    return with_changes({**record, "channel": channel, "text": text}, changes)


def make_cut(recording=None, *spoken, start=0.0, duration=2.0, **changes):
    record = {"id": "c", "start": start, "duration": duration, "channel": 0, "type": "MonoCut"}
    spoken = list(spoken or (sup(duration=duration),))
    return with_changes(
        {**record, "supervisions": spoken, "recording": recording or rec()}, changes
    )


def multi(*spoken, channel=(0, 1), **changes):
    whole = make_cut(rec("stereo.wav", channels=2), *spoken, **changes)
    return {**whole, "type": "MultiCut", "channel": list(channel)}


def pad(*spoken, seconds=1.0):
    zeros = {"id": "p", "duration": seconds, "sampling_rate": 16_000, "feat_value": -23.0}
    zeros["num_samples"] = round(16_000 * seconds)
    tracks = [
        {"cut": make_cut(None, *spoken), "type": "MonoCut", "offset": 0.0},
        {"cut": zeros, "type": "PaddingCut", "offset": 2.0},
    ]
    return {"id": "m", "type": "MixedCut", "tracks": tracks}


def nemo(**changes):
    record = {"audio_filepath": "AUDIO/mono.wav", "duration": 2.0, "text": "GO ON"}
    return with_changes(record, changes)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What must be heard: words, and samples of a file."""

    words: str = "GO ON"
    file: str = "mono.wav"
    channel: int = 0
    begin: int = 0
    end: int = 32_000
    name: str | None = None

    def samples(self, folder):
        samples, rate = soundfile.read(folder / self.file, dtype="float32", always_2d=True)
        piece = torch.from_numpy(samples[self.begin : self.end, self.channel].copy())
        return resample_to_16khz(piece, rate)


ALL = [Part()]


def cuts(*lines):
    return {"test.jsonl": list(lines)}


def pair(recordings, supervisions):
    return {"recordings_test.jsonl": recordings, "supervisions_test.jsonl": supervisions}


def transform(name, **settings):
    return cuts(make_cut(rec(transforms=[{"name": name, "kwargs": settings}])))


def line(record):
    return json.dumps(record, ensure_ascii=False) + "\n"


RIGHT = {
    # ---- recordings and supervisions
    "a whole recording": (pair([rec()], [sup()]), ALL),
    "two parts": (
        pair([rec()], [sup("a", 0.0, 0.5, "ONE"), sup("b", 1.0, 1.0, "TWO")]),
        [Part(words="ONE", end=8_000, name="a"), Part(words="TWO", begin=16_000, name="b")],
    ),
    "one part": (
        pair([rec()], [sup("a", 1.0, 0.5, "ONE TWO THREE FOUR")]),
        [Part(words="ONE TWO THREE FOUR", begin=16_000, end=24_000, name="a")],
    ),
    "overlapping parts": (
        pair([rec()], [sup("a", 0.0, 1.5, "ONE"), sup("b", 0.5, 1.5, "TWO")]),
        [Part(words="ONE", end=24_000), Part(words="TWO", begin=8_000)],
    ),
    "parts in another order": (
        pair([rec()], [sup("b", 1.0, 1.0, "TWO"), sup("a", 0.0, 0.5, "ONE")]),
        [Part(words="TWO", begin=16_000), Part(words="ONE", end=8_000)],
    ),
    "ten milliseconds": (
        pair([rec()], [sup("a", 1.0, 0.01, "ONE")]),
        [Part(words="ONE", begin=16_000, end=16_160)],
    ),
    "an end that is rounded up": (pair([rec()], [sup(duration=2.004)]), ALL),
    "a begin that is rounded down": (pair([rec()], [sup(start=-0.004, duration=2.004)]), ALL),
    "no channel named": (pair([rec()], [sup(channel=GONE)]), ALL),
    "one channel as a list": (pair([rec()], [sup(channel=[0])]), ALL),
    "no channel_ids": (pair([rec(channel_ids=GONE)], [sup()]), ALL),
    "the left channel": (
        pair([rec("stereo.wav", channels=2)], [sup(channel=0)]),
        [Part(file="stereo.wav", channel=0)],
    ),
    "the right channel": (
        pair([rec("stereo.wav", channels=2)], [sup(channel=1)]),
        [Part(file="stereo.wav", channel=1)],
    ),
    "a part of the right channel": (
        pair([rec("stereo.wav", channels=2)], [sup("a", 0.5, 0.5, channel=[1])]),
        [Part(file="stereo.wav", channel=1, begin=8_000, end=16_000)],
    ),
    "both sides of a call": (
        pair(
            [rec("stereo.wav", channels=2)],
            [sup("a", 0.0, 1.0, "ONE", channel=0), sup("b", 0.5, 1.5, "TWO", channel=1)],
        ),
        [
            Part(words="ONE", file="stereo.wav", end=16_000, name="a"),
            Part(words="TWO", file="stereo.wav", channel=1, begin=8_000, name="b"),
        ],
    ),
    "both sides of a whole call": (
        pair(
            [rec("stereo.wav", channels=2)],
            [sup("a", text="ONE", channel=0), sup("b", text="TWO", channel=1)],
        ),
        [Part(words="ONE", file="stereo.wav"), Part(words="TWO", file="stereo.wav", channel=1)],
    ),
    "a file a channel": (
        pair(
            [
                rec(
                    sources=[
                        {"type": "file", "channels": [n], "source": f"AUDIO/{name}.wav"}
                        for n, name in enumerate(("mono", "right"))
                    ],
                    channel_ids=[0, 1],
                )
            ],
            [sup(channel=1)],
        ),
        [Part(file="right.wav")],
    ),
    "channels that count from one": (
        pair(
            [rec("stereo.wav", **{"sources.0.channels": [1, 2], "channel_ids": [1, 2]})],
            [sup(channel=2)],
        ),
        [Part(file="stereo.wav", channel=1)],
    ),
    "another rate": (
        pair([rec("8k.wav", rate=8_000)], [sup("a", 0.5, 1.0)]),
        [Part(file="8k.wav", begin=4_000, end=12_000)],
    ),
    "a rate with a point": (pair([rec(sampling_rate=16_000.0)], [sup()]), ALL),
    "alignments and custom fields": (
        pair(
            [rec()],
            [
                sup()
                | {
                    "custom": {"x": {"id": 5, "sources": 7, "sampling_rate": 1}},
                    "alignment": {"word": [["GO", 0.0, 1.0]]},
                    "speaker": 7,
                    "language": None,
                }
            ],
        ),
        ALL,
    ),
    # ---- cuts
    "a cut": (cuts(make_cut()), ALL),
    "a cut as lhotse called it before 0.8": (cuts(make_cut(type="Cut")), ALL),
    "a FLAC file": (cuts(make_cut(rec("mono.flac"))), [Part(file="mono.flac")]),
    "a file with a space and other letters": (cuts(make_cut(rec("a b ü 語.wav"))), ALL),
    "a part of a recording": (
        cuts(make_cut(start=0.5, duration=1.0)),
        [Part(begin=8_000, end=24_000, name="c")],
    ),
    "a cut of which one part is transcribed": (
        cuts(make_cut(None, sup("a", 0.5, 0.5, "ONE"))),
        [Part(words="ONE", begin=8_000, end=16_000, name="a")],
    ),
    "parts of a part": (
        cuts(
            make_cut(
                None, sup("a", 0, 0.5, "ONE"), sup("b", 0.5, 0.5, "TWO"), start=0.5, duration=1
            )
        ),
        [Part(words="ONE", begin=8_000, end=16_000), Part(words="TWO", begin=16_000, end=24_000)],
    ),
    "a mono cut of the right channel": (
        cuts(make_cut(rec("stereo.wav", channels=2), channel=1)),
        [Part(file="stereo.wav", channel=1)],
    ),
    "a mono cut whose channel stands in a list": (cuts(make_cut(channel=[0])), ALL),
    "a multi cut": (
        cuts(multi(sup("a", text="ONE", channel=0), sup("b", text="TWO", channel=1))),
        [Part(words="ONE", file="stereo.wav"), Part(words="TWO", file="stereo.wav", channel=1)],
    ),
    "one channel of a multi cut": (
        cuts(multi(sup(channel=1))),
        [Part(file="stereo.wav", channel=1, name="c")],
    ),
    "a multi cut of one channel": (
        cuts(multi(sup(channel=[1]), channel=[1])),
        [Part(file="stereo.wav", channel=1)],
    ),
    "features beside a recording": (
        cuts(make_cut() | {"features": {"storage_type": "lilcom_files", "storage_path": "pipe:x"}}),
        ALL,
    ),
    "what else a cut may carry": (
        cuts(
            make_cut() | {"custom": {"a": {"shape": [1], "storage_type": "x", "storage_path": "y"}}}
        ),
        ALL,
    ),
    "the same words twice": (cuts(make_cut(), make_cut(id="d")), [Part(name="c"), Part(name="d")]),
    # ---- changes that lhotse makes
    "a gain of one": (transform("Volume", factor=1.0), ALL),
    "a speed of one": (transform("Speed", factor=1.0), ALL),
    "the rate it has": (
        transform("Resample", source_sampling_rate=16_000, target_sampling_rate=16_000),
        ALL,
    ),
    # ---- how files are written
    "a byte-order mark": ({"test.jsonl": "\ufeff" + line(make_cut())}, ALL),
    "no newline at the end": ({"test.jsonl": line(make_cut()).rstrip()}, ALL),
    "carriage returns": ({"test.jsonl": line(make_cut()).replace("\n", "\r\n")}, ALL),
    "blank lines": ({"test.jsonl": "\n" + line(make_cut()) + "\n  \n"}, ALL),
    "spaces around": ({"test.jsonl": "  " + line(make_cut()).rstrip() + " \t\n"}, ALL),
    "a line separator in the text": (
        {"test.jsonl": line(make_cut(None, sup(text="GO\u2028ON")))},
        ALL,
    ),
    "a next line in the text": ({"test.jsonl": line(make_cut(None, sup(text="GO\u0085ON")))}, ALL),
    "a newline in the text": (cuts(make_cut(None, sup(text="GO\nON"))), ALL),
    "spaces in the text": (cuts(make_cut(None, sup(text="  GO \t ON "))), ALL),
    "letters of all kinds": (cuts(make_cut(None, sup(text="ÜBER 語"))), [Part(words="ÜBER 語")]),
    "gzip": ({"test.jsonl.gz": gzip.compress(line(make_cut()).encode())}, ALL),
    "gzip by another name": ({"test.jsonl": gzip.compress(line(make_cut()).encode())}, ALL),
    "plain by the name of gzip": ({"test.jsonl.gz": line(make_cut())}, ALL),
    "two gzips in one": (
        {
            "test.jsonl.gz": gzip.compress(line(make_cut()).encode())
            + gzip.compress(line(make_cut(id="d")).encode())
        },
        [Part(), Part()],
    ),
    "a prefix": ({"house_cuts_test.jsonl": [make_cut()]}, ALL),
    "a manifest of macOS's beside it": (
        cuts(make_cut()) | {"._test.jsonl": b"\x00\x05\x16\x07 Mac OS X"},
        ALL,
    ),
    "another JSON file beside it": (cuts(make_cut()) | {"info.json": '{"licence": "CC0"}'}, ALL),
    # ---- NeMo
    "NeMo": ({"test.json": [nemo()]}, [Part(name="AUDIO/mono.wav")]),
    "NeMo's name for it": ({"test_manifest.json": [nemo()]}, ALL),
    "NeMo, a line a record": ({"test_manifest.jsonl": [nemo()]}, ALL),
    "NeMo, compressed": ({"test.json.gz": gzip.compress(line(nemo()).encode())}, ALL),
    "NeMo with a byte-order mark": ({"test.json": "\ufeff" + line(nemo())}, ALL),
    "NeMo's older name": (
        {"test.json": [nemo(audio_filepath=GONE) | {"audio_filename": "AUDIO/mono.wav"}]},
        ALL,
    ),
    "NeMo, other keys": (
        {"test.json": [nemo() | {"speaker": 7, "lang": "en", "pred_text": "x", "shard_id": 0}]},
        ALL,
    ),
    "NeMo, a part": (
        {"test.json": [nemo(offset=0.5, duration=1.0)]},
        [Part(begin=8_000, end=24_000, name="AUDIO/mono.wav#t=0.5,1.5")],
    ),
    "NeMo, parts of one file": (
        {
            "test.json": [
                nemo(offset=0.0, duration=0.5, text="ONE"),
                nemo(offset=0.5, duration=1.5, text="TWO"),
            ]
        },
        [
            Part(words="ONE", end=8_000, name="AUDIO/mono.wav#t=0,0.5"),
            Part(words="TWO", begin=8_000, name="AUDIO/mono.wav#t=0.5,2"),
        ],
    ),
    "NeMo, an offset of null": ({"test.json": [nemo(offset=None)]}, ALL),
    "NeMo, an offset of 0": ({"test.json": [nemo(offset=0)]}, [Part(name="AUDIO/mono.wav")]),
    "NeMo, the first second": ({"test.json": [nemo(duration=1)]}, [Part(end=16_000)]),
    "NeMo, no duration": ({"test.json": [nemo(duration=GONE)]}, ALL),
    "NeMo, a duration of null": ({"test.json": [nemo(duration=None)]}, ALL),
    "NeMo, the rest": (
        {"test.json": [nemo(duration=None, offset=1.5)]},
        [Part(begin=24_000)],
    ),
    "NeMo, a rounded duration": ({"test.json": [nemo(duration=2.0049)]}, ALL),
    "NeMo, digits for words": ({"test.json": [nemo(text=911)]}, [Part(words="911")]),
    "NeMo, digits in words": ({"test.json": [nemo(text="CALL 911")]}, [Part(words="CALL 911")]),
    "NeMo, another rate": (
        {"test.json": [nemo(audio_filepath="AUDIO/8k.wav", offset=0.5, duration=1.0)]},
        [Part(file="8k.wav", begin=4_000, end=12_000)],
    ),
}

SAID = {
    "a begin before the recording": (
        pair([rec()], [sup("a", -0.2, 0.7, "ONE"), sup("b", 1.0, 1.0, "TWO")]),
        [Part(words="ONE", end=8_000), Part(words="TWO", begin=16_000)],
        r"1 utterances that begin before their audio or end after it, such as `a`",
    ),
    "an end 10 ms beyond the recording": (
        pair([rec()], [sup("a", 1.0, 1.01, "ONE")]),
        [Part(words="ONE", begin=16_000)],
        r"such as `a`; they are clipped",
    ),
    "one that covers more than all": (
        pair([rec()], [sup("a", -1.0, 9.0)]),
        ALL,
        r"such as `a`; they are clipped",
    ),
    "parts beyond their cut": (
        cuts(
            make_cut(
                None, sup("a", -0.5, 1.0, "ONE"), sup("b", 0.5, 1.0, "TWO"), start=1, duration=1
            )
        ),
        [Part(words="ONE", begin=16_000, end=24_000), Part(words="TWO", begin=24_000)],
        r"2 utterances .* such as `a`",
    ),
    "a recording in which nothing is transcribed": (
        pair([rec(), rec(id="s")], [sup()]),
        ALL,
        r"1 recordings in which nothing is transcribed, such as `s`; they are left out",
    ),
    "words of a recording that is not there": (
        pair([rec()], [sup(), sup("v", recording_id="s")]),
        ALL,
        r"lacks 1 recordings that its supervisions name, such as `s`",
    ),
    "NeMo, more than the file": (
        {"test.json": [nemo(offset=1.0, duration=5.0)]},
        [Part(begin=16_000)],
        r"such as `AUDIO/mono.wav#t=1,2`; they are clipped",
    ),
}


def wrong(record, write, table):
    """Cases of one changed field each: what it is changed to, and how the line names it."""
    return {
        f"{record} with {path} {'missing' if value is GONE else json.dumps(value)[:30]}": (
            write({path: value}),
            rule,
        )
        for path, values, rule in table
        for value in values
    }


WRONG = {
    **wrong(
        "a recording",
        lambda change: pair([rec(**change)], [sup()]),
        [
            ("id", [GONE, None, 5, "", "a\nb", "\x1b[31m", [], {}], "`id` must "),
            ("id", ["x" * 5_000], "`id` must be shorter, but is 'xxx"),
            ("sources", [GONE, None, [], {}, "a.wav", [5]], r"`sources(\.0)?` must "),
            (
                "sampling_rate",
                [GONE, None, 0, -16_000, "16000", 1e9, 16_000.5, NAN, True],
                "`sampling_rate` must ",
            ),
            ("num_samples", [GONE, None, 0, -5, "x", 10**40, INF, []], "`num_samples` must "),
            ("duration", [GONE, None, 0, -1, "2", NAN, INF, 1e300], "`duration` must "),
            ("num_samples", [31], "must last as long as its 31 samples"),
            ("duration", [7.5], "but has a `duration` of 7.5 instead"),
            ("channel_ids", ["x", [], [-1], [1.5]], r"`channel_ids(\.0)?` must "),
            ("sources.0.channels", [GONE, None, [], ["0"], [-1]], r"`sources.0.channels"),
            ("sources.0.channels", [[0, 0]], "must have each channel once"),
            ("sources.0.channels", [[0, 1]], r"mono.wav` must have 2 channels, but has 1"),
            ("sources.0.type", [GONE, None, "", 5], "`sources.0.type` must "),
            ("sources.0.type", ["memory", "ftp", "shar"], "`sources.0` must "),
            ("sources.0.source", [GONE, None, "", 5, "-", [], "a\x00b"], "`sources.0` must name"),
            (
                "sources.0.source",
                ["s3://b/a.wav", "ais://b/a", "pipe:cat"],
                "a program or an addre",
            ),
            ("sources.0.source", ["gone.wav"], r"gone.wav` must be an audio file, but is missing"),
            ("sources.0.source", ["AUDIO/empty.wav"], "must hold speech, but is an empty file"),
            ("sources.0.source", ["AUDIO/text.wav"], "must be readable audio, but is not"),
            ("sources.0.source", ["AUDIO/folder.wav"], "folder.wav` must be an audio file"),
            ("sources.0.source", ["x" * 300, "x/" * 3_000], "instead, which is too long"),
            ("sources.0.source", ["語" * 200], "must be an audio file, but: File name too long"),
            ("sources.0.source", ["/dev/zero"], "`/dev/zero` must be an audio file"),
            ("sources.0.source", ["AUDIO/stereo.wav"], "must have one channel, but has 2"),
            ("sources.0.source", ["AUDIO/8k.wav"], "must have 16000 samples a second, as its mani"),
        ],
    ),
    **wrong(
        "a supervision",
        lambda change: pair([rec()], [sup(**change)]),
        [
            ("id", [GONE, None, 7, "", "a\u2028b"], "`id` must "),
            ("recording_id", [GONE, None, 7, ""], "`recording_id` must "),
            ("start", [GONE, None, "0", NAN, INF, 1e300], "`start` must "),
            ("duration", [GONE, None, 0, -1, "1", NAN, 1e300], "`duration` must "),
            ("channel", ["0", -1, [], 1.5, {}], r"`channel(\.0)?` must "),
            ("channel", [1, 7], r"`u` of .* must name a channel of its recording \(0\), but names"),
            ("text", [5, 0.5], "`text` must be a string, but is .* instead; put it in quotes"),
            ("text", [True, [], ["GO"], {}], "`text` must be a string, but is .* instead"),
            ("text", [None, GONE, "", "  "], "must have words, but has none"),
            ("start", [2.0, 9.0], r"`u` of .* must lie within its audio of 2 s, but is from"),
            ("start", [-2.0], r"must lie within its audio of 2 s, but is from -2 s to 0 s"),
        ],
    ),
    **wrong(
        "a cut",
        lambda change: cuts(with_changes(make_cut(), change)),
        [
            ("id", [GONE, None, 5, ""], "`id` must "),
            ("start", [GONE, None, -0.5, "0", NAN, 2.0, 1e300], "`start` must "),
            ("duration", [GONE, None, 0, -1, NAN, "2"], "`duration` must "),
            ("channel", ["0", -1, [], [0, 1], 1.5], r"`channel(\.0)?` must "),
            ("channel", [1], r"must name a channel of its recording \(0\), but names 1"),
            ("type", [GONE, "Cuts", 5, None], "must be a cut .* or a recording .* of lhotse or"),
            ("supervisions", [None, 5, {}, ["GO"]], r"`supervisions(\.0)?` must "),
            ("supervisions", [GONE, []], "must have words, but has none"),
            ("recording", [GONE, None], "must have a `recording`, but has none instead"),
            ("recording", [5, "mono.wav", []], "`recording` must be an object"),
            ("recording.sampling_rate", [-1, "x"], "`recording.sampling_rate` must "),
            ("supervisions.0.text", [5], "`supervisions.0.text` must .*; put it in quotes"),
            ("supervisions.0.duration", [0], "`supervisions.0.duration` must "),
        ],
    ),
    **wrong(
        "NeMo's utterance",
        lambda change: {"test.json": [nemo(**change)]},
        [
            ("audio_filepath", [None, 5, "", [], ["a.wav"], "a\nb"], "`audio_filepath` must "),
            ("audio_filepath", ["s3://b/a.wav", "pipe:cat"], "a program or an address"),
            ("audio_filepath", ["gone.wav"], "gone.wav` must be an audio file, but is missing"),
            ("audio_filepath", ["AUDIO/stereo.wav"], "must have one channel, but has 2"),
            ("audio_filepath", ["AUDIO/text.wav"], "must be readable audio"),
            ("audio_filepath", ["x" * 300, "x/" * 2_000], "instead, which is too long"),
            ("audio_filepath", ["語" * 200], "must be an audio file, but: File name too long"),
            ("duration", [0, -1, "2", NAN, INF, [], True], "`duration` must "),
            ("offset", [-0.5, "0", NAN, 1e300], "`offset` must "),
            ("offset", [2.0, 7], r"`offset` must lie before the end of .* at 2 s"),
            ("text", [0.5, True, [], {}], "`text` must be a string"),
            ("text", [None, GONE, ""], "must have words, but has none"),
        ],
    ),
    **wrong(
        "a file of",
        lambda change: {"test.jsonl": change["content"]},
        [
            ("content", ["[1, 2]\n", '"x"\n', "5\n", "null\n"], "line 1, must be one JSON object"),
            ("content", ["{not json\n", "GO ON\n"], r"line 1, must be one JSON object, but is not"),
            ("content", [line(make_cut()) + "{\n"], "line 2, must be one JSON object"),
            ("content", ["[" * 5_000 + "\n", '{"a":' * 5_000], "must be one JSON object"),
            ("content", ['{"id": ' + "9" * 5_000 + "}"], "too long a number"),
            ("content", ["", "\n\n", "\ufeff"], "must have utterances, but has none"),
            ("content", [line({"no": "cut"})], "but has `no` instead"),
            ("content", ["{}\n"], "but has nothing instead"),
            ("content", [line(sup())], "must be a cut"),
            ("content", [line(rec())], "holds recordings and must have .*supervisions_SPLIT"),
            ("content", [line(make_cut()) + line(rec())], "line 2, `r`: `start` must be given"),
            ("content", [line(make_cut()) + line(nemo())], "line 2: must have a `recording`"),
        ],
    ),
    "a file that is not UTF-8": (
        {"test.jsonl": line(make_cut(None, sup(text="ÜBER"))).encode("latin-1")},
        "line 1, must be UTF-8, but is not from byte",
    ),
    "a file of UTF-16": (
        {"test.jsonl": line(make_cut()).encode("utf-16")},
        "line 1, must be UTF-8",
    ),
    "half a pair of characters": (
        {"test.jsonl": line(make_cut()).replace("GO ON", "\\ud800")},
        r"`supervisions.0.text` must be a string of whole characters",
    ),
    "half a pair of characters in a name": (
        {"test.jsonl": line(make_cut(id="GO")).replace('GO"', '\\ud800"', 1)},
        r"`id` must be a string of whole characters",
    ),
    "a gzip cut short": (
        {"test.jsonl.gz": gzip.compress(line(make_cut()).encode())[:-20]},
        "test.jsonl.gz` must be a readable file",
    ),
    "a damaged gzip": (
        {"test.jsonl.gz": gzip.compress(line(make_cut()).encode())[:30] + b"x" * 99},
        "test.jsonl.gz` must be a readable file",
    ),
    "features alone": (
        cuts(with_changes(make_cut(), {"recording": GONE}) | {"features": {"type": "fbank"}}),
        "must have a `recording`, but has features alone",
    ),
    "recordings without supervisions": (
        {"recordings_test.jsonl": [rec()]},
        "must have `.*supervisions_test.jsonl` beside it",
    ),
    "an utterance on both channels": (
        pair([rec("stereo.wav", channels=2)], [sup(channel=[0, 1])]),
        "must name one channel, but names 0, 1 instead; give each channel",
    ),
    "a channel that a stereo recording lacks": (
        pair([rec("stereo.wav", channels=2)], [sup(channel=2)]),
        r"must name a channel of its recording \(0, 1\), but names 2",
    ),
    "a channel that a multi cut lacks": (
        cuts(multi(sup(channel=1), channel=[0])),
        "must name a channel of its recording",
    ),
    "a multi cut without words": (
        cuts(multi() | {"supervisions": []}),
        "must have words, but has none",
    ),
    "a cut twice": (cuts(make_cut(), make_cut()), "`c` of .* must be the name of one utterance"),
    "a recording twice": (pair([rec(), rec()], [sup()]), "line 2, must name `r` once"),
    "a supervision twice": (
        pair([rec()], [sup("a", 0.0, 0.5), sup("a", 0.5, 0.5)]),
        "`a` of .* must be the name of one utterance, but is that of two",
    ),
    "NeMo, a file twice": (
        {"test.json": [nemo(), nemo()]},
        "mono.wav` of .* must be the name of one utterance",
    ),
    "a name in two splits": (
        {"test_a.jsonl": [make_cut()], "test_b.jsonl": [make_cut()]},
        "`c` of `.*test_b` must be the name of one utterance",
    ),
    "a NeMo dataset in tar files": (
        {"test.json": [nemo(audio_filepath="a.wav") | {"shard_id": 0}]},
        "is in a tar file of NeMo's instead, which is not read",
    ),
    "a file shorter than its manifest": (
        pair([rec(num_samples=64_000, duration=4.0)], [sup(duration=4.0)]),
        "must last 4 s, as its manifest says, but lasts 2 s",
    ),
    "a tempo": (transform("Tempo", factor=1.1), "`Tempo` cannot; write the changed audio out"),
    "a loudness": (
        transform("LoudnessNormalization", target=-20.0),
        "`LoudnessNormalization` needs `pyloudnorm`, which is not installed",
    ),
    "a dereverberation": (transform("DereverbWPE"), "`DereverbWPE` needs `nara_wpe`"),
    "a change of no name": (
        cuts(make_cut(rec(transforms=[{"kwargs": {}}]))),
        "`recording.transforms.0.name` must be given",
    ),
    "a change that nobody knows": (
        transform("Exec", command="x"),
        "`recording.transforms.0.name` must be one of `Speed`",
    ),
    "a speed of 0": (transform("Speed", factor=0), "kwargs.factor` must be greater than"),
    "a speed that takes a filter of gigabytes": (
        transform("Speed", factor=0.9137),
        "14619 to 16000 samples a second takes a filter of more than 32 million weights",
    ),
    "a rate that takes one": (
        pair([rec(rate=15_999)], [sup()]),
        "15999 to 16000 samples a second takes a filter",
    ),
    "a speed that is none": (transform("Speed", factor="fast"), "kwargs.factor` must be a number"),
    "a setting that nobody knows": (
        transform("Speed", factor=1.0, x=1),
        "kwargs.x` must not be given",
    ),
    "a codec in a library of the system": (
        transform("Narrowband", codec="lpc10", source_sampling_rate=16_000, restore_orig_sr=True),
        "kwargs.codec` must be 'mulaw'",
    ),
    "reverberation of nothing": (
        transform("ReverbWithImpulseResponse"),
        "must have `rir` or `rir_generator`",
    ),
    "zeros of a year": (
        cuts(with_changes(pad(), {"tracks.1.cut.duration": 3e7, "tracks.1.cut.num_samples": 48})),
        "`tracks.1.cut.duration` must be less than",
    ),
    "a mix of zeros alone": (
        cuts(with_changes(pad(), {"tracks.0": pad()["tracks"][1]})),
        "`tracks` must hold a recording",
    ),
    "a mix of nothing": (cuts({"id": "m", "type": "MixedCut", "tracks": []}), "`tracks` must"),
}


def write(root, files, folder):
    """Leaves a case's files; AUDIO becomes the folder of the audio."""
    root.mkdir()
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join(map(line, content))  # noqa: PLW2901
        if isinstance(content, str):
            content = content.encode("utf-8")  # noqa: PLW2901
        if content.startswith(b"\x1f\x8b"):
            try:
                plain = gzip.decompress(content)
                content = gzip.compress(plain.replace(b"AUDIO", str(folder).encode()))  # noqa: PLW2901
            except (OSError, EOFError, zlib.error):
                pass  # damaged on purpose
        (root / name).write_bytes(content.replace(b"AUDIO", str(folder).encode()))


def open_test_split(root):
    return list(open_split(CorpusConfig(name=str(root)), root.parent, "test"))


def assert_utterances(utterances, parts, folder):
    """Words, names and samples; of nothing more and nothing less."""
    assert [transcript(cut) for cut in utterances] == [part.words for part in parts]
    for one, part in zip(utterances, parts, strict=True):
        samples = read_cut(one)
        torch.testing.assert_close(samples, part.samples(folder), atol=0, rtol=0)
        if part.name:
            assert one.id == part.name.replace("AUDIO", str(folder))


@pytest.mark.parametrize("case", RIGHT)
def test_what_people_have_is_heard_as_they_mean_it(case, audio, tmp_path, caplog):
    files, parts = RIGHT[case]
    write(tmp_path / "corpus", files, audio)

    with caplog.at_level(logging.WARNING):
        utterances = open_test_split(tmp_path / "corpus")

    assert_utterances(utterances, parts, audio)
    assert caplog.text == ""


@pytest.mark.parametrize("case", SAID)
def test_what_is_heard_in_another_way_is_said_once(case, audio, tmp_path, caplog):
    files, parts, message = SAID[case]
    write(tmp_path / "corpus", files, audio)

    with caplog.at_level(logging.WARNING):
        utterances = open_test_split(tmp_path / "corpus")

    assert_utterances(utterances, parts, audio)
    [record] = caplog.records
    assert re.search(message, record.getMessage().replace(str(audio), "AUDIO"))


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line_of_our_own(case, audio, tmp_path):
    files, rule = WRONG[case]
    write(tmp_path / "corpus", files, audio)

    with pytest.raises(CorpusError, match=rule) as caught:
        open_test_split(tmp_path / "corpus")

    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1_000
    assert not any(word in message for word in ("NoneType", "Lhotse's", "Error(", "assert"))


def test_there_are_enough_cases():
    assert len(RIGHT) + len(SAID) + len(WRONG) >= 150
