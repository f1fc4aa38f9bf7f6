"""A load with several versions of each row in random order, made from a seed, and the check that a view holds exactly the newest of each."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.milvus_core import MilvusCore
from feature_store.milvus_reply import block
from feature_store.milvus_schema import CREATED, DELETED, EVENT, KEY, ViewSchema
from feature_store.milvus_wire import numbers, scalar_values
from feature_store.schemas import timestamps

DIM = 16
KEYS, ROWS = 20_000, 50_000
EVENTS = 1_000  # few, so that `created` must break ties
PAGE_ROWS = 16_000  # a standalone server gives at most 16,384 at once; the embedded one looks at all rows for each page
TOMBSTONES = 0.05
ROUND_US = 1_000_000  # by which a round's rows are newer than those of the one before


@dataclass(frozen=True)
class Load:
    """Row versions in order of arrival: key numbers [n], times in us [n], tombstones [n], vectors [n, DIM] and row numbers [n]."""

    key: NDArray[np.int64]
    event: NDArray[np.int64]
    created: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    vectors: NDArray[np.float32]
    version: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows) -> "Load":
        """These rows, in this order."""
        return Load(*(column[rows] for column in vars(self).values()))

    def later(self, rounds: int) -> "Load":
        """The same rows, all of them newer by some rounds."""
        return replace(self, event=self.event + rounds * ROUND_US)

    def newest(self) -> "Load":
        """The newest version of each key, by event and then creation time, ordered by id."""
        order = np.lexsort((self.created, self.event, self.key))
        last = np.r_[np.diff(self.key[order]) != 0, True]
        return self.take(order[last])

    def nth_of_its_key(self) -> NDArray[np.int64]:
        """For each row how many rows of its key came before it [n]."""
        order = np.argsort(self.key, kind="stable")
        first = np.searchsorted(self.key[order], self.key[order])
        nth = np.empty(len(self), np.int64)
        nth[order] = np.arange(len(self)) - first
        return nth

    def ids(self) -> list[str]:
        """Ids, which sort as the key numbers do."""
        return [f"item-{key:06d}" for key in self.key]

    def table(self) -> pa.Table:
        """The rows as a view's writer takes them."""
        dead = self.deleted
        vectors = [None if gone else row for gone, row in zip(dead, self.vectors, strict=True)]
        return pa.table(
            {
                "entity_id": self.ids(),
                "event_timestamp": timestamps(self.event),
                "created": timestamps(self.created),
                "deleted": pa.array(dead),
                "vector": pa.array(vectors, pa.list_(pa.float32())),
                "version": pa.array(self.version, mask=dead),
            }
        )


def make_load(seed: int, rows: int = ROWS, keys: int = KEYS) -> Load:
    """A load of `rows` versions of `keys` rows."""
    rng = np.random.default_rng(seed)
    key = rng.permutation(np.r_[np.arange(keys), rng.integers(0, keys, rows - keys)])
    vectors = rng.standard_normal((rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    event, created = 1 + rng.integers(0, EVENTS, rows), 1 + rng.permutation(rows)
    return Load(key, event, created, rng.random(rows) < TOMBSTONES, vectors, np.arange(rows))


def fault_schema(view: str, **changes) -> ViewSchema:
    """The view of such rows."""
    settings = {"fields": {"version": pa.int64()}, "vector_field": "vector", "dim": DIM, **changes}
    return ViewSchema(view, **settings)


def stored(core: MilvusCore, view: str) -> Load:
    """Everything that the view holds, tombstones too, as it is stored."""
    schema = core.describe_view(view, refresh=True)
    names = [EVENT, CREATED, DELETED, "version", schema.stored_vector]
    pages = list(core.pages(view, names, rows=PAGE_ROWS))
    key = [int(text.removeprefix("item-")) for page in pages for text in scalar_values(page[KEY])]
    columns = (np.concatenate([numbers(page[name]) for page in pages]) for name in (EVENT, CREATED))
    deleted = np.concatenate([np.asarray(scalar_values(page[DELETED]), np.bool_) for page in pages])
    vectors = np.concatenate([block(schema, page) for page in pages]).reshape(-1, DIM)
    version = np.concatenate([numbers(page["version"]) for page in pages])
    return Load(np.asarray(key, np.int64), *columns, deleted, vectors, version)


def check_holds(core: MilvusCore, view: str, wanted: Load) -> None:
    """Every row of `wanted` (the newest of each key, by id) is there, once, bit for bit; tombstones are hidden from readers."""
    found, live = stored(core, view), ~wanted.deleted
    for name in ("key", "event", "created", "deleted"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_array_equal(found.version[live], wanted.version[live])
    np.testing.assert_array_equal(found.vectors[live].view(np.uint32), wanted.vectors[live].view(np.uint32))
    assert (core.count_rows(view), core.count(view)) == (len(wanted), live.sum())
    asked = np.random.default_rng(0).permutation(len(wanted))[:2_000]
    vectors, present, event = core.read_vectors(view, wanted.take(asked).ids(), strong=True)
    np.testing.assert_array_equal(present, live[asked])
    np.testing.assert_array_equal(event[present], wanted.event[asked][present])
    np.testing.assert_array_equal(vectors[present], wanted.vectors[asked][present])


def check_newest_vectors(uri, view, newest):
    """Every id has the vector and time of its newest version, or none where that is a tombstone."""
    with MilvusCore(uri) as core:
        assert core.count_rows(view) == len(newest)
        vectors, present, event = core.read_vectors(view, newest.ids(), strong=True)
    np.testing.assert_array_equal(present, ~newest.deleted)
    np.testing.assert_array_equal(event[present], newest.event[present])
    np.testing.assert_array_equal(vectors[present].view(np.uint32), newest.vectors[present].view(np.uint32))
