"""sherpa-onnx gives the transcripts of a stateless RNN-T with one token a frame."""

import json
from dataclasses import replace

import pytest

from core import bundle
from core.conformer.shape import TransducerShape
from core.export.export import export
from core.export.sherpa import SPEC, transcribe_with_sherpa
from core.export.sherpa_transducer import check_stateless
from core.inference.graph_interface import ExportError
from core.testing import FRONTEND_SPECS, SHAPE, small_model, with_frontend
from tests.support.drawn_recognizers import balance, short_tokenizer

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.whole

STATELESS = TransducerShape(embedding=9, context=2, joint=11)


@pytest.mark.long
@pytest.mark.slow
def test_an_export_is_verified_in_floats_and_measured_in_integers(tmp_path):
    pytest.importorskip("sherpa_onnx")
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size, transducer=STATELESS, has_ctc=False)
    model = small_model(5, shape=shape)
    balance(model)
    bundle.save(tmp_path / "model", model, tokenizer, {})

    done = export(tmp_path / "model", tmp_path / "out", "sherpa", is_int8=True)

    assert {"encoder.onnx", "decoder.int8.onnx", "joiner.onnx", SPEC} <= set(done.files)
    assert "for 12 of 12 sounds, 1" in done.verified[0]  # and ten or more with words
    assert "In 8-bit integers" in done.verified[1]
    written = json.loads((tmp_path / "out" / SPEC).read_text())
    assert written["loader"] == "from_transducer"
    assert written["arguments"]["joiner"] == "joiner.onnx"
    assert transcribe_with_sherpa(tmp_path / "out", [], "int8").alone == ()


@pytest.mark.parametrize(
    ("transducer", "front_end", "rule"),
    [
        (replace(STATELESS, durations=(0, 1)), "conv4", "decoder `RNN-T`, but has `TDT`"),
        (TransducerShape(embedding=9, units=(8,), joint=11), "conv4", "predictor `stateless`"),
        (STATELESS, "striding", "`export --to onnx-asr` takes those"),
        (STATELESS, "linear", "subsampling `4`, but has `1`"),
    ],
)
def test_another_transducer_is_refused_with_what_can_be_done(transducer, front_end, rule):
    assert front_end in FRONTEND_SPECS
    shape = replace(with_frontend(SHAPE, front_end), transducer=transducer, has_ctc=False)

    with pytest.raises(ExportError, match=rule):
        check_stateless(small_model(shape=shape))
