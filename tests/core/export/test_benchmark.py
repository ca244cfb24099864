"""Speeds of a transducer, in each runtime."""

from dataclasses import replace

import pytest

from core import bundle
from core.export.benchmark import benchmark_model
from core.testing import SHAPE, TRANSDUCERS, small_model
from tests.support.drawn_recognizers import short_tokenizer


@pytest.fixture
def model(tmp_path):
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size, transducer=TRANSDUCERS["lstm tdt"])
    bundle.save(tmp_path / "model", small_model(shape=shape), tokenizer, {})
    return tmp_path / "model"


SETTING = {"utterance_seconds": 1.0, "batch": 2, "threads": 1, "repeats": 1}


@pytest.mark.long
@pytest.mark.slow
def test_a_transducer_is_timed_with_its_decoding_in_every_runtime(model):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

    found = benchmark_model(model, **SETTING, is_int8=True)

    assert [row["runtime"] for row in found["rows"]] == ["torch", "onnxruntime", "int8"]
    assert all(row["latency_ms"] > 0 for row in found["rows"])
