"""What can be listened to is gathered from a real sweep's folder, or it is said why it cannot."""

import shutil

import pytest

from core import bundle
from core.data.audio import audio_files
from core.data.corpus import open_split
from core.inference.recognizer import transcribe
from core.runtime import TrialDirs
from core.trial import run
from sweep.config.sweep import load
from sweep.pareto.front import Point
from sweep.report.audio_samples import collect_audio_samples

pytestmark = pytest.mark.slow


@pytest.fixture
def swept(tiny_shared, tiny_space, tmp_path):
    """The folder of a sweep of one trial, its corpus, and its point."""
    folder = shutil.copytree(tiny_shared, tmp_path / "swept")
    config = load(str(tiny_space)).space.base
    place = TrialDirs(
        teacher=folder / "teacher", features=folder / "features", trial=folder / "trials" / "0000"
    )
    going = run(config, place)
    while True:
        try:
            next(going)
        except StopIteration as stop:
            return folder, config.corpus, [Point(trial=0, outcome=0, result=stop.value[0])]


def test_what_is_heard_is_what_transcribe_says(swept):
    folder, corpus, points = swept

    found = collect_audio_samples(folder, corpus, points, teacher_wer=0.5)

    files = {c.id: audio_files(c)[0] for c in open_split(corpus, folder / "features", "dev")}
    assert found.unavailable_reason == ""
    assert {each.id for each in found.utterances} <= set(files)
    for model, texts in (
        ("teacher/model", [each.teacher for each in found.utterances]),
        ("trials/0000/model", [each.pruned[0] for each in found.utterances]),
    ):
        heard = transcribe(bundle.load(folder / model), [files[e.id] for e in found.utterances])
        assert [text for _, text in heard] == texts


def test_speech_and_models_that_are_gone_are_said_to_be(swept, tmp_path):
    folder, corpus, points = swept
    gone = corpus.model_copy(update={"name": str(tmp_path / "gone")})

    assert (
        "gone` is no folder instead"
        in collect_audio_samples(folder, gone, points, teacher_wer=0.5).unavailable_reason
    )
    shutil.rmtree(folder / "trials")
    assert (
        "no model of the front"
        in collect_audio_samples(folder, corpus, points, teacher_wer=0.5).unavailable_reason
    )
