"""A published recognizer goes the whole way: brought in, trained, pruned, put to work, exported."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from core import bundle
from core.config.trial import TrialConfig
from core.data.audio import read_file
from core.data.prepare import open_speech
from core.export.export import export
from core.export.onnx.conversion import export_onnx
from core.export.verify import compare_texts
from core.features.nemo import compute_features
from core.importers.load import import_model
from core.inference.onnx_session import Graph
from core.inference.recognizer import transcribe
from core.runtime import TrialDirs
from core.teacher import prepare
from core.testing import ragged_speech
from core.trial import run

DATA = Path(__file__).parents[3] / "shared/data"
ARCHIVE = DATA / "models/fastconformer-8x.nemo"
SPOKEN = {"1000/1/1000-1-0000": "down left one", "1001/1/1001-1-0000": "left zero"}
"""Of real commands."""
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


def run_through(config, dirs):
    """A trial's outcome, by its bundle."""
    list(prepare(config, dirs))
    story = run(config, dirs)
    while True:
        try:
            next(story)
        except StopIteration as stop:
            (outcome,) = stop.value
            return outcome, bundle.load(dirs.trial / outcome.model)


@pytest.mark.long
def test_an_imported_fastconformer_is_trained_pruned_and_exported(tmp_path):
    brought = import_model(str(ARCHIVE), tmp_path / "brought")
    dirs = TrialDirs(
        teacher=tmp_path / "teacher", features=tmp_path / "features", trial=tmp_path / "0"
    )
    dense, trained = run_through(trial_config(tmp_path / "brought", method="dense"), dirs)
    again = replace(dirs, teacher=tmp_path / "teacher2", trial=tmp_path / "1")
    config = trial_config(
        dirs.trial / dense.model, method="l0", steps=6, target_sparsity=0.5, repair="ls"
    )

    outcome, small = run_through(config, again)

    frontend_spec = brought.model.shape.frontend_spec
    assert trained.model.shape == brought.model.shape
    assert small.model.shape.frontend_spec == frontend_spec
    assert small.tokenizer.digest == brought.tokenizer.digest
    assert outcome.flops_sparsity >= 0.5
    item = open_speech(dirs.features).dev.item(0)
    assert len(item.features) == frontend_spec.count_frames(round(item.seconds * 16_000))
    assert abs(float(item.features.mean())) < 1e-3  # normalised, as it was taught to hear
    export_onnx(small.model, tmp_path / "small.onnx")
    graph = Graph(tmp_path / "small.onnx")
    for lengths in [(203, 90, 31), (17,)]:
        features, num_frames = ragged_speech(*lengths)
        with torch.no_grad():
            expected = small.model(features, num_frames)
        actual = graph(features, num_frames)
        gap = (actual.logits - expected.logits.log_softmax(-1))[expected.is_frame].abs()
        assert gap.max() < 1e-4


def overfit(model, tokenizer, texts):
    """Until it says what is said in these files, and surely so."""
    sounds = [read_file(file) for file in texts]
    features, num_frames = compute_features(
        model.shape.frontend_spec,
        pad_sequence(sounds, batch_first=True),
        torch.tensor([len(sound) for sound in sounds]),
    )
    tokens = [torch.tensor(tokenizer.encode(text)) for text in texts.values()]
    lengths = torch.tensor([len(ids) for ids in tokens])
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(90):
        output = model(features, num_frames)
        logs = output.logits.log_softmax(-1).transpose(0, 1)
        optimizer.zero_grad()
        F.ctc_loss(logs, torch.cat(tokens), output.num_frames, lengths).backward()
        optimizer.step()
    model.eval()


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("sherpa_onnx") is None, reason="needs the extra `sherpa`"
)
def test_a_fastconformer_says_real_words_in_sherpa_onnx_as_here(tmp_path):
    files = {DATA / f"commands/train-clean/{name}.ogg": text for name, text in SPOKEN.items()}
    if not all(file.is_file() for file in files):
        pytest.skip("../shared/data/commands is not there")
    torch.manual_seed(0)
    brought = import_model(str(ARCHIVE), tmp_path / "brought", for_sherpa=True)
    overfit(brought.model, brought.tokenizer, files)
    bundle.save(tmp_path / "taught", brought.model, brought.tokenizer, {})
    opened = bundle.load(tmp_path / "taught")

    done = export(tmp_path / "taught", tmp_path / "out", "sherpa", verify_on=list(files))

    comparison = compare_texts(opened, tmp_path / "out", list(files))
    assert [text for _, text in transcribe(opened, list(files))] == list(files.values())
    assert list(comparison.alone) == list(comparison.together) == list(files.values())
    assert json.loads((tmp_path / "out" / "sherpa.json").read_text())["loader"] == "from_nemo_ctc"
    assert any("for 2 of 2 sounds" in line for line in done.verified)
