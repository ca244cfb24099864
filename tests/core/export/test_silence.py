"""Silence and spoilt speech: `transcribe`, `evaluate` and sherpa-onnx write the same of them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from core import bundle
from core.config.trial import CorpusConfig
from core.data.tokenizer import Tokenizer
from core.export.export import export
from core.export.verify import compare_texts, one_space
from core.inference.recognizer import transcribe, transcribe_split
from core.testing import SHAPE, small_model

pytestmark = pytest.mark.whole

RATE_HZ = 16_000


def sounds():
    """Two seconds each, by name."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(2 * RATE_HZ)
    speech = 0.2 * noise * np.sin(np.linspace(0, 20, len(noise)))  # loud and faint by turns
    slow = resample(torch.from_numpy(speech), RATE_HZ, 8_000)
    zeros = np.zeros(2 * RATE_HZ)
    return {
        "zeros": zeros,
        "noise-100": 1e-5 * noise,
        "noise-60": 1e-3 * noise,
        "speech": speech,
        "speech-60": 5e-3 * speech,
        "before": np.concatenate([zeros, speech]),
        "after": np.concatenate([speech, zeros]),
        "between": np.concatenate([speech[:RATE_HZ], zeros, speech[RATE_HZ:]]),
        "clipped": speech.clip(-0.02, 0.02),
        "offset": speech + 0.3,
        "offset-zeros": zeros + 0.3,
        "narrow": resample(slow, 8_000, RATE_HZ).numpy(),
        "last-bit": np.where(noise > 1.5, 2.0**-15, 0.0),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The sounds in the LibriSpeech layout, in floats, and their files in order."""
    root = tmp_path_factory.mktemp("corpus")
    folder = root / "test" / "1" / "1"
    folder.mkdir(parents=True)
    made = sounds()
    for name, samples in made.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
    lines = [f"{name} ONE" for name in made]
    (folder / "1-1.trans.txt").write_text("\n".join(lines) + "\n")
    return root, [folder / f"{name}.wav" for name in made]


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.long)])
def model(request, tmp_path_factory):
    """A bundle of chance that hears something in everything."""
    folder = tmp_path_factory.mktemp("model")
    config = CorpusConfig(tokens="char", vocabulary=12)
    tokenizer = Tokenizer.train(["ONE TWO", "TEN"], config, folder)
    whole = small_model(seed=request.param, shape=replace(SHAPE, vocabulary=tokenizer.size))
    with torch.no_grad():
        whole.head.bias[0] -= 5.0
    bundle.save(folder / "model", whole, tokenizer, {})
    return folder / "model"


def test_evaluate_hears_what_transcribe_does(model, corpus):
    root, files = corpus
    opened = bundle.load(model)

    heard = transcribe_split(opened, CorpusConfig(name=str(root)), "test", root)

    texts = {file.stem: one_space(text) for file, text in transcribe(opened, files)}
    assert dict(zip(heard.ids, map(one_space, heard.hypotheses), strict=True)) == texts
    assert len(set(texts.values())) > len(texts) / 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("sherpa_onnx") is None, reason="needs the extra `sherpa`"
)
def test_sherpa_hears_what_transcribe_does(model, corpus, tmp_path):
    _, files = corpus
    out = tmp_path / "sherpa"
    export(model, out, "sherpa")

    found = compare_texts(bundle.load(model), out, [Path(file) for file in files])

    assert found.differing == []
    assert found.with_words > len(files) / 2
