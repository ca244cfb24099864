"""Reports of a running trial, outcomes of a finished one, and keys of a bundle's `report.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

KEPT_UNITS = "kept_units"
"""Key of a bundle's `report.json`: the units of the dense model that remain, by axis."""
LONGEST_TRAINED = "longest_trained_seconds"
"""Key of a bundle's `report.json`: seconds of the longest utterance the model was trained on."""
# `model` and `model.1-700` match; `../other`, `a/b` and the empty name do not.
_FOLDER = re.compile(r"\w[\w.-]{0,99}")

LATENCY_FIELDS = (
    "latency_ms",
    "latency_busy",
    "latency_idle",
    "real_time_factor",
    "speedup",
    "speedup_low",
    "speedup_high",
)
"""Fields of an outcome that are measured again once no trial of a sweep runs."""

Stage = Literal["speech", "teacher", "search", "tune", "measure"]
Reference = Literal["transcripts", "teacher"]
"""The reference of a word error rate: human transcripts, or the teacher's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One evaluation of a running trial; its checkpoint was on disk before this was given out."""

    stage: Stage
    step: int
    """Optimizer steps done, all stages of this trial counted; of `speech`, parts made ready."""
    total_steps: int
    """Optimizer steps the trial will have done at its end."""
    wer: float | None = None
    """Word error rate on dev as a fraction, of the model as it would be extracted now."""
    wer_against: Reference = "transcripts"
    old_wer: float | None = None
    """Of adapting: the same on speech of the kind that was known before."""
    gflops: float | None = None
    """Of that model, at the stated utterance length."""
    expected_sparsity: float | None = None
    """Share of the resource that the gates' probabilities remove."""
    realised_sparsity: float | None = None
    """Share of the resource that the extracted model does without."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Means since the last report, by name; multipliers too."""
    audio_seconds_per_second: float | None = None
    """Speech trained on a second of wall time: the one field that two equal runs differ in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a finished trial; smaller is better in wer, gflops, params and latency_ms."""

    method: str
    resource: str
    """What the sparsities count: flops, params or latency."""
    target_sparsity: float
    realised_sparsity: float
    wer: float
    """Word error rate on dev as a fraction, so 0.05 is 5 %."""
    wer_low: float
    wer_high: float
    """Ends of the bootstrap interval over utterances."""
    test_wer: float | None
    test_wer_low: float | None
    test_wer_high: float | None
    """The same on test; None where the corpus has no test split."""
    gflops: float
    """1 multiply-add = 2 FLOPs; one utterance of the stated length."""
    params: int
    flops_sparsity: float
    params_sparsity: float
    """Shares removed of the unpruned model's FLOPs and parameters."""
    latency_sparsity: float | None = None
    """The same of its latency, by the table that a trial went by; None where it had none."""
    latency_ms: float
    """As measured: median of one utterance of the stated length at batch 1."""
    latency_busy: bool | None = None
    """Whether other programs kept the machine busy while it was measured, so that it says little;
    None in records of before that was looked at."""
    latency_idle: bool | None = None
    """Whether it was measured while no trial of the sweep ran, in turns with the unpruned model;
    None before the sweep's end, and in records of before that was done."""
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    """How many times as fast as the unpruned model, so measured: median and quartiles of pairs."""
    real_time_factor: float
    """Seconds of computing a second of speech."""
    steps: int
    """Optimizer steps spent, search and tuning together."""
    model: str
    """The bundle's folder, relative to the trial's."""
    repair: str | None = None
    """How the consumers of removed units were adjusted: a value of `pruning.repair`; None of an
    unpruned model."""
    wer_against: Reference = "transcripts"
    test_wer_against: Reference = "transcripts"

    def __post_init__(self) -> None:
        """Outcomes are read from files, too: a model's folder must not lead out of its trial's.

        Raises:
            ValueError: if it would.
        """
        if not _FOLDER.fullmatch(str(self.model)):
            raise ValueError(
                "`model` must be the name of a folder, such as `model` or `model.1`,"
                f" but is {self.model!r} instead"
            )


def upgrade_format_1(report: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a bundle's `report.json` with today's keys, from one of format 1.

    The file has no version of its own: it is that of the `shape.json` or `features.json` next to
    it. A report with today's keys is returned as it is.
    """
    renamed = {"kept": KEPT_UNITS, "longest_heard": LONGEST_TRAINED}
    return {renamed.get(key, key): value for key, value in report.items()}
