"""A bundle at work on files and corpora."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from core.bundle import Bundle, BundleError
from core.config.trial import CorpusConfig, ModelConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.data.audio_decoding import CorpusError
from core.data.batching import dev_batches
from core.data.corpus import open_split
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.export.benchmark import load_in_runtime
from core.inference.onnx_session import Graph
from core.inference.recognizer import at_depth, evaluate, transcribe
from core.testing import SHAPE, deeper, ragged_speech, small_model

pytestmark = pytest.mark.whole


@pytest.fixture
def bundle(demo_corpus, demo_config, tmp_path) -> Bundle:
    texts = [cut.supervisions[0].text for cut in demo_corpus.train]
    tokenizer = Tokenizer.train(texts, demo_config, tmp_path)
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    return Bundle(model=model, tokenizer=tokenizer, report={})


def test_a_file_is_heard_alone_as_its_corpus_is_heard_together(
    bundle, demo_corpus, demo_config, demo_folder
):
    files = [Path(cut.recording.sources[0].source) for cut in demo_corpus.dev]
    texts = [cut.supervisions[0].text for cut in demo_corpus.dev]

    heard = dict(transcribe(bundle, files))
    report = evaluate(bundle, demo_config, "dev", demo_folder)

    assert list(heard) == files
    assert report.num_utterances == len(files)
    for text, found, errors in zip(texts, heard.values(), report.errors, strict=True):
        assert (errors == 0) == (text == found)
    assert any(heard.values())


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_hears_a_corpus_as_its_model_does(bundle, demo_config, demo_folder, tmp_path):
    expected = evaluate(bundle, demo_config, "dev", demo_folder)

    graph = load_in_runtime(bundle.model, "onnxruntime", tmp_path)
    found = evaluate(bundle, demo_config, "dev", demo_folder, runs_on=graph)

    assert isinstance(graph, Graph)
    assert found == expected


def test_another_sample_rate_is_resampled_or_refused_by_name(bundle, tmp_path):
    file = tmp_path / "fast.wav"
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(22_050), 22_050)

    assert len(list(transcribe(bundle, [file]))) == 1
    with pytest.raises(CorpusError, match=r"fast.wav` must have 16000 samples a second.*22050"):
        list(transcribe(bundle, [file], resample=False))


def test_speech_shorter_than_the_receptive_field_says_nothing(bundle, tmp_path):
    file = tmp_path / "click.wav"
    soundfile.write(file, np.full(300, 0.1), 16_000)

    assert list(transcribe(bundle, [file])) == [(file, "")]


@pytest.mark.parametrize("content", [None, b"", b"no audio at all"])
def test_a_file_that_cannot_be_heard_is_named(bundle, tmp_path, content):
    file = tmp_path / "broken.wav"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(CorpusError, match=r"broken\.wav"):
        list(transcribe(bundle, [file]))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_at_a_depth_it_is_the_model_of_those_blocks_exactly(bundle, depth, order):
    model = small_model(shape=deeper(3))
    report = {} if order is None else {"depth_order": order}
    best = [0, 1, 2] if order is None else order
    features, num_frames = ragged_speech(90, 60)
    closed = {f"blocks.{i}" for i in best[depth:]}

    cut = at_depth(replace(bundle, model=model, report=report), depth)

    assert len(cut.model.blocks) == depth
    expected = model(features, num_frames, closed).logits
    assert torch.equal(cut.model(features, num_frames).logits, expected)


@pytest.mark.parametrize("depth", [-1, 0, 3])
def test_a_depth_that_it_does_not_have_is_refused(bundle, depth):
    with pytest.raises(ValueError, match=rf"`--depth` must be from 1 to 2, .* but is {depth}"):
        at_depth(bundle, depth)


@pytest.mark.parametrize(
    "order", [[0], [0, 0], [0, 2], "01", {"0": 1, "1": 0}, 7, [None, {}], ["0", "1"]]
)
def test_an_order_of_other_blocks_is_refused(bundle, order):
    with pytest.raises(BundleError, match=r"`depth_order` .* must name each of its 2 blocks"):
        at_depth(replace(bundle, report={"depth_order": order}), 1)


@pytest.mark.long
@pytest.mark.slow
def test_real_librispeech_passes_through_the_medium_model(strays_root, tmp_path):
    config = CorpusConfig(name=str(strays_root), tokens="char", vocabulary=60)
    cuts = open_split(config, tmp_path, "test")
    texts = [cut.supervisions[0].text for cut in cuts]
    tokenizer = Tokenizer.train(texts, config, tmp_path)
    store = FeatureStore.build(cuts, tokenizer, tmp_path / "store", is_training=False)
    model = Conformer(Shape.of(ModelConfig(size="medium"), tokenizer.size)).eval()

    batches = list(dev_batches(store, 60.0))
    outputs = [model(batch.features, batch.num_frames) for batch in batches]

    assert sum(len(batch.ids) for batch in batches) == len(texts) > 10
    for batch, output in zip(batches, outputs, strict=True):
        assert output.logits.isfinite().all()
        assert (output.num_frames >= batch.num_tokens).all()
