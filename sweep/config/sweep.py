"""Configuration of a sweep: one TOML file, which is refused as a whole if it is not valid."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator, model_validator

from core.config.base import Config, ConfigError
from core.files import atomic_write
from core.outside_files import read_text
from sweep.config import toml_writer
from sweep.config.paths import check_corpus, with_absolute_paths
from sweep.config.space import SearchSpace, without_leaves
from sweep.config.versions import check_version

CONFIG_FILE = "sweep.toml"
ORIGINAL_FILE = "sweep.original.toml"
SHARED_FOLDERS = ("teacher", "features")
"""Of a sweep's directory: what all its trials share, and other sweeps may take along."""

MOST_TRIALS = 1_000_000

SPACES_FOLDER = Path(__file__).parents[2] / "search_spaces"

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL_RULE = re.compile(rf"!?({_LABEL}|in\({_LABEL}(, *{_LABEL})*\))")
"""What Ray takes for the label of a machine."""

Objective = Literal["wer", "gflops", "params", "latency_ms"]
Sampler = Literal["auto", "gp", "tpe", "nsga2", "qmc", "random", "grid"]


class BudgetConfig(Config):
    """The sweep itself: its budget and its objectives."""

    name: str = ""
    """What MLflow calls it; the file's name if left out."""
    trials: int = Field(default=32, ge=1, le=MOST_TRIALS)
    """Trials in all, the fixed first ones included."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of all trials together, after which no new one begins."""
    plateau_trials: int = Field(default=0, ge=0, le=1_000_000)
    """No new trial begins once so many in a row gained too little; 0 is never."""
    plateau_gain: float = Field(default=0.001, gt=0, lt=1)
    """Too little: the hypervolume grew by less than this share of itself over all of them."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Draws the points that are tried; a trial's own seed is `[trial] seed`."""
    objectives: list[Objective] = Field(default=["wer", "gflops"], min_length=1)
    """What is minimised: `wer` and `gflops`, and perhaps a third."""
    max_wer: float | None = Field(default=None, gt=0, le=1)
    """Trials above this WER, a fraction, are worth nothing to the search."""
    max_gflops: float | None = Field(default=None, gt=0)
    """Trials above so many GFLOPs an utterance are worth nothing to the search."""
    max_params: float | None = Field(default=None, gt=0)
    """Trials above so many parameters are worth nothing to the search."""
    max_latency_ms: float | None = Field(default=None, gt=0)
    """Trials above this latency, in milliseconds, are worth nothing to the search."""
    max_sparsity_gap: float | None = Field(default=None, gt=0, le=1)
    """Trials that miss their target by more are worth nothing to the search."""

    ledger: str = "sqlite"
    """Where the trials are kept: `sqlite`, a file in the sweep's folder; `journal`, one for shared
    file systems whose locks are not to be trusted; or `postgresql://user@host/database`, whose
    password comes from PGPASSWORD or ~/.pgpass and never from here."""

    @model_validator(mode="after")
    def _ledger_is_a_place_without_a_password(self) -> Self:
        if self.ledger not in ("sqlite", "journal"):
            check_address(self.ledger)
        return self

    @model_validator(mode="after")
    def _objectives_begin_with_the_two(self) -> Self:
        """Pages and pictures show these; a third is searched, too, and stands in the tables."""
        names = self.objectives
        if names[:2] != ["wer", "gflops"] or len(names) > 3 or len(set(names)) < len(names):
            raise ValueError(
                '`sweep.objectives` must be ["wer", "gflops"], or these and a third of `params`'
                f" and `latency_ms`, but is {json.dumps(names)} instead"
            )
        return self


def check_address(address: str) -> None:
    """Refuse what is no PostgreSQL database, and any password.

    Raises:
        ValueError: which does not repeat a password.
    """
    parts = urlsplit(address)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise ValueError(
            "`sweep.ledger` must be an address without a password, but has one instead;"
            " put it into PGPASSWORD or ~/.pgpass"
        )
    if parts.scheme != "postgresql" or not parts.path.strip("/"):
        raise ValueError(
            "`sweep.ledger` must be `sqlite`, `journal` or `postgresql://user@host/database`,"
            f" but is `{address}` instead"
        )


class SearchConfig(Config):
    """The sampler that proposes the next trial."""

    sampler: Sampler = "auto"
    """`auto` takes gp for few flat ranges and tpe for choices, many leaves or many trials."""
    grid_levels: int = Field(default=5, ge=2, le=1000)
    """Of `grid`: values of each range, ends included; the sweep ends with the grid."""


class EarlyStoppingConfig(Config):
    """Early end of trials that are too far behind too many others at equal steps."""

    kind: Literal["pareto", "stratified", "none"] = "none"
    """By non-domination in WER and GFLOPs, by WER among trials of like target, or not at all."""
    keep: float = Field(default=0.7, gt=0, lt=1)
    """Share of the trials at a rung that go on."""
    growth: float = Field(default=2.0, gt=1, le=10)
    """Each rung is so many times the steps of the one before; the first comes when the target has
    warmed up."""
    strata: int = Field(default=4, ge=2, le=100)
    """Groups of like target, for `stratified`."""


class ResourcesConfig(Config):
    """Resources of a trial on the machines, and how many trials run at the same time."""

    cpus: int = Field(default=1, ge=1, le=1024)
    """CPU cores a rank."""
    gpus: float = Field(default=0.0, ge=0, le=1)
    """GPUs a rank; a fraction shares one card, and its memory, between trials of one rank."""
    ranks: int = Field(default=1, ge=1, le=1024)
    """Processes a trial, each on its part of every batch; what a trial finds stays the same."""
    labels: dict[str, str] = Field(default={})
    """Only machines of the cluster with these labels; `accelerator_type` is Ray's own."""
    concurrent: int = Field(default=0, ge=0, le=100_000)
    """Trials side by side at most; 0 is as many as fit."""

    @model_validator(mode="after")
    def _labels_are_rules(self) -> Self:
        for name, rule in self.labels.items():
            if not LABEL_RULE.fullmatch(rule):
                raise ValueError(
                    "`resources.labels` must be values, `in(a, b)`, or either with `!` before it,"
                    f" but `{name}` is `{rule}` instead"
                )
        return self

    @model_validator(mode="after")
    def _ranks_have_whole_gpus(self) -> Self:
        """Ranks talk from card to card, each with its own."""
        if self.ranks > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"`resources.gpus` must be 0 or 1 with several ranks, but is {self.gpus:g} instead"
            )
        return self


class TrackingConfig(Config):
    """Where MLflow keeps the runs."""

    uri: str = ""
    """MLflow's tracking URI; empty is a database in the sweep's own folder. A server that asks who
    is there is told by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never here."""

    @field_validator("uri")
    @classmethod
    def _has_no_password(cls, uri: str) -> str:
        """This file is copied to MLflow, where many may read it."""
        if "@" in uri and urlsplit(uri).password:
            raise ValueError(
                "`tracking.uri` must hold no password, but does; a server's goes into"
                " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a database's into the"
                " file that its client reads, like PostgreSQL's .pgpass"
            )
        return uri


class SweepConfig(Config):
    """One sweep, whole. The trial's own table is read by `sweep.config.space`."""

    sweep: BudgetConfig = BudgetConfig()
    search: SearchConfig = SearchConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    trial: dict[str, Any] = Field(default={})

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.parse(self.trial)

    @cached_property
    def num_trials(self) -> int:
        """Trials in all; a grid may hold fewer than were asked for, beside the control."""
        if self.search.sampler != "grid":
            return self.sweep.trials
        size = self.space.grid_size(self.search.grid_levels, without=("seed",))
        # Two ranges at 5 levels and 100 trials asked for: the control and 25 points are 26 trials.
        return min(self.sweep.trials, 1 + size)

    def with_budget(self, **values: Any) -> Self:
        """The same sweep with other values in its first section."""
        return self.parse(_merge(self.model_dump(), {"sweep": values}))

    def toml(self) -> str:
        """The sweep with every default written out, so that a later default changes nothing.

        But for those that no method of its trials reads: as a search space they would be refused.
        """
        table = self.model_dump()
        fixed = without_leaves(self.space.with_defaults(), self.space.unused_keys())
        table["trial"] = _merge(fixed, self.trial)
        return "\n".join(toml_writer.lines(table)) + "\n"


def load(path_or_name: str) -> SweepConfig:
    """Read a search space: a TOML file, or the name of one in the folder search_spaces.

    Raises:
        ConfigError: one line for each culprit, each beginning with the file.
    """
    config, _, _ = read_space(path_or_name)
    check_corpus(config.space.base.corpus)
    return config


def load_table(table: Mapping[str, Any], *, name: str) -> SweepConfig:
    """Read a search space from the nested table that its TOML file would hold.

    Args:
        table: the sections by name, such as `{"sweep": {"trials": 8}, "trial": {...}}`.
        name: the sweep's name if the table has none.

    Raises:
        ConfigError: one line for each culprit.
    """
    config = _parse_table(_plain(table), source=name)
    check_keys(config, source=name)
    check_corpus(config.space.base.corpus)
    return config


def read_space(path_or_name: str) -> tuple[SweepConfig, Path, str]:
    """A search space, its file, and what that says; its corpus may be on other machines.

    Raises:
        ConfigError: one line for each culprit, each beginning with the file.
    """
    path = find(path_or_name)
    text = _read_file(path)
    config = parse(text, source=str(path))
    check_keys(config, source=str(path))
    return config, path, text


def check_keys(config: SweepConfig, *, source: str) -> None:
    """Refuse keys of `[trial]` that no method of the sweep reads; `source` begins every line.

    Only of what a person hands in: the directories of older sweeps hold every key there is.

    Raises:
        ConfigError: one line a key.
    """
    lines = config.space.unused_key_lines()
    if lines:
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines))


def parse(text: str, *, source: str) -> SweepConfig:
    """Read a search space from its text; `source` begins every line of an error.

    Raises:
        ConfigError: one line for each culprit.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise ConfigError(f"{source}: must be TOML, but: {error}") from None
    return _parse_table(table, source=source)


def _parse_table(table: dict[str, Any], *, source: str) -> SweepConfig:
    try:
        config = SweepConfig.parse(_with_name(with_absolute_paths(table), source))
        config.space  # noqa: B018  # reads the trial's table, and refuses it here
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None
    return config


def create(folder: Path, config: SweepConfig, original: str) -> None:
    """Make the sweep's directory, with the search space as given and with all defaults written out.

    The config comes last: a folder that has one is a sweep.

    Raises:
        ConfigError: if a sweep is there already.
    """
    check_new(folder)
    atomic_write(folder / ORIGINAL_FILE, original)
    rewrite(folder, config)


def check_new(folder: Path) -> None:
    """Refuse a folder that holds a sweep already.

    Raises:
        ConfigError: if it does.
    """
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(
            f"`{folder}` must be a new folder, but holds a sweep;"
            f" `conformer-sweep resume {folder}` goes on with it."
        )


def rewrite(folder: Path, config: SweepConfig) -> None:
    """Put another config in the place of a sweep's own; it appears whole or not at all."""
    atomic_write(folder / CONFIG_FILE, config.toml())


def open_config(folder: Path) -> SweepConfig:
    """The config of a sweep's directory.

    Raises:
        ConfigError: if there is none, or it cannot be.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"`{folder}` must hold a sweep, but has no {CONFIG_FILE}.")
    text = _read_file(folder / CONFIG_FILE)
    check_version(text, source=str(folder / CONFIG_FILE))
    return parse(text, source=str(folder / CONFIG_FILE))


def names() -> list[str]:
    """The folder search_spaces is the registry: one sweep a file."""
    return sorted(path.stem for path in SPACES_FOLDER.glob("*.toml"))


def find(path_or_name: str) -> Path:
    """The file that is meant, absolute."""
    path = Path(path_or_name)
    if path.is_file():
        return path.resolve()
    if path_or_name in names():
        return SPACES_FOLDER / f"{path_or_name}.toml"
    near = difflib.get_close_matches(path_or_name, names(), n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ConfigError(
        f"`{path_or_name}` must be a TOML file or one of {', '.join(names())}, but is neither{hint}"
    )


def _read_file(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: must be a readable text file, but: {error}") from None


def _with_name(table: dict[str, Any], source: str) -> dict[str, Any]:
    if isinstance(table.get("sweep", {}), dict):
        return _merge({"sweep": {"name": Path(source).stem}}, table)
    return table


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with lists for tuples, as TOML gives them."""
    return {
        key: _plain(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in table.items()
    }


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section; a distribution replaces a value."""
    table = dict(below)
    for key, value in above.items():
        under = table.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = _merge(under, value)  # noqa: PLW2901
        table[key] = value
    return table
