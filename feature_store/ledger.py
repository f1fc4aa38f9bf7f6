"""The SQL database that all writers of a store share: leases, late writes, features to be filled and watermarks.

SQLite in the home for the writers of one machine; for those of several, a PostgreSQL that all of them reach, named by
TRIPTYCH_LEDGER_URL. Times are told by the database's clock, so that hosts need not agree.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from feature_store.errors import LedgerError
from feature_store.home import Home

LEDGER_VARIABLE: Final = "TRIPTYCH_LEDGER_URL"
WAIT_SECONDS: Final = 30.0
DIALECTS: Final = ("sqlite", "postgresql")
# Seconds since 1970, in each dialect.
_NOW: Final = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())",
}
_NAME: Final = re.compile(r"IF NOT EXISTS (\w+)")
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS leases
    (view TEXT PRIMARY KEY, owner TEXT NOT NULL, token BIGINT NOT NULL, expires DOUBLE PRECISION NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS late_marks (view TEXT PRIMARY KEY, token BIGINT NOT NULL, noted DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE IF NOT EXISTS added_marks (view TEXT PRIMARY KEY, noted DOUBLE PRECISION NOT NULL)",
    """CREATE TABLE IF NOT EXISTS store_watermarks
    (store TEXT, project TEXT, view TEXT, created_us BIGINT NOT NULL, end_us BIGINT NOT NULL, PRIMARY KEY (store, project, view))""",
)


def ledger_of(home: Home) -> Path | str:
    """Where the ledger is: the variable's URL, else the home's SQLite file."""
    return os.environ.get(LEDGER_VARIABLE) or home.leases


class Ledger:
    """One ledger, in the SQLite file at `where` or in the database of that URL. Connects anew for each transaction.

    Raises `LedgerError` for a URL that is none, or of a database that has no such transactions.
    """

    def __init__(self, where: Path | str) -> None:
        self._file = where if isinstance(where, Path) else None
        self._engine = _engine(f"sqlite:///{where}" if isinstance(where, Path) else where)
        self._is_ready = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All of what is done within, or nothing; nobody else's transaction comes in between. Raises `LedgerError`."""
        try:
            self._prepare()
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger of writers {self} cannot be used: {_reason(error)}") from error

    def run(self, statement: str, **values: Any) -> Any:
        """One statement in a transaction of its own: its first row, or None."""
        with self.transaction() as connection:
            return run(connection, statement, **values)

    def _prepare(self) -> None:
        """Make the tables; two processes may do so at once."""
        if self._is_ready:
            return
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        for table in _TABLES:
            try:
                with self._engine.begin() as connection:
                    connection.exec_driver_sql(table)
            except (IntegrityError, ProgrammingError):
                # PostgreSQL tells the slower of two makers so; whoever may not make tables has them made already, or is told.
                if not sqlalchemy.inspect(self._engine).has_table(_NAME.search(table)[1]):  # type: ignore[index]
                    raise
        self._is_ready = True

    def __str__(self) -> str:
        return self._engine.url.render_as_string(hide_password=True)


def run(connection: Connection, statement: str, **values: Any) -> Any:
    """A statement's first row as a tuple, or None. `{now}` in it is the database's clock, in seconds since 1970."""
    text = statement.replace("{now}", _NOW[connection.dialect.name])
    result = connection.execute(sqlalchemy.text(text), values)
    row = result.fetchone() if result.returns_rows else None
    return tuple(row) if row is not None else None


def _engine(url: str) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() not in DIALECTS:
            raise LedgerError(
                f"a ledger of writers is kept in {' or '.join(DIALECTS)}, not in {parsed.get_backend_name()}"
            )
        if parsed.get_backend_name() != "sqlite":
            return sqlalchemy.create_engine(parsed, poolclass=NullPool)
    except (SQLAlchemyError, ImportError) as error:
        raise LedgerError(
            f"the ledger's URL does not work ({_reason(error)}); it looks like postgresql+psycopg://user:password@host/database"
        ) from error
    engine = sqlalchemy.create_engine(
        parsed, poolclass=NullPool, connect_args={"timeout": WAIT_SECONDS, "isolation_level": None}
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _reason(error: Exception) -> str:
    """The cause in one line, without the statement and its values."""
    cause = error.orig if isinstance(error, OperationalError | ProgrammingError) and error.orig else error
    return " ".join(str(cause).split())
