"""How far each view has been loaded into each Milvus, per Feast project, in the writers' ledger.

The compute engine writes it; the ranking service reads it to see that something was loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feature_store.ledger import Ledger

_READ: Final = """
    SELECT max(created_us), max(end_us) FROM store_watermarks
    WHERE project = :project AND view = :view AND (store = :store OR :store = '')
"""
_WRITE: Final = """
    INSERT INTO store_watermarks VALUES (:store, :project, :view, :created_us, :end_us)
    ON CONFLICT (store, project, view) DO UPDATE SET
    created_us = CASE WHEN excluded.created_us > store_watermarks.created_us
                      THEN excluded.created_us ELSE store_watermarks.created_us END,
    end_us = CASE WHEN excluded.end_us > store_watermarks.end_us THEN excluded.end_us ELSE store_watermarks.end_us END
"""
_FORGET: Final = "DELETE FROM store_watermarks WHERE project = :project AND (store = :store OR :store = '')"


@dataclass(frozen=True)
class Watermark:
    """What an incremental load has behind it: rows made until `created_us`, valid times until `end_us` (both int64 us)."""

    created_us: int
    end_us: int


class Watermarks:
    """The watermarks of one ledger (a SQLite file, or a database's URL), for one `store` as `store_name` names it.

    What one store holds says nothing of another. Without a store, `read` gives the furthest of any, and `forget` forgets all.
    """

    def __init__(self, where: Path | str, store: str = "") -> None:
        self.store = store
        self._ledger = Ledger(where)

    def read(self, project: str, view: str) -> Watermark | None:
        """The view's watermark; None before its first load."""
        created_us, end_us = self._ledger.run(_READ, project=project, view=view, store=self.store)
        return None if created_us is None else Watermark(created_us, end_us)

    def write(self, project: str, view: str, mark: Watermark) -> None:
        """Move the view's watermark; it never goes back."""
        named = {"store": self.store, "project": project, "view": view}
        self._ledger.run(_WRITE, **named, created_us=mark.created_us, end_us=mark.end_us)

    def forget(self, project: str) -> None:
        """Forget all watermarks of a project, so that its next load is a full one."""
        self._ledger.run(_FORGET, project=project, store=self.store)
