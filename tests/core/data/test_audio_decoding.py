"""Files as people have them: without a length, cut off, with samples that are no numbers."""

import io
import logging
import struct

import numpy as np
import pytest
import soundfile
import torch

from core.data.audio import (
    make_cut,
    read_cut,
    read_file,
    read_header,
)
from core.data.audio_decoding import (
    BLOCK,
    CorpusError,
    Faults,
    decode,
    open_forward,
)
from core.data.audio_stream import AudioStream

RATE_HZ = 16_000
SPEECH = (0.1 * np.random.default_rng(0).standard_normal(3 * RATE_HZ)).astype(np.float32)
"""Three seconds of noise, for speech."""


def encode(kind, subtype="PCM_16", samples=SPEECH):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, subtype, format=kind)
    return bytearray(file.getvalue())


def with_flac_length(num_samples):
    """A FLAC whose header promises so many samples; 0 stands for an unknown number."""
    content = encode("FLAC")
    field = int.from_bytes(content[18:26], "big")
    content[18:26] = (field >> 36 << 36 | num_samples).to_bytes(8, "big")
    return content


def with_wav_size(size, *, subtype="PCM_16", riff_size=None):
    content = encode("WAV", subtype)
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    content[4:8] = struct.pack("<I", min(size + 36, 2**32 - 1) if riff_size is None else riff_size)
    return content


def with_rf64_sizes(byte):
    """An RF64 file whose three sizes are all of one byte."""
    content = encode("RF64")
    at = content.index(b"ds64") + 8
    content[at : at + 24] = 24 * bytes([byte])
    return content


def zeros_without_size():
    content = encode("WAV", samples=np.zeros_like(SPEECH))
    at = content.index(b"data") + 4
    content[at : at + 4] = bytes(4)
    return content


STREAMED = {
    "unknown.flac": with_flac_length(0),
    "impossible.flac": with_flac_length(2**36 - 1),
    "zero.wav": with_wav_size(0),
    "zero-riff.wav": with_wav_size(0, riff_size=0),
    "ones.wav": with_wav_size(0xFFFF_FFFF),
    "sox.wav": with_wav_size(0x7FFF_F000),
    "arecord.wav": with_wav_size(0x8000_0000),
    "zero-24.wav": with_wav_size(0, subtype="PCM_24"),
    "ones-float.wav": with_wav_size(0xFFFF_FFFF, subtype="FLOAT"),
    "zero.rf64.wav": with_rf64_sizes(0),
    "ones.rf64.wav": with_rf64_sizes(0xFF),
}
"""As pipes write them."""


@pytest.mark.parametrize("name", STREAMED)
def test_a_file_that_does_not_know_its_length_is_read_to_its_end(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(STREAMED[name])
    right = torch.from_numpy(SPEECH)

    whole, cut = read_file(file), make_cut(file, "x")
    with AudioStream(file) as recording:
        pieces = [recording.read(begin, begin + 12_800) for begin in range(0, len(SPEECH), 12_800)]

    assert read_header(file).num_samples == recording.num_samples == len(SPEECH)
    assert cut.duration == recording.seconds == 3.0
    torch.testing.assert_close(whole, right, atol=1 / 32768, rtol=0)
    torch.testing.assert_close(read_cut(cut), whole, atol=0, rtol=0)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=0, rtol=0)


def test_zeros_are_samples_though_the_header_says_nothing_of_them(tmp_path):
    file = tmp_path / "zeros.wav"
    file.write_bytes(zeros_without_size())

    assert torch.equal(read_file(file), torch.zeros(len(SPEECH)))


@pytest.mark.parametrize("after", [b"", b"LIST\x04\x00\x00\x00INFO"])
def test_a_wav_with_no_samples_has_none(after, tmp_path):
    file = tmp_path / "none.wav"
    file.write_bytes(encode("WAV", samples=SPEECH[:0]) + after)

    with pytest.raises(CorpusError, match=r"none\.wav` must hold speech, but has no samples"):
        read_header(file)


def halve(content):
    return content[: len(content) // 2]


CUT_OFF = {
    "cut.flac": halve(encode("FLAC")),
    "more.flac": with_flac_length(10**8),
    "unknown-cut.flac": halve(with_flac_length(0)),
    "cut.wav": halve(encode("WAV")),
    "more.wav": with_wav_size(10 * 2 * len(SPEECH)),
    "cut.rf64.wav": halve(encode("RF64")),
    "cut.caf": halve(encode("CAF")),
}


@pytest.mark.parametrize("name", CUT_OFF)
def test_a_file_that_ends_before_its_time_is_named_by_every_reader(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(CUT_OFF[name])

    def read_in_pieces(file):
        with AudioStream(file) as recording:
            for begin in range(0, recording.num_samples, RATE_HZ):
                recording.read(begin, begin + RATE_HZ)

    for reader in (read_file, read_in_pieces, lambda file: read_cut(make_cut(file, "x"))):
        with pytest.raises(CorpusError, match=rf"{name}` must be readable audio") as caught:
            reader(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "subtype", "bits"),
    [
        ("WAV", "PCM_U8", 7),
        ("WAV", "PCM_16", 15),
        ("WAV", "PCM_24", 23),
        ("WAV", "PCM_32", 23),
        ("WAV", "FLOAT", 23),
        ("WAV", "DOUBLE", 23),
        ("WAVEX", "PCM_16", 15),
        ("RF64", "PCM_16", 15),
        ("W64", "PCM_16", 15),
        ("AIFF", "PCM_16", 15),
        ("AU", "PCM_16", 15),
        ("CAF", "PCM_24", 23),
        ("FLAC", "PCM_24", 23),
    ],
)
def test_every_format_gives_the_samples_that_went_in(kind, subtype, bits, tmp_path):
    file = tmp_path / "x.wav"
    file.write_bytes(encode(kind, subtype))

    gap = (read_file(file) - torch.from_numpy(SPEECH)).abs().max()

    assert gap <= 2.0**-bits


def checksum_of_ogg(page):
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (
                checksum << 1 ^ 0x04C11DB7 if checksum >> 31 else checksum << 1
            ) & 0xFFFF_FFFF
    return checksum


def without_end(content):
    """An Ogg file as a live stream leaves it: no page says that it is the last one."""
    begin = content.rindex(b"OggS")
    content[begin + 5] &= ~4
    content[begin + 22 : begin + 26] = bytes(4)
    content[begin + 22 : begin + 26] = struct.pack("<I", checksum_of_ogg(content[begin:]))
    return content


LOSSY = {
    "x.mp3": encode("MP3", "MPEG_LAYER_III"),
    "x.ogg": encode("OGG", "VORBIS"),
    "x.opus": encode("OGG", "OPUS"),
    "live.ogg": without_end(encode("OGG", "VORBIS")),
}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_are_as_long_as_what_they_decode_to(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(LOSSY[name])

    assert len(read_file(file)) >= len(SPEECH) - RATE_HZ // 10
    assert read_header(file).num_samples == len(read_file(file))


def test_more_than_a_block_is_read_without_a_seam(tmp_path):
    samples = np.arange(BLOCK + 1000, dtype=np.int32).astype("<i2")
    file = tmp_path / "long.flac"
    soundfile.write(file, samples, RATE_HZ)

    decoded, rate_hz = decode(file)

    assert rate_hz == RATE_HZ
    assert np.array_equal(decoded[:, 0], samples.astype(np.float32) / 32768)


def test_no_more_is_held_than_a_file_holds_whatever_its_header_promises(tmp_path):
    file = tmp_path / "unknown.flac"
    file.write_bytes(STREAMED["unknown.flac"])

    with open_forward(file) as opened:
        assert opened.frames > 2**60
    samples, _ = decode(file)

    assert samples.nbytes == SPEECH.nbytes


def spoilt(tmp_path, values, *, at=(8_000,), subtype="FLOAT"):
    """A file with other values at some samples, and what it should be read as."""
    samples = SPEECH.astype(np.float64)
    samples[list(at)] = values
    file = tmp_path / "spoilt.wav"
    soundfile.write(file, samples, RATE_HZ, subtype)
    right = SPEECH.copy()
    right[list(at)] = 0
    return file, torch.from_numpy(right)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e300])
def test_a_sample_that_is_no_number_is_silence_and_is_named(value, subtype, tmp_path, caplog):
    with np.errstate(over="ignore"):
        file, right = spoilt(tmp_path, [value], subtype=subtype)

    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(read_file(file), right, atol=1e-7, rtol=0)
        torch.testing.assert_close(read_cut(make_cut(file, "x")), right, atol=1e-7, rtol=0)

    message = f"`{file}` has a sample that is not a finite number, at 0.500 s; it is set to 0."
    assert caplog.messages == [message, message]


def test_a_recording_in_pieces_counts_what_is_no_number(tmp_path, caplog):
    file, right = spoilt(tmp_path, np.nan, at=(30_000, 8_000, 45_000))

    with AudioStream(file) as recording, caplog.at_level(logging.WARNING):
        pieces = [recording.read(begin, begin + 4_800) for begin in range(0, len(SPEECH), 4_800)]
        recording.report_faults()

    torch.testing.assert_close(torch.cat(pieces), right, atol=0, rtol=0)
    message = "has 3 samples that are not finite numbers, the first at 0.500 s; they are set to 0."
    assert caplog.messages == [f"`{file}` {message}"]


@pytest.mark.parametrize("num_faulty", [481, len(SPEECH)])
def test_more_than_one_in_a_hundred_without_a_number_is_refused_by_name(num_faulty, tmp_path):
    file, _ = spoilt(tmp_path, np.nan, at=range(len(SPEECH) - num_faulty, len(SPEECH)))
    begin = (len(SPEECH) - num_faulty) / RATE_HZ
    message = rf"spoilt\.wav` must be audio of finite numbers, but {num_faulty} of its 48000.* at"

    for reader in (read_file, lambda file: read_cut(make_cut(file, "x"))):
        with pytest.raises(CorpusError, match=rf"{message} {begin:.3f} s, are not instead"):
            reader(file)


def test_one_in_a_hundred_is_mended(tmp_path):
    file, right = spoilt(tmp_path, np.nan, at=range(480))

    torch.testing.assert_close(read_file(file), right, atol=0, rtol=0)


def test_a_sound_file_is_read_without_a_word(tmp_path, caplog):
    file, _ = spoilt(tmp_path, [1.5])  # louder than full scale, as floats may be

    with caplog.at_level(logging.WARNING):
        assert read_file(file)[8_000] == 1.5

    assert caplog.messages == []


@pytest.mark.parametrize("channels", [2, 7])
def test_channels_are_read_side_by_side_over_blocks(channels, tmp_path):
    samples = np.zeros((BLOCK // channels + 500, channels))
    samples[-1] = np.arange(1, channels + 1) / 16
    file = tmp_path / "many.wav"
    soundfile.write(file, samples, RATE_HZ)

    decoded, _ = decode(file)

    assert np.array_equal(decoded, samples.astype(np.float32))


def test_the_first_faulty_instant_is_counted_in_instants_whatever_the_channels():
    faults = Faults()
    faults.mend(np.zeros((10, 2), np.float32))
    piece = np.zeros((10, 2), np.float32)
    piece[3, 1] = np.nan

    faults.mend(piece)

    assert (faults.first, faults.num_faulty, faults.num_samples) == (13, 1, 40)
