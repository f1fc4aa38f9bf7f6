"""How far each view has been loaded, per Feast project, in SQLite beside the leases. Only the compute engine uses it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS watermarks
    (project TEXT, view TEXT, created_us INTEGER NOT NULL, end_us INTEGER NOT NULL, PRIMARY KEY (project, view))
"""


@dataclass(frozen=True)
class Watermark:
    """What an incremental load has behind it: rows made until `created_us`, valid times until `end_us` (both int64 us)."""

    created_us: int
    end_us: int


class Watermarks:
    """All watermarks of one home, in the SQLite file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=30.0)) as db, db:
            db.execute(_TABLE)
            yield db

    def read(self, project: str, view: str) -> Watermark | None:
        """The view's watermark; None before its first load."""
        with self._connection() as db:
            query = "SELECT created_us, end_us FROM watermarks WHERE project = ? AND view = ?"
            row = db.execute(query, (project, view)).fetchone()
        return Watermark(*row) if row else None

    def write(self, project: str, view: str, mark: Watermark) -> None:
        """Move the view's watermark; it never goes back."""
        statement = """
            INSERT INTO watermarks VALUES (?, ?, ?, ?) ON CONFLICT (project, view) DO UPDATE
            SET created_us = max(created_us, excluded.created_us), end_us = max(end_us, excluded.end_us)
        """
        with self._connection() as db:
            db.execute(statement, (project, view, mark.created_us, mark.end_us))

    def forget(self, project: str) -> None:
        """Forget all watermarks of a project, so that its next load is a full one."""
        with self._connection() as db:
            db.execute("DELETE FROM watermarks WHERE project = ?", (project,))
