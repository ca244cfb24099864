"""A sweep's directory as one file, and at home wherever it is put.

Everything in the directory is relative but what MLflow keeps: its database holds whole addresses of
artifacts, which are brought after when the directory has moved.
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
from sweep.storage.working_copy import CARRIED_BY_WORKERS, NESTED, bring


def pack(folder: Path, file: Path) -> None:
    """Write the whole directory into one file, which appears whole or not at all.

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
        whole_file(file) as beside,
        _replacements(folder) as others,
        tarfile.open(beside, "w:gz", compresslevel=1, dereference=True) as archive,
    ):
        bring(folder, *CARRIED_BY_WORKERS)
        remove_leftovers(folder, is_recursive=True)
        settle_databases(folder)
        without = {beside.parent, *(folder / name for name in others)}
        for path in sorted(folder.iterdir()):
            add(archive, path, PurePosixPath(path.name), without=without)
        for name, other in others.items():
            if other is not None:
                archive.add(other, arcname=name)


@contextmanager
def _replacements(folder: Path) -> Iterator[dict[str, Path | None]]:
    """What goes into a pack in place of a file, by name; None leaves it out.

    A ledger on a server goes as SQLite, that of a sweep inside the sweep, too.
    """
    with temporary_folder("pack") as scratch:
        found: dict[str, Path | None] = {}
        for prefix in ("", *(f"{name}/" for name in NESTED)):
            if (folder / prefix / ADDRESS).exists():
                copy = Path(scratch) / prefix
                copy.mkdir(exist_ok=True)
                copy_as_sqlite(folder / prefix, copy)
                rewrite(copy, open_config(folder / prefix).with_budget(ledger="sqlite"))
                found |= {f"{prefix}{name}": copy / name for name in (FILE, CONFIG_FILE)}
                found[f"{prefix}{ADDRESS}"] = None
        yield found


def unpack(file: Path, folder: Path, *, is_trusted: bool = False) -> list[str]:
    """Make a sweep's directory from such a file; it appears whole or not at all.

    Args:
        file: the packed sweep; anybody may have made it.
        folder: the new directory.
        is_trusted: whether the servers that it names stay named; see `sweep.storage.foreign_sweep`.

    Returns:
        What a person should know of it, a line each.

    Raises:
        ConfigError: if the folder is not new, or the file holds no sweep or what none would hold.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"`{folder}` must be a new folder, but holds something already.")
    if not file.is_file():
        raise ConfigError(f"`{file}` must be a packed sweep, but there is no such file.")
    with atomic_folder(folder) as beside:
        extract(file, beside, is_trusted=is_trusted)
        names = {path.name for path in beside.iterdir()}
        if CONFIG_FILE not in names or names.isdisjoint(FILES):
            raise ConfigError(
                f"`{file}` must be a packed sweep, but has no {CONFIG_FILE} or ledger."
            )
        return [] if is_trusted else make_independent(beside, file)


def update_artifact_addresses(folder: Path) -> None:
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
