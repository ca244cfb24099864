"""The output of `evaluate`: word error rates, errors, and the comparison of two models."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.config.base import ConfigError
from core.evaluation.wer import confusions, paired_difference, wer_report
from core.inference.recognizer import SplitTranscripts
from core.safe_text import csv_cell
from sweep.cli.output.wer import wer_line, wer_values
from sweep.cli.transcribe_files import write_text

CONFIDENCE = 0.95
KINDS = ("substitutions", "deletions", "insertions")


def evaluation_values(results: Sequence[SplitTranscripts], num_confusions: int) -> dict[str, Any]:
    """Returns the error rates of one model, or of two with their difference, for scripts.

    Raises:
        ValueError: if the two models were evaluated on different utterances.
    """
    reports = [wer_report(result.references, result.hypotheses) for result in results]
    values, *others = [
        {
            **wer_values(report),
            **{kind: getattr(report, kind) for kind in KINDS},
            "confusions": [
                asdict(confusion)
                for confusion in confusions(result.references, result.hypotheses)[:num_confusions]
            ],
        }
        for result, report in zip(results, reports, strict=True)
    ]
    if not others:
        return values
    ours, theirs = reports
    paired = paired_difference(ours.errors, theirs.errors, ours.words, confidence=CONFIDENCE)
    difference = {**asdict(paired), "is_significant": paired.is_significant}
    return {**values, "against": others[0], "difference": difference}


def evaluation_lines(values: Mapping[str, Any]) -> list[str]:
    """Returns the values of `evaluation_values` as lines of text."""
    lines = [wer_line(values), *_error_lines(values)]
    if "against" not in values:
        return lines
    difference = values["difference"]
    interval = f"({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f})"
    verdict = (
        f"p = {difference['p_value']:.3g}"
        if difference["is_significant"]
        else f"not significant at {100 * CONFIDENCE:.0f} % (p = {difference['p_value']:.3g})"
    )
    return [
        *lines,
        f"against: {wer_line(values['against'])}",
        *_error_lines(values["against"]),
        f"difference {100 * difference['difference']:+.2f} % {interval}, {verdict}",
    ]


def check_details(file: Path) -> None:
    """Refuses a file whose suffix names no format, before any model runs.

    Raises:
        ConfigError: if the suffix is neither .json nor .csv.
    """
    if file.suffix not in {".json", ".csv"}:
        raise ConfigError(f"`--details` must end in .json or .csv, but is `{file}` instead")


def detail_rows(results: Sequence[SplitTranscripts]) -> list[dict[str, Any]]:
    """Returns one row per utterance; columns of a second model begin with `against_`."""
    columns: dict[str, Sequence[Any]] = {"id": results[0].ids, "reference": results[0].references}
    for prefix, result in zip(("", "against_"), results, strict=False):
        # The rows need no interval, so one bootstrap sample instead of thousands.
        report = wer_report(result.references, result.hypotheses, samples=1)
        # Both models have the same references, so their words are one column.
        columns.setdefault("words", report.words)
        columns |= {f"{prefix}hypothesis": result.hypotheses, f"{prefix}errors": report.errors}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_details(results: Sequence[SplitTranscripts], file: Path) -> None:
    """Writes one row per utterance as JSON or CSV, by the suffix of the file."""
    rows = detail_rows(results)
    if file.suffix == ".json":
        write_text(json.dumps(rows, indent=1) + "\n", file)
        return
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    write_text(text.getvalue(), file)


def _error_lines(values: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{values[kind]} {kind}" for kind in KINDS)
    lines = [
        f"  {confusion['count']} x {confusion['reference'] or '(nothing)'}"
        f" recognized as {confusion['hypothesis'] or '(nothing)'}"
        for confusion in values["confusions"]
    ]
    return [f"errors: {counts}", *lines]
