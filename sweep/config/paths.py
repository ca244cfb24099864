"""Paths in a search space, made absolute, and corpora that must be there."""

import difflib
from pathlib import Path
from typing import Any

from core.config.base import ConfigError
from core.config.trial import NO_SPEECH, CorpusConfig

KNOWN_CORPORA = ("demo", "librispeech")


def check_corpus(corpus: CorpusConfig) -> None:
    """Refuse at once a corpus that is not there: workers would find out much later.

    Raises:
        ConfigError: if its name is neither known nor a folder or file.
    """
    if corpus.name in (*KNOWN_CORPORA, NO_SPEECH) or Path(corpus.name).exists():
        return
    near = difflib.get_close_matches(Path(corpus.name).name, KNOWN_CORPORA, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ConfigError(
        f"`corpus.name` must be {', '.join(KNOWN_CORPORA)}, a folder or a manifest,"
        f" but `{corpus.name}` is not there{hint}"
    )


def absolute_corpus(corpus: dict[str, Any]) -> dict[str, Any]:
    """The corpus's table with its paths made whole."""
    name, root = corpus.get("name"), corpus.get("root")
    table = dict(corpus)
    if isinstance(root, str) and root:
        table["root"] = _absolute(root)
    # "demo" stays, "speech/train.jsonl" becomes "/home/me/speech/train.jsonl".
    if isinstance(name, str) and name not in (*KNOWN_CORPORA, NO_SPEECH):
        table["name"] = _absolute(name)
    return table


def with_absolute_paths(table: dict[str, Any]) -> dict[str, Any]:
    """Workers start elsewhere: relative paths are the caller's, and are made whole here."""
    trial = table.get("trial")
    if not isinstance(trial, dict):
        return table
    trial = dict(trial)
    if isinstance(trial.get("corpus"), dict):
        trial["corpus"] = absolute_corpus(trial["corpus"])
    # Values of another type are left as they are: the configuration refuses them by name.
    for section, key in (("teacher", "bundle"), ("pruning", "latency_table")):
        values = trial.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str) and values[key]:
            trial[section] = {**values, key: _absolute(values[key])}
    return {**table, "trial": trial}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())
