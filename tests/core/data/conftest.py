"""The training speech of the small demo corpus, with its features."""

import pytest

from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer, transcript


@pytest.fixture(scope="module")
def store(demo_corpus, demo_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tokenizer = Tokenizer.train(map(transcript, demo_corpus.train), demo_config, folder)
    return FeatureStore.build(demo_corpus.train, tokenizer, folder / "train", is_training=True)
