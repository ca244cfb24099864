"""Packs a sweep's directory into one file and unpacks it, and updates a directory that has moved.

All paths in the directory are relative, except those of MLflow: its database holds absolute
addresses of artifacts, which are updated after the directory has moved.

Private parts of MLflow, checked with version 3.17.2 (docs/reference/compat.md): the tables and
columns with addresses of artifacts, which are updated by SQL.
"""

import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from core.config.base import ConfigError
from core.files import atomic_folder, remove_leftovers, temporary_folder, whole_file
from sweep.config.sweep import CONFIG_FILE, open_config, rewrite
from sweep.ledger.backends import copy_as_sqlite
from sweep.ledger.files import ADDRESS, FILE, FILES
from sweep.storage.archive_members import add, extract, settle_databases
from sweep.storage.foreign_sweep import ADDRESSES, ARTIFACTS, make_independent
from sweep.storage.lock import sweep_lock
from sweep.storage.working_copy import NESTED, WORKER_FOLDERS, fetch_missing


def pack(folder: Path, file: Path) -> None:
    """Write the whole directory into one file, completely or not at all.

    Raises:
        ConfigError: if the folder holds no sweep or a link, or the file is there already.
        LockedError: if the sweep runs.
    """
    folder, file = folder.resolve(), file.resolve()
    open_config(folder)
    if file.exists():
        raise ConfigError(f"`{file}` must be new, but is there already.")
    with (
        sweep_lock(folder),
        whole_file(file) as tmp_path,
        _replacements(folder) as others,
        tarfile.open(tmp_path, "w:gz", compresslevel=1, dereference=True) as archive,
    ):
        # First what a working copy lacks, then what kills left, so that only whole files are
        # packed.
        fetch_missing(folder, *WORKER_FOLDERS)
        remove_leftovers(folder, is_recursive=True)
        settle_databases(folder)
        without = {tmp_path.parent, *(folder / name for name in others)}
        for path in sorted(folder.iterdir()):
            add(archive, path, PurePosixPath(path.name), without=without)
        for name, other in others.items():
            if other is not None:
                archive.add(other, arcname=name)


@contextmanager
def _replacements(folder: Path) -> Iterator[dict[str, Path | None]]:
    """Files that are packed instead of those of the directory, by name; None leaves one out.

    A ledger on a server is packed as SQLite, also that of a sweep inside the sweep.
    """
    with temporary_folder("pack") as scratch:
        replacements: dict[str, Path | None] = {}
        for prefix in ("", *(f"{name}/" for name in NESTED)):
            # Of a sweep on a server, ledger.db and sweep.toml are packed from the copy, and
            # ledger.address is left out; of its confirmations, confirm/ledger.db and so on.
            if (folder / prefix / ADDRESS).exists():
                copy = Path(scratch) / prefix
                copy.mkdir(exist_ok=True)
                copy_as_sqlite(folder / prefix, copy)
                rewrite(copy, open_config(folder / prefix).with_budget(ledger="sqlite"))
                replacements |= {f"{prefix}{name}": copy / name for name in (FILE, CONFIG_FILE)}
                replacements[f"{prefix}{ADDRESS}"] = None
        yield replacements


def unpack(file: Path, folder: Path, *, is_trusted: bool = False) -> list[str]:
    """Create a sweep's directory from a packed sweep, completely or not at all.

    Args:
        file: the packed sweep; it may come from anybody.
        folder: the new directory.
        is_trusted: whether servers that it names are left; see `sweep.storage.foreign_sweep`.

    Returns:
        Notes for the user, a line each.

    Raises:
        ConfigError: if the folder is not new, or the file is no packed sweep.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"`{folder}` must be a new folder, but holds something already.")
    if not file.is_file():
        raise ConfigError(f"`{file}` must be a packed sweep, but there is no such file.")
    # Refused halfway, an archive leaves nothing behind: the folder gets its name only at the end.
    with atomic_folder(folder) as tmp_path:
        extract(file, tmp_path, is_trusted=is_trusted)
        names = {path.name for path in tmp_path.iterdir()}
        if CONFIG_FILE not in names or names.isdisjoint(FILES):
            raise ConfigError(
                f"`{file}` must be a packed sweep, but has no {CONFIG_FILE} or ledger."
            )
        return [] if is_trusted else make_independent(tmp_path, file)


def update_artifact_addresses(folder: Path) -> None:
    """Update MLflow's addresses of artifacts if the directory has moved."""
    database, now = folder / "mlflow.db", (folder / ARTIFACTS).as_uri()
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "experiments" not in tables:
            return
        query = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?"
        addresses = connection.execute(query, (f"file://%/{ARTIFACTS}",)).fetchall()
        for (before,) in addresses:
            for table, column in ADDRESSES if before != now else ():
                if table in tables:
                    # "file:///old/mlartifacts/1/ab", moved to /new, is "file:///new/mlartifacts"
                    # and what follows the 23 characters of "file:///old/mlartifacts". Not LIKE, for
                    # which `_` and `%` in a path are wildcards.
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608
                        f" WHERE substr({column}, 1, ?) = ?",
                        (now, len(before) + 1, len(before), before),
                    )
