"""An exported folder as MODEL: its graph hears what the bundle hears, in every command."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from core import bundle
from core.bundle import BundleError
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.evaluation.beam import BeamSearch
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_weights
from core.export.targets import write_common_files
from core.features.spec import FrontendSpec
from core.inference.exported_model import FEATURES_FILE, load_export, open_recognizer
from core.inference.long_audio import compute_frames, transcribe_windows
from core.inference.recognizer import transcript
from core.inference.windows import Windowing
from core.testing import SHAPE, small_model, with_frontend

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

KINDS = ("kaldi", "nemo", "as sherpa reads nemo")


def write_kind(folder, tokenizer, kind):
    shape = SHAPE if kind == "kaldi" else with_frontend(SHAPE, "dw_striding 8x")
    model = small_model(shape=replace(shape, vocabulary=tokenizer.size))
    with torch.no_grad():
        model.head.bias[:3] -= 20.0  # of noise, too, it says letters
    bundle.save(folder / kind, model, tokenizer, {"longest_trained_seconds": 2.0})
    out = folder / f"{kind}.export"
    out.mkdir()
    write_common_files(bundle.load(folder / kind), out)
    export_onnx(model, out / "model.onnx", is_nemo=kind.startswith("as"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Bundles of two kinds of features and their exports, as `export` writes their files."""
    folder = tmp_path_factory.mktemp("exports")
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, folder)
    write_kind(folder, tokenizer, "kaldi")
    graphs = folder / "kaldi.export"
    shutil.copytree(graphs, folder / "floats.export")
    quantize_weights(graphs / "model.onnx", graphs / "model.int8.onnx")
    chance = np.random.default_rng(0)
    for name, seconds in (("click", 0.01), ("short", 2.0), ("long", 20.0)):
        samples = 0.1 * chance.standard_normal(round(16_000 * seconds))
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    return folder


@pytest.fixture(scope="module")
def nemo_home(home):
    """The same folder, with the other kinds."""
    tokenizer = Tokenizer.load(home / "kaldi" / "tokenizer.model")
    for kind in KINDS[1:]:
        write_kind(home, tokenizer, kind)
    return home


@pytest.fixture
def corpus(home):
    """Three utterances in the LibriSpeech layout."""
    folder = home / "corpus" / "test-clean" / "1" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    said = ["ONE TWO", "TEN", "TWO TEN"]
    for i in range(len(said)):
        noise = 0.1 * np.random.default_rng(i).standard_normal(16_000)
        soundfile.write(folder / f"1-1-000{i}.flac", noise, 16_000)
    lines = [f"1-1-000{i} {text}" for i, text in enumerate(said)]
    (folder / "1-1.trans.txt").write_text("\n".join(lines) + "\n")
    return folder.parents[2]


@pytest.mark.parametrize(
    ("kind", "fixture"),
    [
        (KINDS[0], "home"),
        *(pytest.param(kind, "nemo_home", marks=pytest.mark.long) for kind in KINDS[1:]),
    ],
)
def test_an_export_gives_the_log_probabilities_and_words_of_its_bundle(kind, fixture, request):
    home = request.getfixturevalue(fixture)
    whole, left = bundle.load(home / kind), open_recognizer(home / f"{kind}.export", threads=1)
    samples = torch.from_numpy(soundfile.read(home / "short.wav", dtype="float32")[0])
    beam = BeamSearch(whole.tokenizer, width=4)

    expected, found = (
        compute_frames(each.model, samples).log_probabilities for each in (whole, left)
    )

    assert left.model.frontend_spec == whole.model.frontend_spec
    assert left.report == whole.report
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for file in ("click", "short", "long"):
        windowing = Windowing(seconds=6.0, overlap=1.0)
        for decoder in (None, beam):
            first, second = (
                transcript(
                    each,
                    transcribe_windows(each.model, home / f"{file}.wav", windowing=windowing),
                    decoder,
                )
                for each in (whole, left)
            )
            assert second.text == first.text
            assert first.text or file == "click"
            assert [(w.start, w.end) for w in second.words] == [
                (w.start, w.end) for w in first.words
            ]


def test_the_commands_hear_in_an_export_what_they_hear_in_its_bundle(home, run, corpus, tmp_path):
    files = (home / "short.wav", home / "long.wav")
    words = ("--format", "json", "--timestamps")
    details = tmp_path / "details.json"

    expected, found = (
        json.loads(run("transcribe", home / name, *files, *words)[1])
        for name in ("kaldi", "kaldi.export")
    )
    judged = json.loads(
        run(
            *("evaluate", home / "kaldi.export", corpus, "--against", home / "kaldi"),
            *("--details", details, "--json"),
        )[1]
    )

    for one, other in zip(expected, found, strict=True):
        assert one["text"] == other["text"]
        for a, b in zip(one["words"], other["words"], strict=True):
            assert (a["start"], a["end"]) == (b["start"], b["end"])
            assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-3)
    assert judged["difference"]["difference"] == 0
    rows = json.loads(details.read_text())
    assert [row["hypothesis"] for row in rows] == [row["against_hypothesis"] for row in rows]


@pytest.mark.long
def test_a_runtime_hears_in_a_bundle_what_it_hears_in_the_export(home, run, corpus):
    for runtime in ("onnxruntime", "int8"):
        texts = [
            run("transcribe", home / name, home / "short.wav", "--runtime", runtime)[:2]
            for name in ("kaldi", "kaldi.export")
        ]
        assert texts[0] == texts[1]
        assert texts[0][0] == 0
    code, out, _ = run("evaluate", home / "kaldi.export", corpus, "--runtime", "int8", "--json")
    assert code == 0
    assert json.loads(out)["utterances"] == 3


def test_bench_times_the_graphs_of_an_export(home, run):
    words = ("bench", home / "kaldi.export", "--seconds", 1, "--batch", 1, "--repeats", 1, "--json")

    plain, with_int8 = (json.loads(run(*words, *more)[1]) for more in ((), ("--int8",)))

    assert [row["runtime"] for row in plain["rows"]] == ["onnxruntime"]
    assert [row["runtime"] for row in with_int8["rows"]] == ["onnxruntime", "int8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("transcribe", "kaldi.export", "short.wav", "--runtime", "torch"), "`--runtime` of the"),
        (("transcribe", "kaldi.export", "short.wav", "--depth", "1"), "`--depth` must go with a"),
        (
            ("transcribe", "floats.export", "short.wav", "--runtime", "int8"),
            "model.int8.onnx, but has",
        ),
        (("bench", "floats.export", "--int8"), "must have the graph model.int8.onnx, but has none"),
        (("prune", "kaldi.export", "--out", "new"), "is an export for other runtimes instead"),
    ],
)
def test_what_an_export_cannot_do_is_one_line_and_code_2(home, run, words, message, monkeypatch):
    monkeypatch.chdir(home)
    code, out, err = run(*words)

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.long
def test_an_export_of_before_is_read_where_its_graph_is_of_one_kind(nemo_home, tmp_path):
    for kind in KINDS:
        folder = tmp_path / kind
        shutil.copytree(nemo_home / f"{kind}.export", folder)
        (folder / FEATURES_FILE).unlink()
        if kind == "kaldi":
            assert load_export(folder).model.frontend_spec == FrontendSpec()
        else:
            with pytest.raises(
                BundleError, match=r"must have a features\.json .* export the model"
            ):
                load_export(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("features.json", "{}", "must be of format 1 or 2, but is of None"),
        ("features.json", '{"format": 3}', "must be of format 1 or 2, but is of 3 instead"),
        ("features.json", '{"format": 1, "stages": 2}', "must state the features of a graph"),
        ("features.json", "[1]", "must be a table"),
        ("report.json", "nonsense", "report.json` must be JSON"),
        ("tokenizer.model", None, "tokenizer.model` must be a SentencePiece model, but is missing"),
        ("tokenizer.model", "nonsense", "must be a SentencePiece model, but is damaged"),
        ("model.onnx", "nonsense", "model.onnx` must be an ONNX graph"),
        ("model.onnx", None, "must have the graph model.onnx, but has none"),
    ],
)
def test_a_damaged_export_is_one_line_and_code_2(home, run, name, content, message, tmp_path):
    shutil.copytree(home / "kaldi.export", tmp_path / "e")
    (tmp_path / "e" / name).unlink()
    if content is not None:
        (tmp_path / "e" / name).write_text(content)

    code, out, err = run("transcribe", tmp_path / "e", home / "short.wav")

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_tokenizer_of_other_tokens_is_refused(home, tmp_path):
    shutil.copytree(home / "kaldi.export", tmp_path / "e")
    config = CorpusConfig(tokens="char", vocabulary=7)
    Tokenizer.train(["ABCD"], config, tmp_path / "e")

    with pytest.raises(BundleError, match=r"tokenizer\.model` must have .* as the graph has"):
        load_export(tmp_path / "e")


def test_another_library_s_folder_is_told_to_import_it(run, home, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "parakeet_ctc"}')

    code, out, err = run("transcribe", tmp_path, home / "short.wav")

    assert (code, out) == (2, "")
    assert f"`conformer-sweep import {tmp_path} NEW` makes a bundle" in err
