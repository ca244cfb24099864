"""Which of a hybrid's two decoders is judged."""

import pytest
import torch

from core.config.base import ConfigError
from core.config.trial import TrialConfig
from core.decoders.ctc import greedy
from core.evaluation.batch_decoding import best_tokens
from core.testing import SHAPE, ragged_speech, small_model, with_transducer


def test_either_decoder_of_a_hybrid_can_be_judged():
    shape = with_transducer(SHAPE, "lstm tdt", has_ctc=True)
    model, speech = small_model(shape=shape), ragged_speech(90, 61, seed=2)
    with torch.no_grad():
        output = model(*speech)

    of_ctc = best_tokens(model, output, "ctc")

    assert of_ctc == greedy(output.logits, output.num_frames)
    assert best_tokens(model, output) == best_tokens(model, output, "transducer") != of_ctc


@pytest.mark.parametrize(
    ("model", "judged", "is_allowed"),
    [
        ({"decoder": "ctc"}, "ctc", True),
        ({"decoder": "ctc"}, "transducer", False),
        ({"decoder": "tdt"}, "ctc", False),
        ({"decoder": "tdt", "auxiliary_ctc": True}, "ctc", True),
        ({"decoder": "rnnt"}, "transducer", True),
    ],
)
def test_a_decoder_that_is_judged_must_be_there(model, judged, is_allowed):
    values = {"model": model, "evaluation": {"decoder": judged}}
    if is_allowed:
        assert TrialConfig.parse(values).evaluation.decoder == judged
        return

    with pytest.raises(ConfigError, match=f"`evaluation.decoder` must be .* but is `{judged}`"):
        TrialConfig.parse(values)
