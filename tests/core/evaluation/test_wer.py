import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation.wer import bootstrap, confusions, paired_difference, wer_report, word_errors

sentences = st.lists(st.sampled_from(["on", "off", "the", "light"]), min_size=1, max_size=6)
counts = st.lists(st.integers(0, 5), min_size=2, max_size=30)


def test_errors_are_counted_by_kind_and_by_utterance():
    found = word_errors(["turn on the light", "stop"], ["turn off light", "stop the music"])

    assert found.errors == (2, 2)
    assert found.words == (4, 1)
    assert (found.substitutions, found.deletions, found.insertions) == (1, 1, 2)
    assert found.wer == 4 / 5


@given(st.lists(sentences, min_size=1, max_size=5))
def test_empty_hypotheses_are_all_deletions(words_of_each):
    references = [" ".join(words) for words in words_of_each]

    found = word_errors(references, [""] * len(references))

    assert found.wer == 1
    assert found.errors == found.words
    assert found.deletions == sum(found.words)


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5))
def test_errors_of_utterances_sum_to_errors_of_kinds(pairs):
    found = word_errors([" ".join(a) for a, _ in pairs], [" ".join(b) for _, b in pairs])

    assert sum(found.errors) == found.substitutions + found.deletions + found.insertions


def test_an_empty_reference_is_refused():
    with pytest.raises(ValueError, match="`references` must have words, but number 1 is empty"):
        word_errors(["stop", " "], ["stop", "stop"])


def test_no_references_are_refused():
    with pytest.raises(ValueError, match="`references` must have words, but there are none"):
        word_errors([], [])


def test_unpaired_texts_are_refused():
    with pytest.raises(ValueError, match="as many as the 1 references, but are 2 instead"):
        word_errors(["stop"], ["stop", "go"])


def test_the_interval_holds_the_rate_and_repeats_itself():
    references, hypotheses = ["one two three"] * 40, ["one two three"] * 30 + ["one two"] * 10

    report = wer_report(references, hypotheses, samples=500, confidence=0.9, seed=3)

    assert report.low < report.wer < report.high
    assert report.wer == 10 / 120
    assert report.num_utterances == 40
    assert report == wer_report(references, hypotheses, samples=500, confidence=0.9, seed=3)


def test_more_utterances_make_a_narrower_interval():
    few = bootstrap([0, 1, 2] * 5, [3] * 15, samples=2000, confidence=0.95, seed=0)
    many = bootstrap([0, 1, 2] * 500, [3] * 1500, samples=2000, confidence=0.95, seed=0)

    assert (many[1] - many[0]) * 5 < few[1] - few[0]


def test_the_interval_covers_as_often_as_it_says():
    # Utterances of 4 words, each wrong with probability 1/4: the true rate is known.
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        errors = rng.binomial(4, 0.25, 60).tolist()
        low, high = bootstrap(errors, [4] * 60, samples=300, confidence=0.9, seed=seed)
        hits += low <= 0.25 <= high

    assert 0.8 <= hits / 200 <= 0.97


@given(counts)
def test_a_recognizer_does_not_differ_from_itself(errors):
    found = paired_difference(errors, errors, [6] * len(errors), samples=100)

    assert (found.low, found.difference, found.high) == (0, 0, 0)
    assert not found.is_significant


def test_pairing_shows_what_separate_intervals_hide():
    errors_a = [0, 1, 5, 2, 4, 3] * 20
    errors_b = [errors + (i % 3 == 0) for i, errors in enumerate(errors_a)]
    words = [6] * 120

    found = paired_difference(errors_a, errors_b, words)
    alone = bootstrap(errors_a, words, samples=1000, confidence=0.95, seed=0)

    assert found.is_significant
    assert found.high < 0
    assert found.high - found.low < alone[1] - alone[0]


def test_counts_of_other_utterances_are_refused():
    with pytest.raises(ValueError, match="the same utterances, but have 1, 2 and 2 instead"):
        paired_difference([1], [1, 2], [3, 3])


def test_confusions_are_all_errors_the_most_frequent_first():
    said = ["GO UP NOW", "GO UP", "STOP", "LEFT RIGHT"]
    heard = ["NO UP", "NO UP", "STOP NOW", "LEFT LEFT"]

    found = confusions(said, heard)

    assert sum(each.count for each in found) == sum(word_errors(said, heard).errors)
    assert (found[0].reference, found[0].hypothesis, found[0].count) == ("GO", "NO", 2)
    assert {(each.reference, each.hypothesis) for each in found[1:]} == {
        ("NOW", ""),
        ("", "NOW"),
        ("RIGHT", "LEFT"),
    }


def test_a_difference_is_improbable_exactly_where_it_is_significant():
    chance = np.random.default_rng(0)
    words = [5] * 200
    ours = chance.integers(0, 3, 200).tolist()
    worse = [error + int(more) for error, more in zip(ours, chance.random(200) < 0.3, strict=True)]
    other = chance.permutation(ours).tolist()

    far, near = paired_difference(worse, ours, words), paired_difference(other, ours, words)

    assert far.is_significant
    assert far.p_value < 0.05
    assert not near.is_significant
    assert 0.05 < near.p_value <= 1
    assert paired_difference(ours, ours, words).p_value == 1
