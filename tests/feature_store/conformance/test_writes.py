"""Writing: which of a key's rows wins, what is refused, and that nothing is half done."""

import asyncio
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    DIM,
    MISSING,
    at,
    few_examples,
    free_ids,
    key,
    row,
    title,
    titles_of,
    types,
    unit,
    value,
    vector,
    vector_field,
    view_of,
)

from feature_store.errors import FeatureStoreError, RefusedRowsError

SPREAD = 6  # keys
versions = st.tuples(st.integers(0, SPREAD - 1), st.integers(0, 20), st.integers(0, 3))


def newest(rows):
    """The winning version of each key, of rows (key, event, created, text): later events first, then later makings."""
    best = {}
    for name, event, created, text in rows:
        if name not in best or (event, created) > best[name][:2]:
            best[name] = (event, created, text)
    return best


@given(drawn=st.lists(versions, min_size=8, max_size=40, unique=True), batch=st.integers(1, 12))
@settings(few_examples, max_examples=4)
def test_the_newest_row_wins_in_any_order_of_arrival(ours, drawn, batch):
    """However rows are cut into batches and whenever they come: the latest event counts, and of equal ones the latest made."""
    names = free_ids(*(str(number) for number in range(SPREAD)))
    rows = [(names[who], event, created, f"{event}.{created}") for who, event, created in drawn]
    for first in range(0, len(rows), max(batch, len(rows) // 4)):
        part = rows[first : first + max(batch, len(rows) // 4)]
        ours.write(ours.views["titles"], *(row(n, title(text), at(e), at(c)) for n, e, c, text in part))
    best = newest(rows)
    wanted = [(at(best[name][0]), title(best[name][2])) if name in best else MISSING for name in names]
    assert ours.read(ours.views["titles"], names) == wanted


def test_an_older_row_does_not_overwrite_a_newer_one(store):
    """A late row of the past changes nothing."""
    view, (name,) = store.views["titles"], free_ids("a")
    store.write(view, row(name, title("new"), at(1)))
    store.write(view, row(name, title("old"), at(0)))
    assert store.read(view, [name]) == [(at(1), title("new"))]


def test_of_equal_events_the_one_made_later_wins(store):
    """A correction has the event's time and a later making; it wins whichever comes first, within a batch and across."""
    view, names = store.views["titles"], free_ids("a", "b", "c")
    store.write(view, row(names[0], title("corrected"), at(0), at(2)))
    store.write(view, row(names[0], title("wrong"), at(0), at(1)))
    store.write(view, row(names[1], title("wrong"), at(0), at(1)))
    store.write(view, row(names[1], title("corrected"), at(0), at(2)))
    both = [row(names[2], title("corrected"), at(0), at(2)), row(names[2], title("wrong"), at(0), at(1))]
    store.write(view, *both)
    assert titles_of(store, view, names) == ["corrected"] * 3


def test_a_row_replaces_all_of_the_older_one(store):
    """Features that the newer row does not have do not shine through from the older one."""
    view, (name,) = store.made({"title": types.String, "stock": types.Int64}), free_ids("a")
    store.write(view, row(name, {**title("old"), "stock": value("int64", 1)}, at(0)))
    store.write(view, row(name, title("new"), at(1)))
    ((_, features),) = store.read(view, [name])
    assert (features["title"], features["stock"].WhichOneof("val")) == (value("string", "new"), None)


def test_a_write_is_seen_by_every_instance(store):
    """Another instance of the store, as another process has it, reads what was written and loses to what is newer."""
    view, (name,) = store.views["titles"], free_ids("a")
    other = store.reopened()
    store.write(view, row(name, title("first"), at(1)))
    other.write(view, row(name, title("late"), at(0)))
    other.write(view, row(name, title("second"), at(2)))
    assert titles_of(other, view, [name]) == ["second"]
    assert titles_of(store, view, [name]) in (["second"], ["first"])  # reads may lag what others write
    asyncio.run(_close(other))


async def _close(store):
    close = getattr(store.online, "close", None)
    if close is not None:
        await close()


OTHER_PROCESS = """
    import sys, time
    from pathlib import Path
    import pyarrow as pa
    from feature_store.lease import Leases
    from feature_store.milvus_core import MilvusCore
    from feature_store.schemas import TIMESTAMP

    uri, leases, view, event_us, *ids = sys.argv[1:]
    with MilvusCore(uri) as core:
        for name in ids:
            table = pa.table({
                "entity_id": [name], "title": ["theirs"],
                "event_timestamp": pa.array([int(event_us)]).cast(TIMESTAMP),
            })
            with Leases(Path(leases)).hold(view, 60.0) as lease:
                core.upsert(view, table, lease=lease)
"""


def test_processes_that_write_one_view_lose_nothing(ours):
    """Two processes write the same keys in turn, each newer on half of them: every key ends with its newest row."""
    view, names = ours.views["titles"], free_ids(*"abcdefgh")
    event_us = str(int(at(1).timestamp()) * 1_000_000)
    leases = f"{ours.config.online_store.home}/leases.db"
    code, address = textwrap.dedent(OTHER_PROCESS), ours.config.online_store.uri
    other = subprocess.Popen([sys.executable, "-c", code, address, leases, view.name, event_us, *names])
    for number, name in enumerate(reversed(names)):
        ours.write(view, row(name, title("ours"), at(2 if number % 2 else 0)))
    assert other.wait(timeout=60) == 0
    final = ours.reopened()
    core = final.online.core(final.config)
    found = core.read_columns(view.name, names, ["title"], strong=True)["title"]
    assert found == ["ours", "theirs"] * 4
    asyncio.run(_close(final))


def test_deleted_rows_are_missing(ours):
    """`delete` takes ids or entity keys, and rows of other keys stay."""
    view, names = ours.views["titles"], free_ids("a", "b", "c")
    ours.write(view, *(row(name, title(name), at(0)) for name in names))
    ours.online.delete(ours.config, view, [names[0], key(names[1])], at(1))
    assert titles_of(ours, view, names) == [None, None, names[2]]


events = st.tuples(st.integers(0, SPREAD - 1), st.integers(0, 30), st.booleans())


@given(drawn=st.lists(events, min_size=6, max_size=24, unique_by=lambda event: event[:2]))
@settings(few_examples, max_examples=3)
def test_a_delete_is_remembered(ours, drawn):
    """Rows and deletes in any order of arrival: a key shows its newest row, and nothing where the newest is a delete."""
    view, names = ours.views["titles"], free_ids(*(str(number) for number in range(SPREAD)))
    half = len(drawn) // 2
    for part in (drawn[:half], drawn[half:]):
        rows = [row(names[who], title(str(hour)), at(hour)) for who, hour, is_delete in part if not is_delete]
        if rows:
            ours.write(view, *rows)
        with ours.online.writer(ours.config, view) as writer:
            gone = [(names[who], at(hour)) for who, hour, is_delete in part if is_delete]
            if gone:
                writer.delete([name for name, _ in gone], [when for _, when in gone])
    last = {who: (hour, is_delete) for who, hour, is_delete in sorted(drawn)}
    wanted = [None if who not in last or last[who][1] else str(last[who][0]) for who in range(SPREAD)]
    assert titles_of(ours, view, names) == wanted


def test_a_deleted_row_comes_back_with_a_newer_one(ours):
    """A delete is of its instant: what becomes true later is stored, what was true earlier is not."""
    view, (name,) = ours.views["titles"], free_ids("a")
    ours.online.delete(ours.config, view, [name], at(1))
    ours.write(view, row(name, title("before"), at(0)))
    assert ours.read(view, [name]) == [MISSING]
    ours.write(view, row(name, title("after"), at(2)))
    assert titles_of(ours, view, [name]) == ["after"]


def test_a_delete_is_of_now_where_no_time_is_given(ours):
    """Rows of the past are hidden, and rows of the future are not."""
    view, names = ours.views["titles"], free_ids("past", "future")
    now = datetime.now(UTC)
    ours.write(view, row(names[0], title("past"), now - timedelta(hours=1)))
    ours.write(view, row(names[1], title("future"), now + timedelta(hours=1)))
    ours.online.delete(ours.config, view, names)
    assert titles_of(ours, view, names) == [None, "future"]


GOOD = [1.0, 0.0, 0.0, 0.0]
REFUSED = {
    "null": (None, "null"),
    "nan": ([float("nan"), 1.0, 0.0, 0.0], "not finite"),
    "inf": ([float("inf"), 0.0, 0.0, 0.0], "not finite"),
    "minus_inf": ([float("-inf"), 0.0, 0.0, 0.0], "not finite"),
    "norm": ([2.0, 0.0, 0.0, 0.0], "norm is not 1"),
    "zero": ([0.0] * DIM, "norm is not 1"),
    "short": ([1.0, 0.0, 0.0], "4 values"),
    "long": ([1.0, 0.0, 0.0, 0.0, 0.0], "4 values"),
    "empty": ([], "4 values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_vector_is_refused_and_nothing_is_written(store, kind):
    """One bad vector in a batch: the error names the row's key and what is wrong, and no row of the batch is stored."""
    view, names, (wrong, why) = store.views["vectors"], free_ids("good", "bad", "fine"), REFUSED[kind]
    bad = {"vector": value("float", wrong)}
    rows = [row(names[0], {"vector": vector(GOOD)}), row(names[1], bad), row(names[2], {"vector": vector(GOOD)})]
    with pytest.raises(Exception, match=names[1]) as refused:
        store.write(view, *rows)
    assert why in str(refused.value)
    assert store.read(view, names, ["vector"]) == [MISSING] * 3


@given(
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]), where=st.integers(0, 39), axis=st.integers(0, 3)
)
@settings(few_examples, max_examples=12)
def test_no_value_that_is_not_finite_gets_through(ours, bad, where, axis):
    """Wherever in a batch, and in whatever component."""
    view, names = ours.views["vectors"], free_ids(*(str(number) for number in range(40)))
    vectors = [list(GOOD) for _ in names]
    vectors[where][axis] = bad
    with pytest.raises(RefusedRowsError, match="not finite") as refused:
        ours.write(view, *(row(name, {"vector": vector(v)}) for name, v in zip(names, vectors, strict=True)))
    assert refused.value.keys == [names[where]]


def test_a_view_says_whether_its_vectors_have_norm_1(ours):
    """Of COSINE they must unless a tag says otherwise; of IP and L2 they need not."""
    free = ours.made(vectors=[vector_field(metric="COSINE")], tags={"unit_norm": "false"})
    longer = ours.made(vectors=[vector_field(metric="L2")])
    strict = ours.made(vectors=[vector_field(metric="IP")], tags={"unit_norm": "true"})
    for view in (free, longer):
        ours.write(view, row("a", {"vector": vector([3.0, 4.0, 0.0, 0.0])}))
        assert list(ours.features(view, "vector", ["a"])[0].float_list_val.val) == [3.0, 4.0, 0.0, 0.0]
    with pytest.raises(RefusedRowsError, match="'a': a zero vector has no cosine"):
        ours.write(free, row("a", {"vector": vector([0.0] * DIM)}))
    with pytest.raises(RefusedRowsError, match="'a': the vector's norm is not 1"):
        ours.write(strict, row("a", {"vector": vector([3.0, 4.0, 0.0, 0.0])}))


@pytest.mark.parametrize("name", ["", "x" * 129], ids=["empty", "long"])
def test_a_wrong_id_is_refused(ours, name):
    """Ids have 1 to 128 bytes; the row is named and nothing of the batch is stored."""
    (fine,) = free_ids("fine")
    with pytest.raises(RefusedRowsError, match="1 to 128 bytes") as refused:
        ours.write(ours.views["titles"], row(fine, title("fine")), row(key(thing_id=name), title("wrong")))
    assert refused.value.keys == [name]
    assert ours.read(ours.views["titles"], [fine]) == [MISSING]


def test_a_text_that_is_too_long_is_refused(ours):
    """Milvus holds 65,535 bytes in a text; the row is named and nothing of the batch is stored. One that fits comes back whole."""
    view, names = ours.views["titles"], free_ids("fine", "long", "fits")
    with pytest.raises(RefusedRowsError, match=names[1]):
        ours.write(view, row(names[0], title("fine")), row(names[1], title("ü" * 32_768)))
    assert ours.read(view, names[:2]) == [MISSING] * 2
    ours.write(view, row(names[2], title("ü" * 32_767)))
    assert titles_of(ours, view, [names[2]]) == ["ü" * 32_767]


def test_a_value_of_another_type_is_refused(ours):
    """A number where the view has a text is an error that names the feature, and nothing is stored."""
    view, names = ours.views["titles"], free_ids("fine", "wrong")
    with pytest.raises(FeatureStoreError, match="title"):
        ours.write(view, row(names[0], title("fine")), row(names[1], {"title": value("int64", 5)}))
    assert ours.read(view, names) == [MISSING] * 2


def test_large_batches_are_stored_whole(ours):
    """More rows than fit into one request arrive all, each with its own vector, and the newest of a key's rows once."""
    view, count = ours.views["vectors"], 6_000
    names = free_ids(*(str(number) for number in range(count)))
    vectors = unit([[1.0, number, 0.5, -1.0] for number in range(count)])
    told = []
    rows = [row(name, {**title(name), "vector": vector(v)}) for name, v in zip(names, vectors, strict=True)]
    rows.append(row(names[0], {**title("newer"), "vector": vector(vectors[1])}, at(1)))
    ours.online.online_write_batch(ours.config, view, rows, told.append)
    assert sum(told) == count + 1
    got, present, _ = ours.online.read_vectors(ours.config, view, names)
    assert present.all()
    assert (got[1:] == vectors[1:]).all()
    assert titles_of(ours, view, names[:2]) == ["newer", names[1]]


def test_the_event_loop_writes_too(store):
    """`online_write_batch_async` stores what `online_write_batch` does."""
    view, (name,) = store.views["titles"], free_ids("a")
    asyncio.run(store.online.online_write_batch_async(store.config, view, [row(name, title("A"))], None))
    assert titles_of(store, view, [name]) == ["A"]


def test_nothing_to_write_is_no_error(store):
    """A batch without rows changes nothing."""
    store.write(store.views["titles"])


def test_writing_to_a_view_that_nobody_applied_creates_nothing(store):
    """Views are made by `apply` alone."""
    view = view_of("never_made", {"title": types.String})
    before = store.collections()
    with pytest.raises(Exception, match="never_made"):
        store.write(view, row("a", title("A")))
    assert store.collections() == before
