"""A sweep's directory as one file, and at home wherever it is put.

Everything in the directory is relative but what MLflow keeps: its database holds whole addresses of
artifacts, which are brought after when the directory has moved.
"""

import gzip
import sqlite3
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from core.corpora.placing import placed, remove_leftovers, temporary_folder, whole_file
from core.strict import ConfigError
from sweep.config import CONFIG_FILE, SweepConfig, open_config, rewrite
from sweep.ledger_files import ADDRESS, FILE, FILES, JOURNAL
from sweep.ledger_storage import copy_as_sqlite
from sweep.lock import LOCK, STOP, locked
from sweep.store.copy import CARRIED_BY_WORKERS, NOTES, bring

NOT_PACKED = (LOCK, STOP, NOTES, f"{JOURNAL}.lock")
"""Of the driver's life, not of the sweep's."""
ARTIFACTS = "mlartifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database holds addresses of artifacts."""


def pack(folder: Path, file: Path) -> None:
    """Write the whole directory into one file, which appears whole or not at all.

    Raises:
        ConfigError: if the folder holds no sweep, or the file is there already.
        LockedError: if the sweep runs.
    """
    folder, file = folder.resolve(), file.resolve()
    config = open_config(folder)
    if file.exists():
        raise ConfigError(f"`{file}` must be new, but is there already.")
    with (
        locked(folder),
        whole_file(file) as beside,
        _instead(folder, config) as others,
        tarfile.open(beside, "w:gz", compresslevel=1) as archive,
    ):
        bring(folder, *CARRIED_BY_WORKERS)
        remove_leftovers(folder, is_recursive=True)
        for path in sorted(folder.iterdir()):
            if path.name not in (*NOT_PACKED, *others) and path.resolve() != beside.parent:
                archive.add(path, arcname=path.name)
        for name, other in others.items():
            if other is not None:
                archive.add(other, arcname=name)


@contextmanager
def _instead(folder: Path, config: SweepConfig) -> Iterator[dict[str, Path | None]]:
    """What goes into a pack in place of what lies in the folder: a server's ledger, as SQLite."""
    with temporary_folder("pack") as scratch:
        if not (folder / ADDRESS).exists():
            yield {}
            return
        copy_as_sqlite(folder, Path(scratch))
        rewrite(Path(scratch), config.with_budget(ledger="sqlite"))
        names = (FILE, CONFIG_FILE)
        yield {ADDRESS: None, **{name: Path(scratch) / name for name in names}}


def unpack(file: Path, folder: Path) -> None:
    """Make a sweep's directory from such a file; it appears whole or not at all.

    Raises:
        ConfigError: if the folder is not new, or the file holds no sweep or what none would hold.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"`{folder}` must be a new folder, but holds something already.")
    with placed(folder) as beside:
        _extract(file, beside)
        names = {path.name for path in beside.iterdir()}
        if CONFIG_FILE not in names or names.isdisjoint(FILES):
            raise ConfigError(
                f"`{file}` must be a packed sweep, but has no {CONFIG_FILE} or ledger."
            )


def _extract(file: Path, folder: Path) -> None:
    try:
        with tarfile.open(file, "r:gz") as archive:
            archive.extractall(folder, filter="data")  # refuses what would climb out
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"`{file}` must be a packed sweep, but: {error}.") from None


def follow(folder: Path) -> None:
    """Bring MLflow's addresses after a directory that has moved; else nothing is changed."""
    database, now = folder / "mlflow.db", (folder / ARTIFACTS).as_uri()
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return
        query = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        found = connection.execute(query, (f"file://%/{ARTIFACTS}",)).fetchall()
        for (before,) in found:
            for table, column in ADDRESSES if before != now else ():
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608
                        f" WHERE substr({column}, 1, ?) = ?",
                        (now, len(before) + 1, len(before), before),
                    )
