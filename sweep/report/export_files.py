"""The front's files and the listening page, written where a person wants them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from core.config.base import ConfigError
from sweep.pareto.front import Point
from sweep.report.front_files import teacher_wer, write_front
from sweep.snapshot import SweepSnapshot, fetch_model

if TYPE_CHECKING:  # jiwer and torch take seconds that a picture should not
    from sweep.report.audio_page import AudioComparison


def write_copies(seen: SweepSnapshot, targets: Mapping[str, Path]) -> None:
    """Draw the front now, and put the kinds wanted where they are wanted."""
    if not targets:
        return
    audio = collect_audio(seen, seen.front) if "html" in targets else None
    with TemporaryDirectory() as scratch:
        files = write_front(
            seen.records,
            Path(scratch),
            title=seen.config.sweep.name,
            teacher_wer=teacher_wer(seen.folder),
            audio=audio,
        )
        for kind, path in targets.items():
            shutil.copyfile(getattr(files, kind), path)


def write_listening(seen: SweepSnapshot, file: Path, *, trial: int | None) -> "AudioComparison":
    """A page to listen by: of one trial's outcomes, or of the front.

    Raises:
        ConfigError: if there is no such trial, or it has no outcome.
    """
    from sweep.report.audio_page import page  # noqa: PLC0415

    points = list(seen.front)
    if trial is not None:
        seen.record(trial)
        points = [point for point in seen.points if point.trial == trial]
    if not points:
        which = "a trial of the sweep" if trial is None else f"`--trial {trial}`"
        raise ConfigError(f"{which} must have finished to be listened to, but has not.")
    audio = collect_audio(seen, points)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(audio, title=seen.config.sweep.name), encoding="utf-8")
    return audio


def collect_audio(seen: SweepSnapshot, points: list[Point]) -> "AudioComparison":
    """Collect audio samples and transcripts of some points."""
    from sweep.report.audio_samples import collect_audio_samples as heard  # noqa: PLC0415

    for point in points:
        fetch_model(seen.folder, f"trials/{point.trial:04}/{point.result.model}")
    corpus = seen.config.space.base.corpus
    return heard(seen.folder, corpus, points, teacher_wer=teacher_wer(seen.folder))
