"""Creates MLflow's SQLite database completely, and replaces one that was left incomplete.

MLflow creates its tables in some seventy steps, which take seconds. If one of them is interrupted,
it refuses the database for ever, so the database is created under a temporary name first.

Private parts of MLflow, checked with versions 3.16 to 3.17 (docs/reference/compat.md): the tables
`runs` and `alembic_version`, the newest schema revision, and the engine of the client's store.
"""

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from core.files import whole_file

PREFIX = "sqlite:///"
UNFINISHED = ".unfinished"
"""Suffix of an incomplete database that was replaced."""

logger = logging.getLogger(__name__)


def prepare_database(uri: str) -> None:
    """Create a complete database at an address where there is none.

    Args:
        uri: of a tracking server or database; only SQLite files are created.

    Raises:
        MlflowException, OSError: if it cannot be made there.
    """
    path = uri.removeprefix(PREFIX)
    # Left to MLflow: databases in memory, and addresses of SQLite with options such as `?mode=ro`.
    if not uri.startswith(PREFIX) or not path or "?" in path or path.startswith((":memory:", "/:")):
        return
    file = Path(path).absolute()
    if file.is_file():
        if not is_unfinished(file):
            return
        _rename_unfinished(file)
    # Of two processes that create it at the same time, the one that ends first wins; both are
    # whole.
    with suppress(FileExistsError), whole_file(file) as tmp_path:
        _create(f"{PREFIX}{tmp_path}")


def is_unfinished(file: Path) -> bool:
    """Whether a database has no runs, and lacks tables that this version of MLflow creates."""
    try:
        # Not read-only, so that SQLite can roll back a transaction that a kill interrupted.
        with closing(sqlite3.connect(file, timeout=60)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not tables.issuperset(("runs", "alembic_version")):
                return True
            # A database with runs is never replaced, whatever its version: MLflow says how to
            # upgrade it.
            if database.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return False
            versions = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return False  # no database at all, or locked: MLflow reports that itself
    return versions != [(_newest_schema(),)]


def _rename_unfinished(file: Path) -> None:
    aside = file.with_name(f"{file.name}{UNFINISHED}")
    file.replace(aside)
    logger.warning(
        "MLflow's database `%s` was incomplete: it is renamed to `%s`, and a new one is created.",
        file,
        aside.name,
    )


def _create(uri: str) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415  # seconds, of the first time alone

    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)  # the first request creates the tables
    client._tracking_client.store._dispose_engine()  # noqa: SLF001  # all is in the file


def _newest_schema() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision  # noqa: PLC0415

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]
