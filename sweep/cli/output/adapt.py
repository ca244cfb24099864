"""What `adapt` is told on the command line and in a file, and what it says of its end."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.base import ConfigError
from core.outside_files import read_text
from core.report import Report
from sweep.cli.corpus_option import corpus_config

if TYPE_CHECKING:  # torch takes seconds that a misspelt option should not
    from core.adaptation import AdaptationConfig

STEPS = 600
"""Unless told otherwise; both stages together."""


def adaptation_config(
    corpus: str,
    memory: str,
    *,
    root: str = "",
    steps: int | None = None,
    memory_share: float | None = None,
    file: Path | None = None,
) -> "AdaptationConfig":
    """What a file says, and over it what the command line does.

    Raises:
        ConfigError: naming the file, the key or the corpus that cannot be.
    """
    from core.adaptation import AdaptationConfig  # torch
    from core.runtime import num_cores

    table = _table(file) if file is not None else {}
    trial = _section(table, "trial", file)
    tuning, new = _section(trial, "tuning", file), _section(trial, "corpus", file)
    tuning = {"steps": STEPS, **tuning, **({} if steps is None else {"steps": steps})}
    runtime = {"threads": num_cores(), **_section(trial, "runtime", file)}
    corpora = {"corpus": {**new, **_named(corpus, root)}}
    table["trial"] = {**trial, **corpora, "tuning": tuning, "runtime": runtime}
    if memory:
        table["memory"] = {**_section(table, "memory", file), **_named(memory, root)}
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
    """How far it has come."""
    heard = [
        f"{100 * wer:.2f} % on {kind} speech"
        for kind, wer in (("new", report.wer), ("old", report.old_wer))
        if wer is not None
    ]
    rates = f": WER {', '.join(heard)}" if heard else ""
    return f"{report.stage} {report.step}/{report.total_steps}{rates}"


def adapted_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What came of it, to be read."""
    for kind in ("new", "old"):
        if f"{kind}_before" in found:
            before, after = found[f"{kind}_before"], found[f"{kind}_after"]
            yield f"{kind} speech: WER {_rate(before)} before, {_rate(after)} after"
    yield f"{found['params']:,} parameters, {found['new_tokens']} tokens more than before"


def _rate(values: Mapping[str, float]) -> str:
    wer, low, high = (100 * values[key] for key in ("wer", "wer_low", "wer_high"))
    return f"{wer:.2f} % ({low:.2f} to {high:.2f})"


def _named(name: str, root: str) -> dict[str, Any]:
    """A corpus of the command line, checked to be there, its paths whole."""
    found = corpus_config(name, root)
    return {"name": found.name, "root": found.root}


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
