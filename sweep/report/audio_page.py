"""The page of audio samples: utterances to play, with the transcripts of teacher and pruned models.

It is one section of HTML with its audio inside, in the page of the front or on a page of its own,
and needs no network. sweep/report/audio_samples.py collects what it shows. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.evaluation.wer import align_words
from sweep.templates import render_html

ItemT = TypeVar("ItemT")

TEMPLATES = Path(__file__).parent / "templates"

SHOWN = 12
"""Utterances on the page."""
DIFFERING = 8
"""Largest number of them in which a pruned model differs from the teacher."""
MOST_MODELS = 12
"""Models on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One utterance with its audio and its transcripts."""

    id: str
    flac: bytes
    seconds: float
    reference: str
    """A transcript, or the text of the teacher where there is none."""
    teacher: str
    pruned: tuple[str, ...]
    """The hypothesis of each pruned model, in the order of the models."""

    @property
    def is_disputed(self) -> bool:
        """Whether a pruned model differs from the teacher."""
        return any(text != self.teacher for text in self.pruned)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedModel:
    """A pruned model whose transcripts are compared with those of its teacher."""

    name: str
    """Name of its outcome: `7`, or `7.2`."""
    wer: float
    """Word error rate on all of dev, as a fraction."""
    flops_sparsity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioComparison:
    """All that the page shows, or the reason why there is nothing."""

    models: tuple[ComparedModel, ...] = ()
    utterances: tuple[Utterance, ...] = ()
    teacher_wer: float | None = None
    wer_name: str = "WER"
    unavailable_reason: str = ""
    """The reason why there are no samples; empty if there are."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the outcomes that have samples."""
        return frozenset(model.name for model in self.models if not self.unavailable_reason)


def evenly(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """Returns `count` items at even distances, with the first and the last, or all if fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def select_utterances(candidates: Sequence[Utterance]) -> list[Utterance]:
    """Returns the utterances of a page in their order: some are disputed, and some are not."""
    disputed = [i for i, candidate in enumerate(candidates) if candidate.is_disputed]
    agreed = [i for i, candidate in enumerate(candidates) if not candidate.is_disputed]
    # 20 disputed and 40 agreed: 8 and 4. 3 disputed: 3 and 9. 20 disputed and 2 agreed: 10 and 2.
    count = max(DIFFERING, SHOWN - len(agreed))
    chosen = evenly(disputed, count)
    chosen += evenly(agreed, SHOWN - len(chosen))
    return [candidates[index] for index in sorted(chosen)]


def audio_values(audio: AudioComparison) -> dict[str, Any]:
    """Returns the values of the template `audio.html.j2`, which is part of two pages."""
    return {"audio": audio, "align": align_words}


def block(audio: AudioComparison) -> str:
    """Returns the samples as a section of HTML, with their style and their script."""
    return render_html(TEMPLATES, "audio.html.j2", audio_values(audio))


def page(audio: AudioComparison, *, title: str) -> str:
    """Returns the samples as a page of their own."""
    values = {"policy": POLICY, "title": title, **audio_values(audio)}
    return render_html(TEMPLATES, "audio_page.html.j2", values)


# The policy also names the media that may be played: those of the page itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; media-src data:"
)
