"""Gathers what can be listened to: speech of dev, and what teacher and front points hear in it.

The features of a sweep have no sound: that is read from the corpus, which may be gone by then, or
lie on another machine. Then it is said so, and everything else goes on.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from core import bundle
from core.bundle import Bundle, BundleError
from core.config.trial import CorpusConfig
from core.data.audio import encode_flac, read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_split
from core.data.prepare import open_speech
from core.inference.recognizer import transcribe_waveform
from sweep.pareto.front import Point
from sweep.report.audio_page import (
    MOST_MODELS,
    AudioComparison,
    ComparedModel,
    Utterance,
    evenly,
    select_utterances,
)
from sweep.wer_labels import wer_name

CANDIDATES = 60
"""Utterances that all models hear, to choose from."""
LONGEST_SECONDS = 20.0
"""Longer ones are passed over: the page is to stay small."""


def collect_audio_samples(
    folder: Path, corpus: CorpusConfig, points: Sequence[Point], *, teacher_wer: float | None
) -> AudioComparison:
    """Collect the samples of these points, or the reason why there are none.

    Args:
        folder: the sweep's.
        corpus: its speech.
        points: of its front.
        teacher_wer: on dev, if known.
    """
    shown = [point for point in evenly(points, MOST_MODELS) if bundle.is_whole(_of(folder, point))]
    if not shown:
        return AudioComparison(unavailable_reason="no model of the front is on this machine.")
    try:
        models = [folder / "teacher" / "model", *(_of(folder, point) for point in shown)]
        candidates = _candidates(folder, corpus, models)
    except (CorpusError, BundleError, OSError) as error:
        return AudioComparison(unavailable_reason=" ".join(str(error).split()))
    return AudioComparison(
        models=tuple(
            ComparedModel(
                name=point.name, wer=point.wer, flops_sparsity=point.result.flops_sparsity
            )
            for point in shown
        ),
        utterances=tuple(select_utterances(candidates)),
        teacher_wer=teacher_wer,
        wer_name=wer_name(point.result for point in shown),
    )


def _of(folder: Path, point: Point) -> Path:
    return folder / "trials" / f"{point.trial:04}" / point.result.model


def _candidates(folder: Path, corpus: CorpusConfig, models: Sequence[Path]) -> list[Utterance]:
    """Spread over dev; each utterance is heard alone, as `transcribe` hears a file.

    Args:
        folder: the sweep's.
        corpus: its speech.
        models: the teacher's bundle, then the others'; one at a time is in memory.

    Raises:
        BundleError: if a model is damaged.
        CorpusError: if the speech is not here any more, or is another.
    """
    store = open_speech(folder / "features").dev
    references = dict(zip(store.ids, store.texts, strict=True))
    # `cut.id in references` below: the corpus may have grown since, and a new utterance has no
    # features of this sweep and was not evaluated.
    quiet = corpus.model_copy(update={"allow": []})  # to look at a sweep runs nothing
    cuts = [
        cut
        for cut in open_split(quiet, folder / "features", "dev")
        if cut.id in references and cut.duration <= LONGEST_SECONDS
    ]
    if not cuts:
        raise CorpusError(
            f"`{corpus.name}` must have the dev speech that the sweep was judged on, at most"
            f" {LONGEST_SECONDS:g} s an utterance, but has none of it instead."
        )
    cuts = evenly(cuts, CANDIDATES)
    waveforms = [read_cut(cut) for cut in cuts]
    # Models outside, utterances inside: each model is loaded once and freed before the next.
    transcripts = [_heard_by(bundle.load(model), waveforms) for model in models]
    return [
        Utterance(
            id=cut.id,
            flac=encode_flac(waveform),
            seconds=cut.duration,
            reference=references[cut.id],
            teacher=teacher,
            pruned=tuple(pruned),
        )
        for cut, waveform, teacher, *pruned in zip(cuts, waveforms, *transcripts, strict=True)
    ]


def _heard_by(model: Bundle, waveforms: Sequence[Float[Tensor, " samples"]]) -> list[str]:
    return [transcribe_waveform(model, waveform) for waveform in waveforms]
