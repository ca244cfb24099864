"""A model card: what is known of an exported recogniser, and how to load it, as Markdown.

It says what the bundle's report says, and nothing where that says nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from core.features.spec import FeatureKind
from core.safe_text import markdown_text

FEATURES: dict[FeatureKind, str] = {
    "kaldi": (
        "It hears 80 log-mel filter banks of 16 kHz mono speech, as Kaldi computes them: samples in"
        " [-1, 1], frames of 25 ms every 10 ms (`snip_edges` false), DC removed, pre-emphasis 0.97,"
        " Povey window, no dither, 20 to 7600 Hz, natural logarithm."
    ),
    "nemo": (
        "It hears 80 log-mel filter banks of 16 kHz mono speech, as NeMo computes them: samples in"
        " [-1, 1], windows of 25 ms every 10 ms, centred, pre-emphasis over the whole signal,"
        " Slaney's mel scale, natural logarithm."
    ),
    "sherpa": (
        "It hears 80 log-mel filter banks of 16 kHz mono speech, as sherpa-onnx computes them for"
        " NeMo's models: samples in [-1, 1], frames of 25 ms every 10 ms (`snip_edges` false), each"
        " emphasised by 0.97, periodic Hann window, Slaney's mel scale, natural logarithm."
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What a card is about, beside its report."""

    name: str
    to: str
    params: int
    source: str
    """Digest of the bundle."""
    tokenizer: str
    """Digest of the tokenizer."""
    files: Mapping[str, str]
    """What each is for, by name."""
    verified: Sequence[str]
    """One sentence each."""
    loading: str
    """Python that loads it."""
    notes: Sequence[str]
    """Such as opset and features."""


def card(exported: Exported, report: Mapping[str, Any]) -> str:
    """The whole text."""
    sections = {
        "Measured": _measured(exported, report),
        "Where it comes from": _lineage(exported, report),
        "What it hears and says": exported.notes,
        "Files": [f"- `{name}`: {purpose}" for name, purpose in exported.files.items()],
        "How to load it": ["```python", *exported.loading.strip().splitlines(), "```"],
        "Verified": [f"- {markdown_text(line)}" for line in exported.verified],
    }
    lines = [f"# {markdown_text(exported.name)}", ""]
    lines += [f"A Conformer-CTC recogniser, exported to {exported.to}."]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _measured(exported: Exported, report: Mapping[str, Any]) -> list[str]:
    rows = [("parameters", f"{exported.params:,}"), *_outcome(report), *_adaptation(report)]
    lines = [
        "| | |",
        "| --- | ---: |",
        *(f"| {markdown_text(name)} | {value} |" for name, value in rows),
    ]
    return lines if len(rows) > 1 else [*lines, "", "Its report says of no measurement."]


def _outcome(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a trial's model, or a teacher."""
    told = _table(report, "outcome")
    for split, prefix in (("dev", "wer"), ("test", "test_wer")):
        yield from _wer(
            f"WER on {split}", *(told.get(f"{prefix}{e}") for e in ("", "_low", "_high"))
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
        value = _number(told.get(key))
        if value is not None:
            yield name, form.format(value)
    target, realised = _number(told.get("target_sparsity")), _number(told.get("realised_sparsity"))
    if target and realised is not None:
        yield f"asked for, of {told.get('resource')}", f"{target:.1%}, got {realised:.1%}"


def _adaptation(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a model that was taught new words."""
    for kind in ("new", "old"):
        for when in ("before", "after"):
            told = _table(report, "adaptation", kind, when)
            wer = (told.get(key) for key in ("wer", "low", "high"))
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
    teacher, told = _table(report, "config", "teacher"), _table(report, "outcome")
    known = {
        "method": told.get("method"),
        "optimizer steps": told.get("steps"),
        "seed": config.get("seed"),
        "corpus": PurePath(str(corpus["name"])).name if corpus.get("name") else None,
        "tokens": corpus.get("tokens"),
        "teacher": _teacher(teacher),
    }
    lines = [f"- {name}: {_plain(value)}" for name, value in known.items() if value is not None]
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
    """What lies so deep in a report, if it is a table: anybody may have written it."""
    found: Any = report
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def _plain(value: Any) -> str:
    """On one line, not for ever, and no Markdown: anybody may have written it."""
    return markdown_text(str(value)[:200])
