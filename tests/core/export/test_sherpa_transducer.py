"""sherpa-onnx gives the transcripts of transducers, of its own kind and of NeMo's."""

import json
from dataclasses import replace

import pytest
import torch

from core import bundle
from core.conformer.shape import TransducerShape
from core.export.export import export
from core.export.onnx.sherpa_graphs import BlankLastPredictor, blank_last
from core.export.onnx.transducer import JoinerGraph, PredictorGraph
from core.export.sherpa import SPEC, transcribe_with_sherpa
from core.export.sherpa_transducer import choose_kind
from core.export.verify import make_test_sounds
from core.inference.exported_model import open_recognizer
from core.inference.graph_interface import ExportError, GraphError
from core.inference.long_audio import transcribe_windows
from core.inference.recognizer import transcript
from core.inference.windows import Windowing
from core.testing import FRONTEND_SPECS, SHAPE, small_model, with_frontend
from tests.support.drawn_recognizers import balance, short_tokenizer

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.whole

WHOLE = Windowing.fitting({})
STATELESS = TransducerShape(embedding=9, context=2, joint=11)


NEMO = {
    "rnnt": TransducerShape(embedding=9, units=(8, 6), joint=11),
    "tdt": TransducerShape(embedding=9, units=(8,), joint=11, durations=(0, 1, 2, 3, 4)),
    "stateless": STATELESS,
}


def saved_model(tmp_path, transducer, spec=None):
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size, transducer=transducer, has_ctc=False)
    if spec is not None:
        shape = replace(with_frontend(shape, "dw_striding 8x"), frontend_spec=spec)
    model = small_model(5, shape=shape)
    balance(model)
    bundle.save(tmp_path / "model", model, tokenizer, {})
    return model


@pytest.mark.long
@pytest.mark.slow
def test_an_export_is_verified_in_floats_and_measured_in_integers(tmp_path):
    pytest.importorskip("sherpa_onnx")
    saved_model(tmp_path, STATELESS)

    done = export(tmp_path / "model", tmp_path / "out", "sherpa", is_int8=True)

    assert {"encoder.onnx", "decoder.int8.onnx", "joiner.onnx", SPEC} <= set(done.files)
    assert "for 12 of 12 sounds, 1" in done.verified[0]  # and ten or more with words
    assert "In 8-bit integers" in done.verified[1]
    written = json.loads((tmp_path / "out" / SPEC).read_text())
    assert written["loader"] == "from_transducer"
    assert written["arguments"]["joiner"] == "joiner.onnx"
    assert transcribe_with_sherpa(tmp_path / "out", [], "int8").alone == ()
    check_words_and_times(tmp_path)


def check_words_and_times(tmp_path):
    """The folder is used like the bundle; without one of its graphs it is refused."""
    ours, graphs = bundle.load(tmp_path / "model"), open_recognizer(tmp_path / "out", threads=1)
    (tmp_path / "sounds").mkdir()
    for file in make_test_sounds(ours.tokenizer, tmp_path / "sounds"):
        expected, found = (
            transcript(opened, transcribe_windows(opened.model, file, windowing=WHOLE)).words
            for opened in (ours, graphs)
        )
        assert [(w.text, w.start, w.end) for w in found] == [
            (w.text, w.start, w.end) for w in expected
        ]
    (tmp_path / "out" / "joiner.onnx").unlink()
    with pytest.raises(GraphError, match=r"joiner\.onnx. must be an ONNX graph, but there is no"):
        open_recognizer(tmp_path / "out", threads=1)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "normalization"),
    [(name, "per_feature") for name in NEMO] + [("rnnt", "none"), ("tdt", "none")],
)
def test_nemo_s_kind_says_the_same_of_the_features_that_it_computes(tmp_path, name, normalization):
    """If a feature were off, texts of drawn weights would differ: small differences decide."""
    pytest.importorskip("sherpa_onnx")
    spec = replace(FRONTEND_SPECS["dw_striding 8x"], normalization=normalization)
    saved_model(tmp_path, NEMO[name], spec.for_sherpa(has_transducer=True))

    done = export(tmp_path / "model", tmp_path / "out", "sherpa")

    assert "for 12 of 12 sounds, 1" in done.verified[0]
    assert len(done.verified) == 1
    spec = json.loads((tmp_path / "out" / SPEC).read_text())
    assert spec["arguments"]["model_type"] == "nemo_transducer"
    check_words_and_times(tmp_path)


def test_a_blank_that_comes_last_changes_nothing_else():
    """Of their tokens 0 to V - 2 and the blank V - 1, ours are 1 to V - 1 and 0."""
    model = small_model(shape=replace(SHAPE, transducer=NEMO["tdt"], has_ctc=False)).eval()
    own, size = model.transducer, model.vocabulary
    state = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    ours, one = torch.tensor([[0], [1], [size - 1]]), torch.ones(3, dtype=torch.int32)
    theirs = torch.tensor([[size - 1], [0], [size - 2]])

    expected = PredictorGraph(own.predictor, own.joint)(ours, one, *state)
    actual = BlankLastPredictor(own.predictor, own.joint, size)(theirs, one, *state)
    frame = torch.randn(3, 11, 1)
    logits = JoinerGraph(own.joint)(frame, expected[0])
    moved = blank_last(own.joint, size)(frame, actual[0])

    assert all(map(torch.equal, expected, actual))
    assert torch.equal(moved[..., size - 1], logits[..., 0])
    assert torch.equal(moved[..., : size - 1], logits[..., 1:size])
    assert torch.equal(moved[..., size:], logits[..., size:])  # durations stay where they are


@pytest.mark.parametrize(
    ("transducer", "spec", "rule"),
    [
        (replace(STATELESS, durations=(0, 1)), "conv4", "decoder `RNN-T`, but has `TDT`"),
        (TransducerShape(embedding=9, units=(8,), joint=11), "conv4", "predictor `stateless`"),
        (STATELESS, "striding", "`import --for-sherpa --decoder transducer` makes one"),
        (STATELESS, "linear", "subsampling `4`, but has `1`"),
    ],
)
def test_another_transducer_is_refused_with_what_can_be_done(transducer, spec, rule):
    shape = replace(with_frontend(SHAPE, spec), transducer=transducer, has_ctc=False)
    of_ctc = shape.frontend_spec.for_sherpa(has_transducer=False)

    with pytest.raises(ExportError, match=rule):
        choose_kind(small_model(shape=replace(shape, frontend_spec=of_ctc)))


def test_features_that_are_nearly_its_own_are_no_reason_to_refuse():
    shape = replace(with_frontend(SHAPE, "striding"), transducer=NEMO["tdt"], has_ctc=False)

    kind = choose_kind(small_model(shape=shape))

    assert kind.is_nemo
    assert not kind.is_exact
    assert kind.most_symbols == 5
