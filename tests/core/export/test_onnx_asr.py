"""onnx-asr gives the transcripts of `transcribe`: CTC, RNN-T and TDT, LSTM and stateless."""

import json
import re
from dataclasses import replace

import pytest
import torch

from core import bundle
from core.bundle import Bundle
from core.conformer.shape import TransducerShape
from core.data.audio import read_file
from core.export.export import export
from core.export.onnx.transducer import EncoderGraph, StepGraph
from core.export.onnx_asr import (
    CONFIG,
    model_kind,
    transcribe_with_onnx_asr,
    with_its_spaces,
    write_onnx_asr,
)
from core.export.verify import make_test_sounds, one_space
from core.inference.graph_interface import ExportError
from core.inference.recognizer import transcribe_waveform
from core.pruning.extraction import extract
from core.testing import SHAPE, ragged_speech, random_mask, small_model, with_frontend
from tests.support.drawn_recognizers import balance, short_tokenizer

pytest.importorskip("onnx_asr", reason="the extra `onnx-asr` is not installed")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.whole

LSTM = TransducerShape(embedding=9, units=(10, 8), joint=11, activation="relu")
STATELESS = TransducerShape(embedding=9, context=3, joint=11, durations=(0, 1, 2))
TDT = replace(LSTM, durations=(0, 1, 2, 3, 4))
KINDS = {
    "ctc": (None, "nemo-conformer-ctc"),
    "lstm rnnt": (LSTM, "nemo-conformer-rnnt"),
    "stateless tdt": (STATELESS, "nemo-conformer-tdt"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def sounds(tokenizer, tmp_path_factory):
    files = make_test_sounds(tokenizer, tmp_path_factory.mktemp("sounds"))
    # One hop or more: shorter, the CTC loader of onnx-asr counts a frame that is not there.
    return [sound for sound in map(read_file, files) if len(sound) > 1600]


def recognizer(tokenizer, transducer, *, mels=80) -> Bundle:
    shape = with_frontend(replace(SHAPE, vocabulary=tokenizer.size), "dw_striding 8x")
    spec = replace(shape.frontend_spec, mels=mels)
    shape = replace(shape, transducer=transducer, has_ctc=transducer is None, frontend_spec=spec)
    model = small_model(5, shape=shape)
    balance(model)
    return Bundle(model=model, tokenizer=tokenizer, report={})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transcripts_are_those_of_transcribe_alone_and_together(kind, tokenizer, sounds, tmp_path):
    transducer, name = KINDS[kind]
    opened = recognizer(tokenizer, transducer)

    write_onnx_asr(opened, tmp_path)
    found = transcribe_with_onnx_asr(tmp_path, sounds)

    expected = [with_its_spaces(transcribe_waveform(opened, sound)) for sound in sounds]
    assert len(set(expected)) > 3
    assert list(map(one_space, found.alone)) == expected
    assert list(map(one_space, found.together)) == expected
    assert json.loads((tmp_path / CONFIG).read_text())["model_type"] == name


@pytest.mark.long
@pytest.mark.slow
def test_an_export_is_verified_in_floats_and_measured_in_integers(tokenizer, sounds, tmp_path):
    opened = recognizer(tokenizer, TDT, mels=128)
    bundle.save(tmp_path / "model", opened.model, tokenizer, {})

    done = export(tmp_path / "model", tmp_path / "out", "onnx-asr", is_int8=True)

    assert {"encoder-model.onnx", "decoder_joint-model.int8.onnx", "vocab.txt"} <= set(done.files)
    assert re.search(r"onnx-asr .* as `nemo-conformer-tdt` for 12 of 12 sounds", done.verified[0])
    assert "In 8-bit integers" in done.verified[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "128 log-mel filter banks" in card
    assert "Its decoder: TDT." in card
    assert len(transcribe_with_onnx_asr(tmp_path / "out", sounds[:1], is_int8=True).alone) == 1


@pytest.mark.parametrize("kind", ["binary", "open"])
@pytest.mark.parametrize("transducer", [LSTM, STATELESS])
def test_steps_of_the_graphs_are_the_models_logits(transducer, kind, tokenizer):
    whole = recognizer(tokenizer, transducer).model
    model = extract(whole, random_mask(whole.axes(), kind))
    own = model.transducer
    speech = ragged_speech(90, 60)
    output = model(*speech)
    tokens = torch.tensor([[0, 3, 5, 2, 2], [0, 1, 1, 4, 6]])

    frames, lengths = EncoderGraph(model, own.joint)(speech[0].mT, speech[1])
    step = StepGraph(own)
    state = (torch.zeros(1, 2, step.predictor.step.state),) * 2
    logits = []
    for token in tokens.T:
        found, _, *state = step(frames[:, :, :1], token[:, None].int(), torch.ones(2).int(), *state)
        logits.append(found[:, 0, 0])

    outputs, _ = own.predictor.advance(tokens, own.predictor.start(2))
    first = own.joint.encoder(output.encoded[:, :1])
    expected = torch.cat(own.joint.logits(first, own.joint.predictor(outputs)), -1)
    torch.testing.assert_close(torch.stack(logits, 1), expected, rtol=0, atol=1e-5)
    assert torch.equal(lengths, output.num_frames)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"normalization": "none"}, "normalized per feature"),
        ({"features": "sherpa"}, "reads `sherpa`"),
        ({"preemphasis": 0.9}, "0.9"),
        ({"window": "hamming"}, "`hamming`"),
    ],
)
def test_other_features_are_refused(change, rule, tokenizer):
    model = recognizer(tokenizer, None).model
    spec = replace(model.frontend_spec, **change)

    with pytest.raises(ExportError, match=rule):
        model_kind(small_model(shape=replace(model.shape, frontend_spec=spec)))


def test_durations_that_are_no_indices_are_refused(tokenizer, tmp_path):
    odd = recognizer(tokenizer, replace(LSTM, durations=(1, 2)))
    with pytest.raises(ExportError, match=r"must be 0, 1, 2 and so on, but are \(1, 2\) instead"):
        write_onnx_asr(odd, tmp_path)
