"""MLflow's SQLite database, made whole before anybody sees it, and made anew if it never was.

MLflow makes its tables in some seventy steps, which take seconds. Where one of them was cut short
it refuses the database for ever, so it works in a folder of its own first. Checked with MLflow 3.16
to 3.17, whose schema revision and store's engine have no public name.
"""

import logging
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from core.files import whole_file

PREFIX = "sqlite:///"
UNFINISHED = ".unfinished"
"""What a database without runs is called once another has taken its place."""

logger = logging.getLogger(__name__)


def prepare_database(uri: str) -> None:
    """Have a complete database where a client is about to look for one.

    Args:
        uri: of a tracking server or database; all but SQLite files are left alone.

    Raises:
        MlflowException, OSError: if it cannot be made there.
    """
    path = uri.removeprefix(PREFIX)
    if not uri.startswith(PREFIX) or not path or "?" in path or path.startswith((":memory:", "/:")):
        return
    file = Path(path).absolute()
    if file.is_file():
        if not is_unfinished(file):
            return
        _move_aside(file)
    with suppress(FileExistsError), whole_file(file) as beside:
        _create(f"{PREFIX}{beside}")


def is_unfinished(file: Path) -> bool:
    """Whether a database has no runs, and not all of MLflow's tables as this MLflow has them."""
    try:
        # Not read-only: what a kill left half written, SQLite rolls back here.
        with closing(sqlite3.connect(file, timeout=60)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not tables.issuperset(("runs", "alembic_version")):
                return True
            if database.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return False
            found = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return False  # no database at all, or locked: MLflow says so
    return found != [(_newest_schema(),)]


def _move_aside(file: Path) -> None:
    aside = file.with_name(f"{file.name}{UNFINISHED}")
    file.replace(aside)
    logger.warning(
        "MLflow's database `%s` was never finished: it is called `%s` now, and made anew.",
        file,
        aside.name,
    )


def _create(uri: str) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415  # seconds, of the first time alone

    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)  # whatever is asked first makes the tables
    client._tracking_client.store._dispose_engine()  # noqa: SLF001  # all is in the file


def _newest_schema() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision  # noqa: PLC0415

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]
