"""A published recogniser goes the whole way: brought in, trained, pruned, put to work, exported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config import TrialConfig
from core.corpora.prepared import open_speech
from core.deploy import bundle
from core.deploy.importing.bring import bring
from core.deploy.onnx import export_onnx
from core.deploy.runtime import Graph
from core.setting import Place
from core.teacher import prepare
from core.testing import ragged_speech
from core.trial import run

ARCHIVE = Path(__file__).parents[3] / "shared/data/models/fastconformer-8x.nemo"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ARCHIVE.is_file(), reason="../shared/data/models is not there"),
]


def trial_config(teacher, **pruning):
    return TrialConfig.parse(
        {
            "seed": 3,
            "corpus": {
                "case": "lower",
                "demo": {"train_utterances": 30, "dev_utterances": 6, "test_utterances": 6},
            },
            "teacher": {"bundle": str(teacher)},
            "pruning": {"calibration_batches": 2} | pruning,
            "tuning": {"steps": 4},
            "training": {"batch_seconds": 16.0},
            "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
            "runtime": {"report_steps": 4, "checkpoint_steps": 4},
        }
    )


def run_through(config, place):
    """A trial's outcome, by its bundle."""
    list(prepare(config, place))
    story = run(config, place)
    while True:
        try:
            next(story)
        except StopIteration as stop:
            (outcome,) = stop.value
            return outcome, bundle.load(place.trial / outcome.model)


def test_an_imported_fastconformer_is_trained_pruned_and_exported(tmp_path):
    brought = bring(str(ARCHIVE), tmp_path / "brought")
    place = Place(
        teacher=tmp_path / "teacher", features=tmp_path / "features", trial=tmp_path / "0"
    )
    dense, trained = run_through(trial_config(tmp_path / "brought", method="dense"), place)
    again = replace(place, teacher=tmp_path / "teacher2", trial=tmp_path / "1")
    config = trial_config(
        place.trial / dense.model, method="l0", steps=6, target_sparsity=0.5, repair="ls"
    )

    outcome, small = run_through(config, again)

    hearing = brought.model.shape.hearing
    assert trained.model.shape == brought.model.shape
    assert small.model.shape.hearing == hearing
    assert small.tokenizer.digest == brought.tokenizer.digest
    assert outcome.flops_sparsity >= 0.5
    heard = open_speech(place.features).dev.item(0)
    assert len(heard.features) == hearing.count_frames(round(heard.seconds * 16_000))
    assert abs(float(heard.features.mean())) < 1e-3  # normalised, as it was taught to hear
    export_onnx(small.model, tmp_path / "small.onnx")
    graph = Graph(tmp_path / "small.onnx")
    for lengths in [(203, 90, 31), (17,)]:
        features, num_frames = ragged_speech(*lengths)
        with torch.no_grad():
            expected = small.model(features, num_frames)
        found = graph(features, num_frames)
        gap = (found.logits - expected.logits.log_softmax(-1))[expected.is_frame].abs()
        assert gap.max() < 1e-4
