"""A transducer's words of files, with their times and confidence."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.bundle import Bundle
from core.config.trial import CorpusConfig
from core.conformer.output import DecoderError
from core.data.audio import read_file
from core.data.tokenizer import Tokenizer
from core.evaluation.word_alignment import best_path
from core.export.verify import make_test_sounds
from core.features.nemo import compute_features
from core.inference.long_audio import transcribe_windows
from core.inference.recognizer import evaluate, transcribe, transcribe_waveform, transcript
from core.inference.timestamps import frame_times
from core.inference.windows import Windowing
from core.testing import SHAPE, TRANSDUCERS, small_model, with_transducer

KINDS = [*((kind, False) for kind in TRANSDUCERS), ("stateless tdt", True)]
WHOLE = Windowing(seconds=30.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    config = CorpusConfig(tokens="char", vocabulary=12)
    return Tokenizer.train(["ONE TWO", "TEN"], config, tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory) -> Path:
    sounds = make_test_sounds(tokenizer, tmp_path_factory.mktemp("sounds"))
    return max(sounds, key=lambda sound: len(read_file(sound)))


def recognizer(tokenizer, kind, *, has_ctc=False) -> Bundle:
    shape = with_transducer(SHAPE, kind, has_ctc=has_ctc)
    model = small_model(3, shape=replace(shape, vocabulary=tokenizer.size))
    with torch.no_grad():  # of noise, too, it says letters
        model.transducer.joint.output.bias[0] -= 1.0
    return Bundle(model=model, tokenizer=tokenizer, report={})


@pytest.mark.parametrize(("kind", "has_ctc"), KINDS)
def test_words_are_those_of_greedy_decoding_at_its_frames(kind, has_ctc, tokenizer, file):
    bundle = recognizer(tokenizer, kind, has_ctc=has_ctc)
    model, waveform = bundle.model, read_file(file)
    spec = model.frontend_spec
    output = model(*compute_features(spec, waveform[None], torch.tensor([len(waveform)])))
    (symbols,) = model.transducer.greedy(output.encoded, output.num_frames)

    found = transcript(bundle, transcribe_windows(model, file, windowing=WHOLE))

    assert symbols
    ids = [symbol.token for symbol in symbols]
    assert found.text.split() == tokenizer.decode(ids).split()
    assert transcribe_waveform(bundle, waveform) == found.text
    assert dict(transcribe(bundle, [file])) == {file: found.text}
    times = frame_times(spec)
    starts = [times.begin(symbol.frame) for symbol in symbols]
    assert all(word.start in starts for word in found.words)
    assert all(word.start < word.end <= found.seconds for word in found.words)
    smallest = min(symbol.log_probability for symbol in symbols)
    assert min(word.confidence for word in found.words) > math.exp(smallest) - 1e-6


def test_what_is_too_short_for_a_frame_has_no_words(tokenizer):
    bundle = recognizer(tokenizer, "lstm rnnt")

    assert transcribe_waveform(bundle, torch.zeros(100)) == ""


def test_windows_give_the_frames_that_the_whole_file_gives(tokenizer, file):
    bundle = recognizer(tokenizer, "lstm tdt", has_ctc=True)
    halves = Windowing(seconds=2.0, overlap=0.5)

    parts = [part.frames for part in transcribe_windows(bundle.model, file, windowing=halves)]
    (whole,) = transcribe_windows(bundle.model, file, windowing=WHOLE)

    assert len(parts) > 1
    assert sum(map(len, parts)) == len(whole.frames)
    assert all(len(part.encoded) == len(part.log_probabilities) for part in parts)


def test_a_decoder_of_ctc_needs_a_ctc_head(tokenizer, file):
    alone, hybrid = (
        recognizer(tokenizer, "lstm tdt", has_ctc=has_ctc) for has_ctc in (False, True)
    )

    parts = list(transcribe_windows(alone.model, file, windowing=WHOLE))
    with pytest.raises(DecoderError, match=r"must have a CTC head"):
        transcript(alone, parts, best_path)

    parts = list(transcribe_windows(hybrid.model, file, windowing=WHOLE))
    expected = hybrid.tokenizer.decode(
        [n for n in parts[0].frames.log_probabilities.argmax(1).unique_consecutive().tolist() if n]
    )
    assert transcript(hybrid, parts, best_path).text.split() == expected.split()


def test_a_corpus_is_transcribed_together_as_file_by_file(
    demo_corpus, demo_config, demo_folder, tmp_path
):
    texts = [cut.supervisions[0].text for cut in demo_corpus.train]
    bundle = recognizer(Tokenizer.train(texts, demo_config, tmp_path), "stateless tdt")
    files = [Path(cut.recording.sources[0].source) for cut in demo_corpus.dev]

    heard = dict(transcribe(bundle, files))
    report = evaluate(bundle, demo_config, "dev", demo_folder)

    for cut, found, errors in zip(demo_corpus.dev, heard.values(), report.errors, strict=True):
        assert (errors == 0) == (cut.supervisions[0].text == found)
    assert any(heard.values())
