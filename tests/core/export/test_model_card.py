"""A card says what a report says, and nothing where that says nothing."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.trial import TrialConfig
from core.export.model_card import Exported, card_text
from core.report import Outcome

EXPORTED = Exported(
    name="small",
    to="onnx",
    params=1234567,
    source="ab" * 32,
    tokenizer="cd" * 32,
    files={"model.onnx": "the graph, in floats"},
    verified=["It was looked at."],
    loading="load()",
    notes=["The graph is of opset 23."],
)
OUTCOME = Outcome(
    method="l0",
    resource="flops",
    target_sparsity=0.5,
    realised_sparsity=0.502,
    wer=0.0856,
    wer_low=0.046,
    wer_high=0.127,
    test_wer=None,
    test_wer_low=None,
    test_wer_high=None,
    gflops=0.1234,
    params=1234567,
    flops_sparsity=0.502,
    params_sparsity=0.41,
    latency_ms=3.25,
    real_time_factor=0.0004,
    steps=500,
    model="model",
)
REPORT = {"outcome": asdict(OUTCOME), "config": TrialConfig().model_dump()}


@pytest.mark.parametrize(
    "said",
    [
        "| WER on dev | 8.56 % (95 %: 4.60 to 12.70) |",
        "| parameters | 1,234,567 |",
        "0.1234",
        "3.25",
        "| removed of the FLOPs | 50.2% |",
        "| target, removed of flops | 50.0%, reached 50.2% |",
        "- method: l0",
        "- seed: 0",
        "- corpus: demo",
        "ab" * 32,
        "- `model.onnx`: the graph, in floats",
        "opset 23",
        "- It was looked at.",
        "load()",
    ],
)
def test_it_says_what_was_measured_and_where_it_comes_from(said):
    assert said in card_text(EXPORTED, REPORT)


def test_what_was_not_measured_is_not_in_it():
    text = card_text(EXPORTED, REPORT)

    assert "on test" not in text
    assert "None" not in text
    assert "latency, by table" not in text


def test_without_a_report_it_says_that_nothing_was_measured():
    text = card_text(EXPORTED, {})

    assert "WER" not in text
    assert "Its report has no measurements." in text


def test_of_a_model_that_was_taught_new_words_it_says_both_kinds():
    told = {"before": {"wer": 1.0}, "after": {"wer": 0.1, "low": 0.05, "high": 0.15}}

    text = card_text(EXPORTED, {"adaptation": {"new": told, "old": None}})

    assert "| WER on new words, before adapting | 100.00 % |" in text
    assert "| WER on new words, after adapting | 10.00 % (95 %: 5.00 to 15.00) |" in text
    assert "old words" not in text


plain = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from([*REPORT["outcome"], "other"]), plain, max_size=6) | plain,
    st.dictionaries(st.sampled_from(["corpus", "teacher", "pruning", "seed"]), plain) | plain,
)
def test_whatever_a_report_says_there_is_a_card(outcome, config):
    assert card_text(EXPORTED, {"outcome": outcome, "config": config}).startswith("# small\n")
