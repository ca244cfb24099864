"""Trials on speech that nobody has transcribed: the teacher's words in the transcripts' place."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import bundle
from core.config.trial import TrialConfig
from core.data.corpus import open_corpus
from core.data.prepare import open_speech
from core.data.sources.demo import speak
from core.data.tokenizer import Tokenizer, transcript
from core.evaluation.batch_decoding import decode_store
from core.inference.recognizer import transcribe
from core.runtime import TrialDirs
from core.teacher import prepare
from core.testing import SHAPE, small_model
from core.trial import run

pytestmark = [pytest.mark.slow, pytest.mark.whole]


def config_of(**sections) -> TrialConfig:
    """A trial of a few seconds."""
    base = {
        "seed": 3,
        "corpus": {
            "tokens": "word",
            "vocabulary": 30,
            "demo": {"train_utterances": 30, "dev_utterances": 5, "test_utterances": 5},
        },
        "pruning": {"steps": 6, "calibration_batches": 2},
        "tuning": {"steps": 4},
        "training": {"batch_seconds": 16.0},
        "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
        "runtime": {"report_steps": 2, "checkpoint_steps": 3},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return TrialConfig.parse(base)


def place_in(root: Path, name: str = "trial") -> TrialDirs:
    return TrialDirs(teacher=root / "teacher", features=root / "features", trial=root / name)


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    return speak(config_of().corpus.demo, tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def teacher(speech, tmp_path_factory) -> Path:
    """A bundle that has learnt nothing, and hears something else in every other utterance."""
    folder, corpus = tmp_path_factory.mktemp("taught"), config_of().corpus
    spoken = open_corpus(corpus.model_copy(update={"name": str(speech)}), folder)
    tokens = Tokenizer.train(map(transcript, spoken.train), corpus, folder)
    model = small_model(3, shape=replace(SHAPE, vocabulary=tokens.size))
    model.frontend.mean.fill_(-8.0)  # about what speech has
    model.frontend.deviation.fill_(3.0)
    bundle.save(folder / "model", model, tokens, {})
    return folder / "model"


def wordless(teacher: Path, corpus: Path, **sections) -> TrialConfig:
    corpus_section = {"name": str(corpus), "labels": "teacher"}
    return config_of(corpus=corpus_section, teacher={"bundle": str(teacher)}, **sections)


def run_single(config, dirs, *, kill_after: int | None = None):
    """Reports, outcome and weights of a trial, perhaps killed once; timings are left out."""
    list(prepare(config, dirs))
    reports = []
    if kill_after is not None:
        doomed = run(config, dirs)
        reports = [next(doomed) for _ in range(kill_after)]
        doomed.close()
        torch.manual_seed(999)  # another process would not know this one's chance
    going = run(config, dirs)
    while True:
        try:
            reports.append(next(going))
        except StopIteration as stop:
            (outcome,) = stop.value
            break
    timeless_reports = [replace(report, audio_seconds_per_second=None) for report in reports]
    outcome = replace(outcome, latency_ms=0.0, latency_busy=None, real_time_factor=0.0)
    return timeless_reports, outcome, bundle.load(dirs.trial / "model").model.state_dict()


def check_equal(one, other):
    assert one[:2] == other[:2]
    for name, tensor in one[2].items():
        assert torch.equal(tensor, other[2][name])


def test_garbage_for_transcripts_gives_the_trial_of_no_transcripts(teacher, speech, tmp_path):
    without = shutil.copytree(speech, tmp_path / "without")
    garbled = shutil.copytree(speech, tmp_path / "garbled")
    for file in (p for p in without.glob("train*/*/*/*.trans.txt")):
        file.unlink()
    for file in (p for p in garbled.glob("train*/*/*/*.trans.txt")):
        file.write_bytes(b"\xff\xfe this is no transcript")

    dirs = place_in(tmp_path / "one")
    one = run_single(wordless(teacher, without), dirs)
    other = run_single(wordless(teacher, garbled), place_in(tmp_path / "other"))

    check_equal(one, other)
    assert one[1].wer_against == "transcripts"
    assert open_speech(dirs.features).pseudo_labeled == {"train"}


def test_training_is_told_what_the_teacher_hears(teacher, speech, tmp_path):
    dirs = place_in(tmp_path)
    list(prepare(wordless(teacher, speech), dirs))

    store = open_speech(dirs.features).train

    (split,) = speech.glob("train*")
    files = [split / name for name in store.ids]
    transcripts = [text for _, text in transcribe(bundle.load(teacher), files)]
    assert store.texts == transcripts
    assert len(set(transcripts)) > 2


def test_a_killed_and_resumed_trial_gives_the_same_numbers_as_an_untouched_one(
    teacher, speech, tmp_path
):
    config = wordless(teacher, speech)
    untouched = run_single(config, place_in(tmp_path, "untouched"))

    check_equal(run_single(config, place_in(tmp_path, "killed"), kill_after=4), untouched)


def test_distillation_alone_needs_no_words_whosever_they_are(teacher, speech, tmp_path):
    only = {"distillation": {"task_weight": 0.0}}
    by_teacher = run_single(wordless(teacher, speech, **only), place_in(tmp_path / "heard"))
    by_people = config_of(corpus={"name": str(speech)}, teacher={"bundle": str(teacher)}, **only)

    check_losses_agree(by_teacher, run_single(by_people, place_in(tmp_path / "said")))


def check_losses_agree(one, other):
    """But for the task, which is told and not learned from; batches are drawn by the same order."""
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine.losses["logit"] == theirs.losses["logit"]
        assert mine.losses["layer"] == theirs.losses["layer"]


def test_against_its_own_text_a_teacher_is_faultless(teacher, speech, tmp_path):
    bare = shutil.copytree(speech, tmp_path / "bare")
    for file in bare.glob("*/*/*/*.trans.txt"):
        file.unlink()
    config = wordless(teacher, bare, pruning={"method": "random", "steps": 0}, tuning={"steps": 0})
    dirs = place_in(tmp_path)

    _, outcome, _ = run_single(config, dirs)

    assert (outcome.wer_against, outcome.test_wer_against) == ("teacher", "teacher")
    speech_of = open_speech(dirs.features)
    teacher_bundle = bundle.load(teacher)
    for store in (speech_of.dev, speech_of.test):
        assert (
            decode_store(teacher_bundle.model, store, teacher_bundle.tokenizer, torch.device("cpu"))
            == store.texts
        )
