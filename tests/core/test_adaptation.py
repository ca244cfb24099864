"""An adaptation to its end, from wherever it had come to, and what it refuses to do."""

from dataclasses import replace

import pytest
import torch

from core import bundle
from core.adaptation import AdaptationConfig, adapt
from core.config.base import ConfigError
from core.config.trial import CorpusConfig, DemoConfig
from core.data.corpus import open_corpus
from core.data.sources import demo
from core.data.tokenizer import Tokenizer, transcript
from core.testing import SHAPE, small_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Old and new commands, spoken once."""
    folder = tmp_path_factory.mktemp("spoken")
    for name, commands in (("old", ["turn", "set"]), ("new", ["play", "call"])):
        config = DemoConfig(
            train_utterances=16, dev_utterances=3, test_utterances=4, commands=commands
        )
        demo.speak(config, folder / name)
    return folder


@pytest.fixture(scope="module")
def make_config(spoken):
    """An adaptation of a few seconds, some of it told otherwise."""

    def config(**sections) -> AdaptationConfig:
        trial = {
            "corpus": {"name": str(spoken / "new")},
            "tuning": {"steps": 8, "dropout": 0.1},
            "training": {"batch_seconds": 8.0},
            "pruning": {"calibration_batches": 2},
            "evaluation": {"bootstrap_samples": 100},
            "runtime": {"report_steps": 2, "checkpoint_steps": 3},
        }
        memory = {"name": str(spoken / "old")}
        return AdaptationConfig.parse(
            {"trial": trial, "memory": memory, "memory_share": 0.3, **sections}
        )

    return config


@pytest.fixture(scope="module")
def source(spoken):
    """A recognizer of the old words' tokens, untrained."""
    config = CorpusConfig(name=str(spoken / "old"), tokens="word")
    texts = map(transcript, open_corpus(config, spoken).train)
    tokenizer = Tokenizer.train(texts, config, spoken / "tokens")
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(spoken / "model", model, tokenizer, {})
    return spoken / "model"


@pytest.fixture(scope="module")
def uninterrupted(make_config, source, tmp_path_factory):
    """Reports, result and folder of an adaptation that nothing interrupts."""
    out = tmp_path_factory.mktemp("untouched") / "out"
    return *run_to_end(adapt(make_config(), source, out)), out


def run_to_end(story):
    reports = []
    while True:
        try:
            reports.append(replace(next(story), audio_seconds_per_second=None))
        except StopIteration as stop:
            return reports, stop.value


def test_it_ends_with_a_bundle_of_the_old_shape_that_knows_more_tokens(source, uninterrupted):
    reports, summary, out = uninterrupted
    old, new = bundle.load(source), bundle.load(out)

    assert [(r.stage, r.step) for r in reports] == [
        *(("speech", part) for part in (1, 2, 3)),
        *(("tune", step) for step in (2, 4, 6, 8)),
    ]
    assert all(r.wer is not None and r.old_wer is not None for r in reports[3:])
    assert summary["new_tokens"] == new.tokenizer.size - old.tokenizer.size > 0
    assert new.model.shape == replace(old.model.shape, vocabulary=new.tokenizer.size)
    assert new.tokenizer.pieces[: old.tokenizer.size] == old.tokenizer.pieces
    assert summary["params"] == sum(p.numel() for p in new.model.parameters())
    assert set(summary) == {
        *(f"{kind}_{when}" for kind in ("new", "old") for when in ("before", "after")),
        *("new_tokens", "params"),
    }
    assert new.report["adaptation"] == summary
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kill_after", [1, 4, 6])
def test_killed_and_run_again_it_ends_with_the_same_model(
    make_config, source, uninterrupted, tmp_path, kill_after
):
    doomed = adapt(make_config(), source, tmp_path / "out")
    for _ in range(kill_after):
        next(doomed)
    doomed.close()
    torch.manual_seed(999)

    _, summary = run_to_end(adapt(make_config(), source, tmp_path / "out"))

    assert summary == uninterrupted[1]
    whole = bundle.load(uninterrupted[2]).model.state_dict()
    for name, tensor in bundle.load(tmp_path / "out").model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_done_it_says_its_result_again_without_a_step(make_config, source, uninterrupted):
    assert run_to_end(adapt(make_config(), source, uninterrupted[2])) == ([], uninterrupted[1])


def test_another_adaptation_to_the_same_place_is_refused(
    make_config, source, uninterrupted, tmp_path
):
    with pytest.raises(ConfigError, match=r"`out` must be a new folder, but .* something else"):
        next(adapt(make_config(memory_share=0.5), source, uninterrupted[2]))
    doomed = adapt(make_config(), source, tmp_path / "out")
    next(doomed)
    doomed.close()
    with pytest.raises(ConfigError, match=r"out.work` holds another adaptation that was begun"):
        next(adapt(make_config(memory_share=0.5), source, tmp_path / "out"))


def test_without_old_speech_old_words_are_not_measured(make_config, source, tmp_path):
    reports, summary = run_to_end(adapt(make_config(memory=None), source, tmp_path / "out"))

    assert reports[-1].old_wer is None
    assert set(summary) == {"new_before", "new_after", "new_tokens", "params"}
