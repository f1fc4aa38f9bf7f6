"""How far each view has been loaded into each Milvus, per Feast project, in SQLite beside the leases.

The compute engine writes it; the ranking service reads it to see that something was loaded.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS store_watermarks
    (store TEXT, project TEXT, view TEXT, created_us INTEGER NOT NULL, end_us INTEGER NOT NULL, PRIMARY KEY (store, project, view))
"""


@dataclass(frozen=True)
class Watermark:
    """What an incremental load has behind it: rows made until `created_us`, valid times until `end_us` (both int64 us)."""

    created_us: int
    end_us: int


class Watermarks:
    """The watermarks of one home, in the SQLite file at `path`, for one `store` as `store_name` names it.

    What one store holds says nothing of another. Without a store, `read` gives the furthest of any, and `forget` forgets all.
    """

    def __init__(self, path: Path, store: str = "") -> None:
        self.path = path
        self.store = store

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=30.0)) as db, db:
            db.execute(_TABLE)
            yield db

    def read(self, project: str, view: str) -> Watermark | None:
        """The view's watermark; None before its first load."""
        with self._connection() as db:
            query = """
                SELECT max(created_us), max(end_us) FROM store_watermarks
                WHERE project = ? AND view = ? AND ? IN (store, '')
            """
            created_us, end_us = db.execute(query, (project, view, self.store)).fetchone()
        return None if created_us is None else Watermark(created_us, end_us)

    def write(self, project: str, view: str, mark: Watermark) -> None:
        """Move the view's watermark; it never goes back."""
        statement = """
            INSERT INTO store_watermarks VALUES (?, ?, ?, ?, ?) ON CONFLICT (store, project, view) DO UPDATE
            SET created_us = max(created_us, excluded.created_us), end_us = max(end_us, excluded.end_us)
        """
        with self._connection() as db:
            db.execute(statement, (self.store, project, view, mark.created_us, mark.end_us))

    def forget(self, project: str) -> None:
        """Forget all watermarks of a project, so that its next load is a full one."""
        with self._connection() as db:
            db.execute("DELETE FROM store_watermarks WHERE project = ? AND ? IN (store, '')", (project, self.store))
