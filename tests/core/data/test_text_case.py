import pytest
from lhotse import CutSet, SupervisionSegment
from lhotse.testing.dummies import dummy_cut

from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.data.text_case import change_case, check_case
from core.data.tokenizer import Tokenizer, transcript

TEXTS = ["Turn the LIGHT on", "turn the heater off", "open the door"] * 4


def cuts(*texts):
    return CutSet.from_cuts(
        dummy_cut(i, supervisions=[SupervisionSegment(f"s{i}", f"r{i}", 0.0, 1.0, text=text)])
        for i, text in enumerate(texts)
    )


@pytest.fixture
def tokenizer(tmp_path):
    """It knows small letters alone."""
    config = CorpusConfig(tokens="char", vocabulary=40)
    return Tokenizer.train(map(str.lower, TEXTS), config, tmp_path)


@pytest.mark.parametrize(
    ("case", "expected"),
    [("as_written", "Turn It ON"), ("lower", "turn it on"), ("upper", "TURN IT ON")],
)
def test_transcripts_are_read_in_the_case_that_is_asked_for(case, expected):
    assert [transcript(cut) for cut in change_case(cuts("Turn It ON"), case)] == [expected]


def test_transcripts_that_another_case_would_make_known_are_refused(tokenizer):
    with pytest.raises(CorpusError, match=r'`LIGHT` is .* `light` is not; .*case = "lower"'):
        check_case(["OPEN THE LIGHT"], tokenizer)


def test_the_unknown_piece_is_told_wherever_it_stands():
    pieces = ["\u2581", "a", "b", "<unk>"]
    last = Tokenizer.of_pieces(pieces, [-1.0, -2.0, -3.0, 0.0], unknown="<unk>", is_bpe=False)

    with pytest.raises(CorpusError, match=r'case = "lower"'):
        check_case(["A B"], last)


@pytest.mark.parametrize(
    "texts", [["open the light"], ["the light is THERE"], ["ça été à l'œuvre"], ["12 34"], []]
)
def test_what_is_known_or_what_no_case_makes_known_is_let_through(texts, tokenizer):
    check_case(texts, tokenizer)
