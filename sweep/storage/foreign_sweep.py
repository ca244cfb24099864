"""Removes or refuses references of a packed sweep to servers, programs and files outside it.

`resume`, `ui` and `promote` follow the directory's settings: an MLflow server receives your
MLFLOW_TRACKING_USERNAME and password, a ledger's server your PGPASSWORD, and MLflow writes
artifacts to the addresses in its database. A packed sweep from somebody else must cause none of it.

Private parts of MLflow, checked with versions 3.16 to 3.17 (docs/reference/compat.md): the tables
that a sweep fills, and their columns with addresses of artifacts.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from core.config.base import ConfigError
from sweep.config.paths import KNOWN_CORPORA
from sweep.config.sweep import CONFIG_FILE, SweepConfig, open_config, rewrite
from sweep.storage.working_copy import NESTED

SWEEP_TABLES = frozenset(
    {
        *("alembic_version", "experiments", "experiment_tags", "workspaces"),
        *("runs", "metrics", "latest_metrics", "params", "tags"),
        *("inputs", "input_tags", "datasets"),
        *("registered_models", "registered_model_tags", "registered_model_aliases"),
        *("model_versions", "model_version_tags"),
    }
)
"""Tables of MLflow's that a sweep fills; others hold jobs, scorers and webhooks."""
ARTIFACTS = "mlartifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database with addresses of artifacts."""
DEFAULT_EXPERIMENT = 0
"""MLflow creates it in every database; no sweep uses it."""


def make_independent(folder: Path, file: Path) -> list[str]:
    """Remove from an unpacked sweep the servers that it names.

    Args:
        folder: the unpacked sweep.
        file: the packed sweep, for errors.

    Returns:
        What was changed, a line each.

    Raises:
        ConfigError: if its config cannot be read, or its MLflow database holds more than a sweep.
    """
    notes: list[str] = []
    for sweep in (folder, *(folder / name for name in NESTED)):
        if (sweep / CONFIG_FILE).is_file():
            _refuse_programs(open_config(sweep), file)
            notes += _remove_servers(sweep)
            check_tracking_database(sweep / "mlflow.db", file)
    names = _outside_files(open_config(folder))
    return notes + [f"{name} is outside this sweep, and read if it goes on" for name in names]


def _refuse_programs(config: SweepConfig, file: Path) -> None:
    """Refuse settings that let a corpus's manifests name programs to run, or addresses to open."""
    allowed = getattr(config.space.base.corpus, "allow", ())
    if allowed:
        raise ConfigError(
            f"`{file}` must not let manifests name {' or '.join(map(str, allowed))} by"
            " `trial.corpus.allow`, but does; if the sweep is your own, `--trust` unpacks it."
        )


def _remove_servers(sweep: Path) -> list[str]:
    config, notes = open_config(sweep), []
    if config.tracking.uri:
        notes.append(
            f"`tracking.uri` was {config.tracking.uri} and is empty now: runs go to the sweep's own"
            " folder; if you know that server, write it into sweep.toml, or unpack with --trust"
        )
    if config.sweep.ledger not in ("sqlite", "journal"):
        notes.append(f"`sweep.ledger` was {config.sweep.ledger} and is sqlite now")
        config = config.with_budget(ledger="sqlite")
    if notes:
        tracking = config.tracking.model_copy(update={"uri": ""})
        rewrite(sweep, config.model_copy(update={"tracking": tracking}))
    return notes


def _outside_files(config: SweepConfig) -> list[str]:
    """Settings that name files outside a sweep."""
    base = config.space.base
    name, root = base.corpus.name, base.corpus.root
    paths = {
        "trial.corpus.name": "" if name in KNOWN_CORPORA else name,
        "trial.corpus.root": root and f"{root} (LibriSpeech is downloaded there if it is missing)",
        "trial.teacher.bundle": base.teacher.bundle,
        "trial.pruning.latency_table": base.pruning.latency_table,
    }
    return [f"`{key}`, {value}," for key, value in paths.items() if value and value != "none"]


def check_tracking_database(path: Path, file: Path) -> None:
    """Refuse an MLflow database that holds more than a sweep's runs, or leads out of its folder.

    Raises:
        ConfigError: naming what it holds.
    """
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            fault = _database_fault(database)
    except (sqlite3.Error, UnicodeError) as error:
        fault = str(error)
    if fault:
        raise ConfigError(
            f"`{file}` must hold MLflow's runs of its sweep and nothing else, but its {path.name}:"
            f" {fault}. If the sweep is your own, `--trust` unpacks it as it is."
        )


def _database_fault(database: sqlite3.Connection) -> str | None:
    """The first thing in a database that no sweep writes, or None."""
    tables = []
    for kind, name, of_table, sql in database.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master"
    ):
        if kind == "view" or (kind == "trigger" and of_table in SWEEP_TABLES):
            return f"has the {kind} {name!r}"
        # "CREATE VIRTUAL TABLE": reading it runs a module of SQLite's that the file chooses.
        if kind == "table" and not str(sql).upper().startswith("CREATE TABLE"):
            return f"has the virtual table {name!r}"
        tables += [name] if kind == "table" else []
    for name in tables:
        quoted = name.replace('"', '""')
        if name in SWEEP_TABLES or name.startswith("sqlite_"):
            continue
        if database.execute(f'SELECT 1 FROM "{quoted}" LIMIT 1').fetchone():  # noqa: S608
            return f"has rows in {name!r}"
    return _stray_address(database, tables)


def _stray_address(database: sqlite3.Connection, tables: list[str]) -> str | None:
    """The first address outside the folder of the sweep's artifacts, or None."""
    if "experiments" not in tables:
        return None
    query = "SELECT artifact_location FROM experiments WHERE experiment_id <> ?"
    homes = {str(home) for (home,) in database.execute(query, (DEFAULT_EXPERIMENT,))}
    for home in homes:
        # file:///home/me/sweep/mlartifacts may stay: `update_artifact_addresses` moves it to the
        # new folder.
        # file://host/x/mlartifacts and s3://bucket/mlartifacts would be written to, or read from,
        # as they are.
        if not re.fullmatch(rf"file:///[^?#]*/{ARTIFACTS}", home) or _climbs(home):
            return f"keeps artifacts at {home!r}"
    # The first entry is that of the experiments, whose addresses are `homes`.
    for table, column in ADDRESSES[1:]:
        if table not in tables:
            continue
        for (address,) in database.execute(f"SELECT DISTINCT {column} FROM {table}"):  # noqa: S608
            is_inside = any(str(address).startswith(f"{home}/") for home in homes)
            if address is not None and (not is_inside or _climbs(str(address))):
                return f"keeps artifacts at {address!r}"
    return None


def _climbs(address: str) -> bool:
    # True for file:///a/../b and file:///a/%2e%2e/b, as %2e is a dot once it is decoded, and for a
    # `?` or `#`, after which it is no path. False for file:///a/.hidden.
    return re.search(r"(^|[/\\])\.\.?([/\\]|$)|%2[ef]|%5c|[?#]", address, re.IGNORECASE) is not None
