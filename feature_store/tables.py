"""The offline tables: catalogue, users, interactions, histories and embeddings, as Parquet parts in the home.

Writers add parts and never change one; readers take the newest version of each id. User tables are hash-bucketed, so that a person
can be forgotten by rewriting one bucket. Point-in-time joins over these files are Feast's business (`feast_training.py`).
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.space import UNIT_NORM_TOLERANCE, EmbeddingSpace, SpaceError
from feature_store.errors import TableError
from feature_store.home import Home
from feature_store.parts import ensure_zero_rows, first_time_us, list_parts, newest_rows, read_parts, write_part
from feature_store.schemas import (
    INTERACTIONS,
    ITEMS,
    USER_HISTORY,
    USERS,
    VECTOR,
    Times,
    as_us,
    conform,
    embeddings_schema,
    now_us,
    timestamps,
)
from feature_store.spaces import SpaceEntry, embeddings_folder, ensure_embeddings, find_space, read_entries

BUCKETS: Final = 16


def bucket_of(user_id: str) -> int:
    """The bucket that holds all rows of a user."""
    return zlib.crc32(user_id.encode()) % BUCKETS


@dataclass(frozen=True)
class Embeddings:
    """Newest vectors of a table: `vectors` float32 [n, dim] and `event_timestamp` int64 us [n] are parallel to `ids`."""

    ids: list[str]
    vectors: NDArray[np.float32]
    event_timestamp: NDArray[np.int64]
    content_sha256: list[str | None]


class Tables:
    """All offline tables of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def ensure(self) -> None:
        """Give every table, and that of every registered space, a part without rows, so that no reader fails on an empty one."""
        self.home.create()
        ensure_zero_rows(self.folder("items"), ITEMS)
        for name, schema in (("users", USERS), ("interactions", INTERACTIONS), ("user_history", USER_HISTORY)):
            ensure_zero_rows(self.folder(name) / "bucket=00", schema)
        for entry in read_entries(self.home):
            ensure_embeddings(self.home, entry)

    def folder(self, name: str) -> Path:
        """Folder of the table `items`, `users`, `interactions` or `user_history`."""
        return self.home.tables / name

    def write_embeddings(
        self,
        entity: str,
        space: EmbeddingSpace,
        ids: Sequence[str],
        vectors: NDArray[np.float32],
        *,
        content_sha256: Sequence[str | None],
        event_timestamp: Times,
        created: Times | None = None,
        deleted: Sequence[bool] | NDArray[np.bool_] | None = None,
    ) -> list[Path]:
        """Add vectors [n, dim] of unit norm, one part per day of `created`; return the parts.

        Where `deleted` is true the row is a tombstone, and its vector is not looked at. Leave `created` out unless rows are replayed: it
        is when the row became visible, which incremental loads go by. Raises `TableError` naming the first id that is wrong.
        """
        if not ids:
            return []
        dead = np.zeros(len(ids), np.bool_) if deleted is None else np.asarray(deleted, np.bool_)
        _check_vectors(space, ids, vectors, dead)
        event_us = as_us(event_timestamp, len(ids))
        created_us = np.full(len(ids), now_us(), np.int64) if created is None else as_us(created, len(ids))
        columns = {
            f"{entity}_id": pa.array(ids, pa.string()),
            "vector": _vector_column(vectors, dead),
            "content_sha256": pa.array(content_sha256, pa.string()),
            "event_timestamp": timestamps(event_us),
            "created": timestamps(created_us),
            "deleted": pa.array(dead),
        }
        ensure_embeddings(self.home, SpaceEntry(space, entity))
        table = conform(pa.table(columns), embeddings_schema(entity))
        # By the day of `created`: a catalogue of old items is one part rather than one a day of its past.
        return self._write_days(embeddings_folder(self.home, entity, space.space_id), table, created_us)

    @staticmethod
    def _write_days(folder: Path, table: pa.Table, times_us: NDArray[np.int64]) -> list[Path]:
        days = times_us.astype("datetime64[us]").astype("datetime64[D]")
        return [write_part(folder / f"dt={day}", table.take(np.flatnonzero(days == day))) for day in np.unique(days)]

    def delete_embeddings(
        self, entity: str, space: EmbeddingSpace, ids: Sequence[str], event_timestamp: Times
    ) -> list[Path]:
        """Add tombstones: from `event_timestamp` on, these ids have no vector in the space."""
        nothing = np.zeros((len(ids), space.dim), np.float32)
        gone = np.ones(len(ids), np.bool_)
        shas = [None] * len(ids)
        return self.write_embeddings(
            entity, space, ids, nothing, content_sha256=shas, event_timestamp=event_timestamp, deleted=gone
        )

    def read_embeddings(self, entity: str, space_id: str, ids: Sequence[str] | None = None) -> Embeddings:
        """The newest vector of each id, deleted ones left out: of all ids (sorted), or of those of `ids` that have one, in that order."""
        parts = list_parts(embeddings_folder(self.home, entity, space_id))
        live, rows = self._live_rows(parts, entity)
        keys = live[f"{entity}_id"].to_pylist()
        if ids is not None:
            at = {key: i for i, key in enumerate(keys)}
            chosen = np.asarray([at[key] for key in dict.fromkeys(ids) if key in at], np.int64)
            live, rows, keys = live.take(chosen), rows[chosen], [keys[i] for i in chosen]
        vectors = _gather(parts, embeddings_schema(entity), rows, lambda: find_space(self.home, space_id).dim)
        event_us = live["event_timestamp"].cast(pa.int64()).to_numpy()
        return Embeddings(keys, vectors, event_us, live["content_sha256"].to_pylist())

    def embedding_blocks(self, entity: str, space_id: str) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """The newest vectors [n, dim] with their ids, deleted ones left out, a part at a time: memory does not grow with the table."""
        parts = list_parts(embeddings_folder(self.home, entity, space_id))
        live, rows = self._live_rows(parts, entity)
        keys = np.asarray(live[f"{entity}_id"].to_pylist(), object)
        start = 0
        for table in read_parts(parts, embeddings_schema(entity), ["vector"]):
            here = np.flatnonzero((rows >= start) & (rows < start + table.num_rows))
            if here.size:
                wanted = table["vector"].combine_chunks().take(pa.array(rows[here] - start))
                yield keys[here].tolist(), wanted.flatten().to_numpy().reshape(here.size, -1)
            start += table.num_rows

    def embedding_rows(self, entity: str, space_id: str) -> pa.Table:
        """All rows of an embedding table, tombstones and older versions too, without their vectors."""
        schema = embeddings_schema(entity)
        columns = [name for name in schema.names if name != "vector"]
        empty = pa.schema([schema.field(name) for name in columns]).empty_table()
        parts = list_parts(embeddings_folder(self.home, entity, space_id))
        return pa.concat_tables([empty, *read_parts(parts, schema, columns)])

    def embedding_index(
        self, entity: str, space_id: str, before_us: int | None = None
    ) -> dict[str, tuple[str | None, int]]:
        """`{id: (content_sha256, event_timestamp in us)}` of the newest live rows, or those strictly before `before_us`.

        Reads no vectors.
        """
        live, _ = self._live_rows(list_parts(embeddings_folder(self.home, entity, space_id)), entity, before_us)
        times = live["event_timestamp"].cast(pa.int64()).to_pylist()
        return dict(
            zip(
                live[f"{entity}_id"].to_pylist(),
                zip(live["content_sha256"].to_pylist(), times, strict=True),
                strict=True,
            )
        )

    @staticmethod
    def _live_rows(
        parts: Sequence[Path], entity: str, before_us: int | None = None
    ) -> tuple[pa.Table, NDArray[np.int64]]:
        schema = embeddings_schema(entity)
        columns = [name for name in schema.names if name != "vector"]
        empty = pa.schema([schema.field(name) for name in columns]).empty_table()
        table = pa.concat_tables([empty, *read_parts(parts, schema, columns)])
        if before_us is not None:
            table = table.filter(pc.less(table["event_timestamp"].cast(pa.int64()), before_us))
        rows = _newest(table, f"{entity}_id")
        rows = rows[~table["deleted"].to_numpy()[rows]]
        return table.take(rows), rows

    def write_items(self, items: pa.Table) -> Path | None:
        """Add versions of catalogue items; None where there are no rows."""
        return write_part(self.folder("items"), conform(items, ITEMS)) if items.num_rows else None

    def item_rows(self) -> pa.Table:
        """All rows of the catalogue, deletions and older versions too."""
        return _read(list_parts(self.folder("items")), ITEMS)

    def read_items(self) -> pa.Table:
        """The newest version of each item, deleted ones left out, sorted by item_id."""
        return _live(self.item_rows(), "item_id")

    def write_users(self, users: pa.Table) -> list[Path]:
        """Add versions of users."""
        return self._write_buckets("users", conform(users, USERS))

    def user_rows(self) -> pa.Table:
        """All rows of the users, deletions and older versions too."""
        return _read(list_parts(self.folder("users")), USERS)

    def read_users(self) -> pa.Table:
        """The newest version of each user, deleted ones left out, sorted by user_id."""
        return _live(self.user_rows(), "user_id")

    def append_interactions(self, interactions: pa.Table) -> int:
        """Add events and return how many rows were added; an event_id that is there already is dropped at reading."""
        table = conform(interactions, INTERACTIONS)
        self._write_buckets("interactions", table)
        return int(table.num_rows)

    def read_interactions(self, users: Iterable[str] | None = None, before_us: int | None = None) -> pa.Table:
        """Events sorted by (user_id, event_timestamp, event_id), each event_id once (the newest `created` wins).

        Only those of `users` and strictly before `before_us`, where given.
        """
        table = _read(self._bucket_parts("interactions", users), INTERACTIONS)
        zero = np.zeros(table.num_rows, np.int64)
        table = table.take(newest_rows(table["event_id"].combine_chunks(), zero, _us(table, "created")))
        if users is not None:
            table = table.filter(pc.is_in(table["user_id"], pa.array(list(users), pa.string())))
        if before_us is not None:
            table = table.filter(pc.less(table["event_timestamp"].cast(pa.int64()), before_us))
        return table.sort_by([("user_id", "ascending"), ("event_timestamp", "ascending"), ("event_id", "ascending")])

    def first_interaction_us(self) -> int | None:
        """When the earliest stored event happened, int64 us; None where there is none. Reads statistics of the parts, no rows."""
        times = [first_time_us(part, "event_timestamp") for part in list_parts(self.folder("interactions"))]
        return min((time for time in times if time is not None), default=None)

    def write_user_history(self, history: pa.Table) -> list[Path]:
        """Add histories: a row holds a user's newest events at `event_timestamp`."""
        return self._write_buckets("user_history", conform(history, USER_HISTORY))

    def read_user_history(self, users: Iterable[str] | None = None) -> pa.Table:
        """The newest history of each user, deleted ones left out, sorted by user_id."""
        live = _live(_read(self._bucket_parts("user_history", users), USER_HISTORY), "user_id")
        return live if users is None else live.filter(pc.is_in(live["user_id"], pa.array(list(users), pa.string())))

    def _write_buckets(self, name: str, table: pa.Table) -> list[Path]:
        buckets = np.asarray([bucket_of(user) for user in table["user_id"].to_pylist()], np.int64)
        return [
            write_part(self.folder(name) / f"bucket={bucket:02d}", table.take(np.flatnonzero(buckets == bucket)))
            for bucket in np.unique(buckets)
        ]

    def _bucket_parts(self, name: str, users: Iterable[str] | None) -> list[Path]:
        if users is None:
            return list_parts(self.folder(name))
        buckets = sorted({bucket_of(user) for user in users})
        return [part for bucket in buckets for part in list_parts(self.folder(name) / f"bucket={bucket:02d}")]


def _check_vectors(
    space: EmbeddingSpace, ids: Sequence[str], vectors: NDArray[np.float32], dead: NDArray[np.bool_]
) -> None:
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise TableError(f"id {twice!r} occurs twice in one call for space {space.space_id}")
    if vectors.shape[:1] != (len(ids),) or dead.shape != (len(ids),):
        raise TableError(
            f"{len(ids)} ids, vectors {list(vectors.shape)} and deleted {list(dead.shape)} do not belong together"
        )
    live = np.flatnonzero(~dead)
    try:
        space.check(vectors[live])
    except SpaceError as error:
        norms = np.linalg.norm(vectors[live].reshape(len(live), -1).astype(np.float64), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_NORM_TOLERANCE))
        at = f"id {ids[live[wrong[0]]]!r}: " if wrong.size else ""
        raise TableError(f"{at}{error}") from error


def _vector_column(vectors: NDArray[np.float32], dead: NDArray[np.bool_]) -> pa.Array:
    count, dim = vectors.shape
    lengths = np.where(dead, 0, dim)
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.ascontiguousarray(vectors[~dead]).reshape(-1)
    mask = pa.array(dead) if dead.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()), type=VECTOR, mask=mask)


def _gather(parts: Sequence[Path], schema: pa.Schema, rows: NDArray[np.int64], dim: Any) -> NDArray[np.float32]:
    """Vectors [n, dim] at global row numbers `rows`, part by part, so that at most one part's stale rows are in memory."""
    out: NDArray[np.float32] | None = None
    start = 0
    for table in read_parts(parts, schema, ["vector"]):
        here = np.flatnonzero((rows >= start) & (rows < start + table.num_rows))
        if here.size:
            wanted = table["vector"].combine_chunks().take(pa.array(rows[here] - start))
            block = wanted.flatten().to_numpy().reshape(here.size, -1)
            out = np.empty((len(rows), block.shape[1]), np.float32) if out is None else out
            out[here] = block
        start += table.num_rows
    return np.empty((0, dim()), np.float32) if out is None else out


def _read(parts: Sequence[Path], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *read_parts(parts, schema)])


def _us(table: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(table[column].cast(pa.int64()).to_numpy(), np.int64)


def _newest(table: pa.Table, key: str) -> NDArray[np.int64]:
    return newest_rows(table[key].combine_chunks(), _us(table, "event_timestamp"), _us(table, "created"))


def _live(table: pa.Table, key: str) -> pa.Table:
    newest = table.take(_newest(table, key))
    return newest.filter(pc.invert(newest["deleted"]))
