"""What can be done where speech has no transcripts, or where there is none at all: in words. Pure.

Which methods need no speech, core/one_shot/by_weights.py finds out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.config.base import ConfigError
from core.config.trial import NO_SPEECH, CorpusConfig
from core.report import Outcome, Reference, Report

AGAINST_TEACHER = "WER against the teacher"
"""What stands for `WER` wherever errors are counted against what the teacher heard."""


def methods_line(corpus: CorpusConfig, *, without_speech: Sequence[str]) -> str | None:
    """Name the methods that a corpus permits; None if it permits all."""
    if corpus.name == NO_SPEECH:
        return (
            f"without speech: {', '.join(without_speech)} remain, by `conformer-sweep prune`,"
            " neither repaired nor tuned, and no WER is measured"
        )
    if corpus.labels == "teacher":
        return (
            "without transcripts: every method remains, and learns what the teacher hears;"
            " `distillation.task_weight = 0` learns from its outputs and layers alone"
        )
    return None


def refuse_methods(names: Iterable[str], *, without_speech: Sequence[str]) -> None:
    """Refuse methods that cannot run without speech.

    Raises:
        ConfigError: naming the first of them, and the methods that can.
    """
    for name in names:
        if name not in without_speech:
            raise ConfigError(
                f"`pruning.method` must be one of {', '.join(without_speech)} without speech,"
                f" but is `{name}` instead"
            )


def refuse_sweep(corpus: CorpusConfig) -> None:
    """A sweep searches by WER.

    Raises:
        ConfigError: if there is no speech to measure it on.
    """
    if corpus.name == NO_SPEECH:
        raise ConfigError(
            f"`corpus.name` must be speech to measure WER on, but is `{NO_SPEECH}` instead; without"
            " speech, `conformer-sweep prune BUNDLE --out FOLDER` prunes by the weights alone"
        )


def wer_name(judged: Iterable[Outcome | Report]) -> str:
    """Return the name of a sweep's word error rate."""
    is_own = any(label.wer_against == "teacher" for label in judged)
    return AGAINST_TEACHER if is_own else "WER"


def against_note(outcomes: Iterable[Outcome]) -> str | None:
    """Return the note below a table of WER against a teacher; None for plain WER."""
    return note_of((outcome.wer_against, outcome.test_wer_against) for outcome in outcomes)


def note_of(kinds: Iterable[tuple[Reference, Reference]]) -> str | None:
    """The same by what each rate on dev, and on test, is against."""
    # Of (dev, test) = ("teacher", "transcripts") in any row the note says "On dev", of ("teacher",
    # "teacher") "On dev and test".
    rows = list(kinds)
    dev, test = any(row[0] == "teacher" for row in rows), any(row[1] == "teacher" for row in rows)
    where = {(True, True): "dev and test", (True, False): "dev", (False, True): "test"}
    if not (dev or test):
        return None
    return f"On {where[dev, test]} it is the {AGAINST_TEACHER}: there are no transcripts."


def pruning_line(values: Mapping[str, Any]) -> str:
    """Describe a model that was pruned without speech."""
    return (
        f"{values['model']}: {values['params']:,} parameters, {values['gflops']:.3g} GFLOPs an"
        f" utterance, {100 * values['params_sparsity']:.1f} % of parameters and"
        f" {100 * values['flops_sparsity']:.1f} % of FLOPs removed; WER not measured"
    )
