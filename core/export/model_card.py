"""The model card of an exported recognizer, as Markdown: measurements, lineage and loading.

It states what the bundle's report states, and leaves out what the report does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from core.features.spec import FeatureKind
from core.safe_text import markdown_text

FEATURES: dict[FeatureKind, str] = {
    "kaldi": (
        "It reads {mels} log-mel filter banks of 16 kHz mono speech, as Kaldi"
        " computes them: samples in"
        " [-1, 1], frames of 25 ms every 10 ms (`snip_edges` false), DC removed, pre-emphasis 0.97,"
        " Povey window, no dither, 20 to 7600 Hz, natural logarithm."
    ),
    "nemo": (
        "It reads {mels} log-mel filter banks of 16 kHz mono speech, as NeMo"
        " computes them: samples in"
        " [-1, 1], windows of 25 ms every 10 ms, centered, pre-emphasis over the whole signal,"
        " Slaney's mel scale, natural logarithm."
    ),
    "sherpa": (
        "It reads {mels} log-mel filter banks of 16 kHz mono speech, as sherpa-onnx"
        " computes them for"
        " NeMo's models: samples in [-1, 1], frames of 25 ms every 10 ms (`snip_edges` false), each"
        " emphasised by 0.97, periodic Hann window, Slaney's mel scale, natural logarithm."
    ),
    "sherpa_transducer": (
        "It reads {mels} log-mel filter banks of 16 kHz mono speech, as sherpa-onnx"
        " computes them for"
        " NeMo's transducers: samples in [-1, 1], frames of 25 ms every 10 ms (`snip_edges` false),"
        " each emphasised by 0.97, Povey window, Slaney's mel scale up to 7600 Hz, natural"
        " logarithm."
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The contents of a card besides the report."""

    name: str
    to: str
    params: int
    source: str
    """Digest of the bundle."""
    tokenizer: str
    """Digest of the tokenizer."""
    files: Mapping[str, str]
    """The purpose of each file, by name."""
    verified: Sequence[str]
    """One sentence per check."""
    loading: str
    """Python code that loads the model."""
    notes: Sequence[str]
    """Lines on features, tokens and opset."""


def card_text(exported: Exported, report: Mapping[str, Any]) -> str:
    """Return the text of the card."""
    sections = {
        "Measured": _measurements(exported, report),
        "Where it comes from": _lineage(exported, report),
        "Input and output": exported.notes,
        "Files": [f"- `{name}`: {purpose}" for name, purpose in exported.files.items()],
        "How to load it": ["```python", *exported.loading.strip().splitlines(), "```"],
        "Verified": [f"- {markdown_text(line)}" for line in exported.verified],
    }
    lines = [f"# {markdown_text(exported.name)}", ""]
    lines += [f"A Conformer-CTC recognizer, exported to {exported.to}."]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _measurements(exported: Exported, report: Mapping[str, Any]) -> list[str]:
    rows = [("parameters", f"{exported.params:,}"), *_outcome(report), *_adaptation(report)]
    lines = [
        "| | |",
        "| --- | ---: |",
        *(f"| {markdown_text(name)} | {value} |" for name, value in rows),
    ]
    return lines if len(rows) > 1 else [*lines, "", "Its report has no measurements."]


def _outcome(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the measurements of a trial's model or a teacher."""
    # Keys of reports are `wer`, `wer_low`, `wer_high` for dev, and the same after `test_` for test.
    outcome = _table(report, "outcome")
    for split, prefix in (("dev", "wer"), ("test", "test_wer")):
        yield from _wer(
            f"WER on {split}", *(outcome.get(f"{prefix}{e}") for e in ("", "_low", "_high"))
        )
    seconds = _number(_table(report, "config", "pruning").get("utterance_seconds"))
    length = "" if seconds is None else f" of {seconds:g} s"
    for key, name, form in (
        ("gflops", f"GFLOPs an utterance{length}, 1 multiply-add = 2", "{:.4g}"),
        ("latency_ms", f"ms an utterance{length} at batch 1, where it was trained", "{:.4g}"),
        ("real_time_factor", "seconds of computing a second of speech there", "{:.3g}"),
        ("params_sparsity", "removed of the parameters", "{:.1%}"),
        ("flops_sparsity", "removed of the FLOPs", "{:.1%}"),
        ("latency_sparsity", "removed of the latency, by table", "{:.1%}"),
    ):
        value = _number(outcome.get(key))
        if value is not None:
            yield name, form.format(value)
    target, realised = (
        _number(outcome.get("target_sparsity")),
        _number(outcome.get("realised_sparsity")),
    )
    if target and realised is not None:
        yield (
            f"target, removed of {outcome.get('resource')}",
            f"{target:.1%}, reached {realised:.1%}",
        )


def _adaptation(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the measurements of a model that was adapted to new words."""
    for kind in ("new", "old"):
        for when in ("before", "after"):
            measured = _table(report, "adaptation", kind, when)
            wer = (measured.get(key) for key in ("wer", "low", "high"))
            yield from _wer(f"WER on {kind} words, {when} adapting", *wer)


def _wer(name: str, *ends: Any) -> Iterator[tuple[str, str]]:
    wer, low, high = map(_number, ends)
    if wer is None:
        return
    interval = (
        "" if low is None or high is None else f" (95 %: {100 * low:.2f} to {100 * high:.2f})"
    )
    yield name, f"{100 * wer:.2f} %{interval}"


def _lineage(exported: Exported, report: Mapping[str, Any]) -> list[str]:
    config, corpus = _table(report, "config"), _table(report, "config", "corpus")
    teacher, outcome = _table(report, "config", "teacher"), _table(report, "outcome")
    facts = {
        "method": outcome.get("method"),
        "optimizer steps": outcome.get("steps"),
        "seed": config.get("seed"),
        "corpus": PurePath(str(corpus["name"])).name if corpus.get("name") else None,
        "tokens": corpus.get("tokens"),
        "teacher": _teacher(teacher),
    }
    lines = [f"- {name}: {_plain(value)}" for name, value in facts.items() if value is not None]
    return [
        *lines,
        f"- bundle (SHA-256 of its checksums): `{exported.source}`",
        f"- tokenizer (SHA-256): `{exported.tokenizer}`",
    ]


def _teacher(config: Mapping[str, Any]) -> str | None:
    if config.get("bundle"):
        return f"the bundle {PurePath(str(config['bundle'])).name}"
    steps = _number(config.get("steps"))
    return None if steps is None else f"trained for {steps:g} steps"


def _table(report: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a nested table of a report, or an empty one: the report may hold anything."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    # True is an int in Python, but no measurement.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def _plain(value: Any) -> str:
    """Return a value as one short line without Markdown: the report may hold anything."""
    return markdown_text(str(value)[:200])
