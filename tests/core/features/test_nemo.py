"""Features of elsewhere: of each utterance as if it were alone, whatever stands beside it."""

import pytest
import torch

from core.data.feature_cache import open_or_build
from core.data.tokenizer import Tokenizer, transcript
from core.features.kaldi import log_mel
from core.features.nemo import compute_features
from core.features.spec import NATIVE, FrontendSpec

NEMO = FrontendSpec(features="nemo", normalization="per_feature")
LENGTHS = torch.tensor([16_000, 7_999, 500, 160, 159])


def speech():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=rng)


@pytest.mark.parametrize("normalization", ["none", "per_feature"])
@pytest.mark.parametrize(("features", "late"), [("nemo", 0), ("sherpa", 80)])
@pytest.mark.parametrize("i", range(len(LENGTHS)))
def test_an_utterance_in_a_batch_sounds_as_it_does_alone(i, features, late, normalization):
    spec = FrontendSpec(features=features, normalization=normalization)

    together, num_frames = compute_features(spec, speech(), LENGTHS)
    alone, _ = compute_features(spec, speech()[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1])

    assert int(num_frames[i]) == (int(LENGTHS[i]) + late) // 160
    torch.testing.assert_close(together[i, : num_frames[i]], alone[0], rtol=0, atol=1e-4)
    assert not together[i, num_frames[i] :].any()


def test_normalised_features_have_mean_0_and_deviation_1_in_each_bin():
    features, _ = compute_features(NEMO, speech()[:1], LENGTHS[:1])

    torch.testing.assert_close(features[0].mean(0), torch.zeros(80), rtol=0, atol=1e-4)
    torch.testing.assert_close(features[0].std(0), torch.ones(80), rtol=0, atol=1e-3)


def test_who_asks_for_kaldis_features_gets_them():
    expected, _ = log_mel(speech(), LENGTHS)

    actual, _ = compute_features(NATIVE, speech(), LENGTHS)

    assert torch.equal(actual, expected)


def test_models_that_hear_otherwise_share_no_cache(demo_corpus, demo_config, tmp_path):
    tokenizer = Tokenizer.train(map(transcript, demo_corpus.train), demo_config, tmp_path)
    specs = [NATIVE, NEMO, FrontendSpec(features="nemo")]

    stores = [
        open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path, frontend_spec=spec)
        for spec in specs
    ]

    assert len({store.folder for store in stores}) == len(specs)
    again = open_or_build(demo_corpus, "dev", tokenizer, demo_config, tmp_path, frontend_spec=NEMO)
    assert again.folder == stores[1].folder
    assert abs(float(again.item(0).features.mean())) < 1e-4
