"""Settings of `adapt` from its options and its file, and the text of its results."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.base import ConfigError
from core.outside_files import read_text
from core.report import Report
from sweep.cli.corpus_option import corpus_config

if TYPE_CHECKING:  # torch's import takes seconds
    from core.adaptation import AdaptationConfig

STEPS = 600
"""Default number of optimizer steps, both stages together."""


def adaptation_config(
    corpus: str,
    memory: str,
    *,
    root: str = "",
    steps: int | None = None,
    memory_share: float | None = None,
    file: Path | None = None,
) -> "AdaptationConfig":
    """Returns the settings of a file, overridden by those of the command line.

    Raises:
        ConfigError: if the file, a key or the corpus is invalid; the message names it.
    """
    from core.adaptation import AdaptationConfig  # torch
    from core.runtime import num_cores

    table = _table(file) if file is not None else {}
    trial = _section(table, "trial", file)
    tuning, new = _section(trial, "tuning", file), _section(trial, "corpus", file)
    # The later wins: the default, the file, the command line.
    tuning = {"steps": STEPS, **tuning, **({} if steps is None else {"steps": steps})}
    runtime = {"threads": num_cores(), **_section(trial, "runtime", file)}
    corpora = {"corpus": {**new, **_corpus_values(corpus, root)}}
    table["trial"] = {**trial, **corpora, "tuning": tuning, "runtime": runtime}
    if memory:
        table["memory"] = {**_section(table, "memory", file), **_corpus_values(memory, root)}
    if memory_share is not None:
        table["memory_share"] = memory_share
    try:
        return AdaptationConfig.parse(table)
    except ConfigError as error:
        if file is None:
            raise
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"{file}: {line}" for line in lines)) from None


def report_line(report: Report) -> str:
    """Returns one line with the stage, the step and the word error rates."""
    rates = [
        f"{100 * wer:.2f} % on {kind} speech"
        for kind, wer in (("new", report.wer), ("old", report.old_wer))
        if wer is not None
    ]
    text = f": WER {', '.join(rates)}" if rates else ""
    return f"{report.stage} {report.step}/{report.total_steps}{text}"


def adaptation_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields the results as lines of text."""
    for kind in ("new", "old"):
        if f"{kind}_before" in summary:
            before, after = summary[f"{kind}_before"], summary[f"{kind}_after"]
            yield f"{kind} speech: WER {_rate(before)} before, {_rate(after)} after"
    yield f"{summary['params']:,} parameters, {summary['new_tokens']} tokens more than before"


def _rate(values: Mapping[str, float]) -> str:
    wer, low, high = (100 * values[key] for key in ("wer", "wer_low", "wer_high"))
    return f"{wer:.2f} % ({low:.2f} to {high:.2f})"


def _corpus_values(name: str, root: str) -> dict[str, Any]:
    """Returns a corpus of the command line, checked, with absolute paths."""
    config = corpus_config(name, root)
    return {"name": config.name, "root": config.root}


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: must be TOML, but: {error}") from None


def _section(table: Mapping[str, Any], name: str, file: Path | None) -> dict[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{file}: `{name}` must be a table, but is {section!r} instead.")
    return section
