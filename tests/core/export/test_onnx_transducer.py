"""Exported transducers in ONNX Runtime: used like bundles, they say what the bundle says."""

from dataclasses import replace

import pytest
import torch

from core import bundle
from core.data.audio import read_file
from core.export.benchmark import recognizer_in
from core.export.export import CARD, export
from core.export.verify import make_test_sounds
from core.inference.exported_model import FEATURES_FILE, is_export, open_recognizer
from core.inference.graph_interface import ExportError
from core.inference.long_audio import transcribe_windows
from core.inference.recognizer import transcribe_waveform, transcript
from core.inference.windows import Windowing
from core.testing import SHAPE, TRANSDUCERS, small_model
from tests.support.drawn_recognizers import balance, short_tokenizer

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytestmark = [pytest.mark.whole, pytest.mark.slow]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    return make_test_sounds(tokenizer, tmp_path_factory.mktemp("sounds"))


def saved(folder, tokenizer, transducer):
    shape = replace(SHAPE, vocabulary=tokenizer.size, transducer=transducer, has_ctc=False)
    model = small_model(5, shape=shape)
    balance(model)
    bundle.save(folder, model, tokenizer, {})
    return folder


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A TDT with an LSTM, and its export, which was verified on sounds."""
    root = tmp_path_factory.mktemp("exported")
    source = saved(root / "source", tokenizer, TRANSDUCERS["lstm tdt"])
    result = export(source, root / "onnx", "onnx", is_int8=True, verify_on=())
    assert "ONNX Runtime" in result.verified[0]
    return source, root / "onnx"


def test_words_and_times_are_those_of_the_bundle(exported, files):
    source, folder = exported
    ours, graphs = bundle.load(source), open_recognizer(folder, threads=1)

    def spoken(opened, file):
        parts = transcribe_windows(opened.model, file, windowing=Windowing.fitting({}))
        return [(w.text, w.start, w.end) for w in transcript(opened, parts).words]

    words = [spoken(ours, file) for file in files]
    assert sum(map(len, words)) > 3
    assert [spoken(graphs, file) for file in files] == words


@pytest.mark.parametrize(
    "kind", [pytest.param("stateless rnnt", marks=pytest.mark.long), "stateless tdt"]
)
def test_a_bundle_runs_in_onnx_runtime(kind, tokenizer, files, tmp_path):
    ours = bundle.load(saved(tmp_path / "model", tokenizer, TRANSDUCERS[kind]))
    in_runtime = recognizer_in(ours, "onnxruntime", threads=1)

    sounds = [read_file(file) for file in files]
    texts = [transcribe_waveform(ours, sound) for sound in sounds]
    assert len(set(texts)) > 3
    assert [transcribe_waveform(in_runtime, sound) for sound in sounds] == texts


def test_the_card_says_how_these_graphs_are_loaded(exported):
    """Not how the one graph of CTC is."""
    card = (exported[1] / CARD).read_text(encoding="utf-8")

    assert "load_export" in card
    assert "log_probabilities" not in card


def test_an_export_without_integers_names_the_graph_that_it_lacks(exported, tmp_path):
    for file in exported[1].iterdir():
        if ".int8." not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())

    with pytest.raises(ExportError, match=r"encoder-model\.int8\.onnx"):
        open_recognizer(tmp_path, "int8", threads=1)


def test_the_graphs_in_integers_are_near(exported):
    _, folder = exported
    whole, integers = (open_recognizer(folder, name, threads=1) for name in (None, "int8"))
    features = torch.randn(1, 200, 80, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([200])

    expected, actual = (opened.model(features, lengths).encoded for opened in (whole, integers))

    assert 0 < float((actual - expected).norm() / expected.norm()) < 0.2


def test_an_export_without_its_features_is_refused(exported, tmp_path):
    _, folder = exported
    for file in folder.iterdir():
        if file.name != FEATURES_FILE:
            (tmp_path / file.name).write_bytes(file.read_bytes())

    assert is_export(tmp_path)
    with pytest.raises(bundle.BundleError, match=FEATURES_FILE):
        open_recognizer(tmp_path, threads=1)
