"""A sweep's directory as one file, and at home wherever it is put.

Everything in the directory is relative but what MLflow keeps: its database holds whole addresses of
artifacts, which are brought after when the directory has moved.
"""

import gzip
import shutil
import sqlite3
import tarfile
import zlib
from contextlib import closing
from pathlib import Path

from core.config import ConfigError
from sweep.config import CONFIG_FILE, open_config
from sweep.ledger import FILE
from sweep.lock import LOCK, STOP, locked

NOT_PACKED = (LOCK, STOP)
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
    open_config(folder)
    if file.exists():
        raise ConfigError(f"`{file}` must be new, but is there already.")
    beside = file.with_name(f".{file.name}.packing")
    try:
        with locked(folder), tarfile.open(beside, "w:gz", compresslevel=1) as archive:
            for path in sorted(folder.iterdir()):
                if path.name not in NOT_PACKED and path.resolve() != beside:
                    archive.add(path, arcname=path.name)
        beside.rename(file)
    finally:
        beside.unlink(missing_ok=True)


def unpack(file: Path, folder: Path) -> None:
    """Make a sweep's directory from such a file; it appears whole or not at all.

    Raises:
        ConfigError: if the folder is not new, or the file holds no sweep or what none would hold.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"`{folder}` must be a new folder, but holds something already.")
    beside = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    try:
        _extract(file, beside)
        if not (beside / CONFIG_FILE).is_file() or not (beside / FILE).is_file():
            raise ConfigError(
                f"`{file}` must be a packed sweep, but has no {CONFIG_FILE} or no {FILE}."
            )
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
