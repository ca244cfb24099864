"""What all tests share."""

from pathlib import Path

import pytest
import torch

from core.config import CorpusConfig, DemoConfig
from core.corpora.corpus import Corpus, open_corpus

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

torch.set_num_threads(1)


def _beside(name: str) -> Path:
    root = SHARED_DATA / name
    if not root.is_dir():
        pytest.skip(f"needs real speech in {root}")
    return root


@pytest.fixture(scope="session")
def commands_root() -> Path:
    """An hour of real one-word commands, spliced; 9 words."""
    return _beside("commands")


@pytest.fixture(scope="session")
def strays_root() -> Path:
    """Twenty real utterances of LibriSpeech, none for training."""
    return _beside("librispeech-strays")


@pytest.fixture(scope="session")
def demo_config() -> CorpusConfig:
    return CorpusConfig(
        tokens="word",
        demo=DemoConfig(train_utterances=60, dev_utterances=10, test_utterances=12),
    )


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `demo_corpus` is spoken, so that it is spoken once."""
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="session")
def demo_corpus(demo_config: CorpusConfig, demo_folder: Path) -> Corpus:
    """Under a hundred utterances by eSpeak NG."""
    return open_corpus(demo_config, demo_folder)
