"""What `evaluate` tells: word error rates, which errors, and one model beside another."""

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
from sweep.cli.transcribe_files import write

CONFIDENCE = 0.95
KINDS = ("substitutions", "deletions", "insertions")


def evaluation_values(found: Sequence[SplitTranscripts], num_confusions: int) -> dict[str, Any]:
    """Of a model, and if there are two how it stands beside the second, for scripts.

    Raises:
        ValueError: if the two did not hear the same.
    """
    reports = [wer_report(heard.references, heard.hypotheses) for heard in found]
    values, *others = [
        {
            **wer_values(report),
            **{kind: getattr(report, kind) for kind in KINDS},
            "confusions": [
                asdict(each)
                for each in confusions(heard.references, heard.hypotheses)[:num_confusions]
            ],
        }
        for heard, report in zip(found, reports, strict=True)
    ]
    if not others:
        return values
    ours, theirs = reports
    paired = paired_difference(ours.errors, theirs.errors, ours.words, confidence=CONFIDENCE)
    difference = {**asdict(paired), "is_significant": paired.is_significant}
    return {**values, "against": others[0], "difference": difference}


def evaluation_lines(values: Mapping[str, Any]) -> list[str]:
    """The same, to be read."""
    lines = [wer_line(values), *_error_lines(values)]
    if "against" not in values:
        return lines
    found = values["difference"]
    low, high = 100 * found["low"], 100 * found["high"]
    verdict = (
        f"p = {found['p_value']:.3g}"
        if found["is_significant"]
        else f"not significant at {100 * CONFIDENCE:.0f} % (p = {found['p_value']:.3g})"
    )
    return [
        *lines,
        f"against: {wer_line(values['against'])}",
        *_error_lines(values["against"]),
        f"difference {100 * found['difference']:+.2f} % ({low:+.2f} to {high:+.2f}), {verdict}",
    ]


def check_details(file: Path) -> None:
    """Refuse a file that says nothing of its format, before anything is heard.

    Raises:
        ConfigError: naming it.
    """
    if file.suffix not in {".json", ".csv"}:
        raise ConfigError(f"`--details` must end in .json or .csv, but is `{file}` instead")


def detail_rows(found: Sequence[SplitTranscripts]) -> list[dict[str, Any]]:
    """A row an utterance; of two models the second's columns begin with `against_`."""
    columns: dict[str, Sequence[Any]] = {"id": found[0].ids, "reference": found[0].references}
    for prefix, heard in zip(("", "against_"), found, strict=False):
        report = wer_report(heard.references, heard.hypotheses, samples=1)
        columns.setdefault("words", report.words)
        columns |= {f"{prefix}hypothesis": heard.hypotheses, f"{prefix}errors": report.errors}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_details(found: Sequence[SplitTranscripts], file: Path) -> None:
    """The rows as JSON or CSV, by the file's ending."""
    rows = detail_rows(found)
    if file.suffix == ".json":
        write(json.dumps(rows, indent=1) + "\n", file)
        return
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    write(text.getvalue(), file)


def _error_lines(values: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{values[kind]} {kind}" for kind in KINDS)
    told = [
        f"  {confusion['count']} x {confusion['reference'] or '(nothing)'}"
        f" recognized as {confusion['hypothesis'] or '(nothing)'}"
        for confusion in values["confusions"]
    ]
    return [f"errors: {counts}", *told]
