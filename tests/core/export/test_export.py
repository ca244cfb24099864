"""What leaves is verified, whole, and says what it is; else there is nothing."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from core import bundle
from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.data.tokenizer import Tokenizer
from core.export.export import export
from core.export.sherpa import TOKENS
from core.export.verify import check_texts
from core.inference.graph_interface import ExportError
from core.inference.onnx_session import Graph
from core.safe_text import markdown_text
from core.testing import SHAPE, ragged_speech, small_model

pytestmark = pytest.mark.whole

needs_sherpa = pytest.mark.skipif(
    importlib.util.find_spec("sherpa_onnx") is None, reason="needs the extra `sherpa`"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle, and beside it two files of noise."""
    folder = tmp_path_factory.mktemp("model")
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, folder)
    whole = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    with torch.no_grad():
        whole.head.bias[0] -= 5.0  # of noise, too, it says something
    bundle.save(folder / "model", whole, tokenizer, {"outcome": {"wer": 0.25}})
    chance = np.random.default_rng(0)
    for name, length in (("a.wav", 16_000), ("b.wav", 41_234)):
        soundfile.write(folder / name, 0.1 * chance.standard_normal(length), 16_000)
    return folder / "model"


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """To sherpa-onnx, with 8-bit integers."""
    out = tmp_path_factory.mktemp("exported") / "sherpa"
    files = [model.parent / "a.wav", model.parent / "b.wav"]
    return out, export(model, out, "sherpa", is_int8=True, verify_on=files)


@needs_sherpa
@pytest.mark.slow
def test_an_export_to_sherpa_has_all_that_it_names_and_says_what_was_verified(exported):
    out, done = exported

    told = json.loads((out / "sherpa.json").read_text())

    assert sorted(done.files) == sorted(path.name for path in out.iterdir())
    assert told["loader"] == "from_zipformer_ctc"
    assert set(told["precisions"]) == {"float", "int8"}
    assert told["arguments"] == told["precisions"]["float"]
    for arguments in told["precisions"].values():
        assert all((out / file).is_file() for file in arguments.values())
    assert any("for 2 of 2 sounds" in line for line in done.verified)
    card = (out / "README.md").read_text()
    assert "WER on dev | 25.00 %" in card
    assert all(markdown_text(line) in card for line in done.verified)


@needs_sherpa
@pytest.mark.slow
def test_a_graph_for_sherpa_is_of_a_version_that_it_reads(exported):
    import onnx  # noqa: PLC0415  # an extra

    for name in ("model.onnx", "model.int8.onnx"):
        graph = onnx.load(exported[0] / name)

        assert graph.ir_version <= 13
        assert graph.opset_import[0].version <= 26


@needs_sherpa
@pytest.mark.slow
def test_other_texts_are_refused_with_both_of_them(exported, model):
    out, _ = exported
    tokens = (out / TOKENS).read_text(encoding="utf-8")
    changed = "".join(
        line if line.startswith("<blk>") else f"x{line}\n"
        for line in tokens.splitlines(keepends=True)
    )
    (out / TOKENS).write_text(changed.replace("\n\n", "\n"), encoding="utf-8")
    try:
        with pytest.raises(ExportError, match=r"1 of 1 differ: for `.*a\.wav` it gives `x"):
            check_texts(bundle.load(model), out, [model.parent / "a.wav"])
    finally:
        (out / TOKENS).write_text(tokens, encoding="utf-8")


@pytest.mark.long
@needs_sherpa
@pytest.mark.slow
def test_what_fails_leaves_nothing_behind(model, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")

    with pytest.raises(CorpusError, match=r"broken\.wav"):
        export(model, tmp_path / "out", "sherpa", verify_on=[tmp_path / "broken.wav"])

    assert [path.name for path in tmp_path.iterdir()] == ["broken.wav"]


def test_a_file_to_verify_on_that_is_missing_is_named_at_once(model, tmp_path):
    with pytest.raises(CorpusError, match=r"missing\.wav` must be an audio file"):
        export(model, tmp_path / "out", "sherpa", verify_on=[tmp_path / "missing.wav"])


@pytest.mark.long
@pytest.mark.slow
def test_an_export_to_onnx_states_its_opset_and_what_it_was_verified_with(model, tmp_path):
    done = export(model, tmp_path / "out", "onnx")

    card = (tmp_path / "out" / "README.md").read_text()

    assert {"model.onnx", "tokens.txt", "tokenizer.model", "README.md"} <= set(done.files)
    assert "opset 23" in card
    assert "ONNX Runtime gives torch's log-probabilities within 0.0001" in card


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", pytest.param("sherpa", marks=needs_sherpa)])
def test_an_export_with_its_weights_in_files_of_their_own_is_whole(to, model, tmp_path):
    files = [model.parent / "a.wav"] if to == "sherpa" else []

    done = export(model, tmp_path / "out", to, is_int8=True, verify_on=files, inline_bytes=1000)

    card = (tmp_path / "out" / "README.md").read_text()
    for name in ("model.onnx.data", "model.int8.onnx.data"):
        assert name in done.files
        assert f"- `{name}`: the weights of" in card
    assert sorted(done.files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    features, num_frames = ragged_speech(90, 60)
    expected = bundle.load(model).model(features, num_frames)
    found = Graph(tmp_path / "out" / "model.onnx")(features, num_frames)
    gap = (found.logits - expected.logits.log_softmax(-1))[expected.is_frame].abs()
    assert gap.max() < 1e-4


def test_an_exported_bundle_is_the_bundle(model, tmp_path):
    features, num_frames = ragged_speech(90, 60)

    export(model, tmp_path / "out", "bundle")

    right, found = bundle.load(model), bundle.load(tmp_path / "out")
    expected = right.model(features, num_frames).logits
    assert torch.equal(found.model(features, num_frames).logits, expected)
    assert found.tokenizer.digest == right.tokenizer.digest
    assert found.report == right.report
    assert "25.00 %" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_there_is_left_as_it_is(model, tmp_path):
    (tmp_path / "mine").write_text("of another")

    with pytest.raises(ExportError, match=r"`--out` must be a new folder, but .* exists already"):
        export(model, tmp_path, "bundle")

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("bundle", {"is_int8": True}, "`--int8` must go with a graph"),
        ("onnx", {"verify_on": [Path("x.wav")]}, "`--verify-on` must go with `--to sherpa or"),
    ],
)
def test_options_that_mean_nothing_are_refused(to, options, said, model, tmp_path):
    with pytest.raises(ExportError, match=said):
        export(model, tmp_path / "out", to, **options)
