"""How fast a model is, said by a command."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.export.onnx.conversion import export_onnx
from core.testing import deeper, small_model


@pytest.fixture
def model(tmp_path):
    """A bundle of three blocks, the last of which is missed most."""
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, tmp_path)
    whole = small_model(shape=replace(deeper(3), vocabulary=tokenizer.size))
    bundle.save(tmp_path / "model", whole, tokenizer, {"depth_order": [2, 0, 1]})
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / "x.wav", noise, 16_000)
    return tmp_path / "model"


@pytest.mark.long
@pytest.mark.slow
def test_a_bench_says_how_large_and_how_fast_a_model_is_in_each_runtime(run, model):
    opened = bundle.load(model).model

    code, out, _ = run(
        *("bench", model, "--seconds", 1, "--batch", 2, "--repeats", 1, "--int8", "--json")
    )
    found = json.loads(out)

    assert code == 0
    assert [row["runtime"] for row in found["rows"]] == ["torch", "onnxruntime", "int8"]
    assert found["params"] == sum(p.numel() for p in opened.parameters())
    assert found["gflops"] > 0
    for row in found["rows"]:
        assert row["latency_ms"] > 0
        assert row["real_time_factor"] == pytest.approx(row["latency_ms"] / 1000)
        assert row["audio_seconds_per_second"] > 0
        assert row["passes"] == [1, 1]


@pytest.mark.long
@pytest.mark.slow
def test_a_bench_of_a_graph_has_one_runtime_and_prints_a_table(run, model):
    graph = model.parent / "model.onnx"
    export_onnx(bundle.load(model).model, graph)

    code, out, _ = run("bench", graph, "--seconds", 1, "--repeats", 1)

    assert code == 0
    assert "onnxruntime" in out
    assert "torch" not in out
    assert "real-time factor" in out


@pytest.mark.parametrize("option", [("--seconds", 0), ("--threads", 0), ("--batch", 0)])
def test_a_bench_of_nothing_is_refused(run, model, option):
    code, out, err = run("bench", model, *option)

    assert (code, out) == (2, "")
    assert option[0] in err


def test_a_runtime_that_is_not_installed_is_one_line_and_code_2(run, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as Python marks what is not there

    code, out, err = run("bench", model)

    assert (code, out) == (2, "")
    assert err.startswith("error: A graph must have the package `onnxruntime`")
    assert 'pip install "conformer-sweep[export]"' in err


def test_a_graph_that_is_none_is_one_line_and_code_2(run, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")

    code, _, err = run("bench", tmp_path / "x.onnx")

    assert code == 2
    assert "x.onnx` must be an ONNX graph" in err
    assert len(err.splitlines()) == 1
