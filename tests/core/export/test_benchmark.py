"""Speeds of a transducer: torch alone runs it here."""

from dataclasses import replace

import pytest

from core import bundle
from core.export.benchmark import benchmark_model
from core.inference.graph_interface import ExportError
from core.testing import SHAPE, TRANSDUCERS, small_model
from tests.support.drawn_recognizers import short_tokenizer


@pytest.fixture
def model(tmp_path):
    tokenizer = short_tokenizer(tmp_path)
    shape = replace(SHAPE, vocabulary=tokenizer.size, transducer=TRANSDUCERS["lstm tdt"])
    bundle.save(tmp_path / "model", small_model(shape=shape), tokenizer, {})
    return tmp_path / "model"


SETTING = {"utterance_seconds": 1.0, "batch": 2, "threads": 1, "repeats": 1}


def test_a_transducer_is_timed_in_torch_with_its_decoding(model):
    found = benchmark_model(model, **SETTING, is_int8=False)

    assert [row["runtime"] for row in found["rows"]] == ["torch"]
    assert found["rows"][0]["latency_ms"] > 0


def test_a_transducer_in_integers_is_refused(model):
    with pytest.raises(ExportError, match=r"`--int8` must go with a model of CTC alone"):
        benchmark_model(model, **SETTING, is_int8=True)
