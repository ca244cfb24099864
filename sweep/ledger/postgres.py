"""A ledger on a PostgreSQL server: one database holds many sweeps, each by its own name.

Who writes holds an advisory lock of the server, which ends with the connection: two drivers never
write one ledger, not even from two machines. No password is ever kept: libpq finds it in the
environment or in ~/.pgpass.
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
from sweep.ledger.backends import OBJECTIVES, Opened, begin
from sweep.ledger.files import ADDRESS, LedgerError, first_line
from sweep.local_lock import LockedError

DRIVER = "postgresql+psycopg"
CONNECT_SECONDS = 15
# A machine that vanishes says no goodbye: its connection, and so its lock, ends after a minute.
KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
MAKING = "conformer-sweep: making the tables"


class Server:
    """A ledger on a server, known to the sweep's directory by its address and its name.

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
        """Where a sweep's trials shall lie; a directory that has moved to it keeps its name."""
        if (folder / ADDRESS).exists():
            return cls(folder, address, cls.noted(folder).study)
        return cls(folder, address, f"conformer-sweep-{identity(folder)}")

    @classmethod
    def noted(cls, folder: Path) -> "Server":
        """Where they lie by the directory's own note.

        Raises:
            LedgerError: if the note cannot be read.
        """
        try:
            note = read_json(folder / ADDRESS)
            return cls(folder, str(note["address"]), str(note["study"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerError(
                f"`{folder / ADDRESS}` must name a server and a study, but does not: {error!r}."
            ) from error

    def create(self, objectives: Sequence[str]) -> None:
        with self._reached(), self._connected() as connection:
            # Two sweeps may begin at once, but tables are made by one.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), _key(MAKING))
            storage = self._storage(skip_table_creation=False)
            begin(storage, self.study, objectives)
            storage.engine.dispose()
        self._note()

    def open(self, *, is_writer: bool) -> Opened:
        with self._reached():
            # Held before anything is read: what another wrote last is seen.
            lock = _Held(self._engine(), self.study, self.address) if is_writer else _Free()
            try:
                storage = self._storage(skip_table_creation=True)
                self._check_there(storage)
            except BaseException:
                lock.release()
                raise
        if is_writer:
            self._note()
        return self._opened(storage, lock)

    def _opened(self, storage: RDBStorage, lock: "_Free | _Held") -> Opened:
        def close() -> None:
            lock.release()
            storage.engine.dispose()

        return Opened(
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
    def _reached(self) -> Iterator[None]:
        """What goes wrong inside is said in one line, which names the server."""
        try:
            yield
        except LockedError:
            raise
        except (SQLAlchemyError, ImportError, RuntimeError) as error:
            reason = first_line(getattr(error, "orig", None) or error)
            raise LedgerError(
                f"`{self.address}` must be a PostgreSQL server that can be used, but: {reason}."
            ) from error

    def _note(self) -> None:
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
    def _connected(self) -> Iterator[sqlalchemy.Connection]:
        engine = self._engine()
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()

    def _url(self) -> sqlalchemy.URL:
        return sqlalchemy.make_url(self.address).set(drivername=DRIVER)


class _Free:
    """A reader's: no lock."""

    def check(self) -> None:
        """Nothing to lose."""

    def release(self) -> None:
        """Nothing to give back."""


class _Held:
    """The server's word that nobody else writes this study.

    Raises:
        LockedError: if another writes it, naming who.
    """

    def __init__(self, engine: sqlalchemy.Engine, study: str, address: str) -> None:
        self._engine, self._study, self._address = engine, study, address
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        if not self._connection.execute(query, _key(study)).scalar():
            holder = self._connection.execute(sqlalchemy.text(_HOLDER), _key(study)).scalar()
            self.release()
            raise LockedError(
                f"`{address}` must be free, but {holder or 'another'} runs this sweep;"
                " wait for it, or end it and resume."
            )

    def check(self) -> None:
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


_HOLDER = """
SELECT a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
AND l.classid::bigint = ((CAST(:key AS bigint) >> 32) & 4294967295)
AND l.objid::bigint = (CAST(:key AS bigint) & 4294967295) LIMIT 1
"""


def _key(name: str) -> dict[str, int]:
    """A lock's number, by the name of what is locked."""
    digest = hashlib.sha256(name.encode()).digest()
    return {"key": int.from_bytes(digest[:8], "big", signed=True)}


def _settings() -> dict[str, Any]:
    who = f"process {os.getpid()} on {socket.gethostname()}"
    connect = {"connect_timeout": CONNECT_SECONDS, "application_name": who, "options": KEEPALIVE}
    return {"pool_pre_ping": True, "connect_args": connect}
