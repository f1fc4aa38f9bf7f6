"""Reading: what comes back for which key, in which order, and what is missing."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stores import (
    DIM,
    MISSING,
    at,
    few_examples,
    free_ids,
    key,
    more_examples,
    row,
    title,
    titles_of,
    types,
    utc,
    value,
    vector,
    view_of,
)

from feature_store.schemas import MAX_ID_BYTES

ids = st.text(min_size=1, max_size=24).filter(lambda text: len(text.encode()) <= MAX_ID_BYTES)


@pytest.fixture
def three(store):
    """Ids of three rows in the view of titles, whose titles are A, B and C."""
    names = free_ids(*"abc")
    rows = [row(name, title(text), at(hours)) for hours, (name, text) in enumerate(zip(names, "ABC", strict=True))]
    store.write(store.views["titles"], *rows)
    return names


@given(asked=st.lists(st.integers(0, 4), max_size=12))
@more_examples
def test_rows_come_in_the_order_asked_for_with_duplicates(store, three, asked):
    """Every key has its own row at its own place, however often it is asked for, and (None, None) where there is none."""
    rows = [(at(hours), title(text)) for hours, text in enumerate("ABC")]
    keys = [*three, "nobody", three[0].upper()]
    assert store.read(store.views["titles"], [keys[i] for i in asked]) == [[*rows, MISSING, MISSING][i] for i in asked]


def test_only_the_features_asked_for_come_back(store):
    """A read of some features holds those, in any order, and none of the others."""
    view = store.made({"title": types.String, "stock": types.Int64})
    store.write(view, row("a", {**title("A"), "stock": value("int64", 3)}))
    assert store.read(view, ["a"], ["stock"]) == [(at(), {"stock": value("int64", 3)})]
    assert store.read(view, ["a"], ["stock", "title"]) == [(at(), {**title("A"), "stock": value("int64", 3)})]


def test_a_view_that_nobody_wrote_has_no_rows(store):
    """Before the first load every key is missing; that is no error."""
    view = store.made({"title": types.String})
    assert store.read(view, ["a", "b"]) == [MISSING, MISSING]


def test_no_keys_give_no_rows(store):
    """An empty request has an empty answer."""
    assert store.read(store.views["titles"], []) == []


def test_many_keys_are_read_in_order(store, three):
    """More keys than fit into one of Milvus's requests come back in order too."""
    asked = [f"n{i}" for i in range(5_000)]
    asked[0], asked[2_500], asked[4_999] = three[2], three[0], three[1]
    found = store.features(store.views["titles"], "title", asked)
    assert {i: message.string_val for i, message in enumerate(found) if message} == {0: "C", 2_500: "A", 4_999: "B"}


@given(names=st.lists(ids, min_size=10, max_size=60, unique=True))
@few_examples
def test_any_text_is_a_key(store, names):
    """Quotes, backslashes, control characters and every script: a row is found under its own key, and under no other."""
    view = store.views["titles"]
    store.write(view, *(row(name, title(str(number))) for number, name in enumerate(names)))
    assert titles_of(store, view, names) == [str(number) for number in range(len(names))]


def test_hostile_keys_read_no_other_rows(store, three):
    """A key that looks like an expression is a key."""
    a = three[0]
    hostile = [
        f'{a}" or entity_id != "',
        f'{a}"] or entity_id in ["{a}',
        f"{a}' or ''=='",
        f"{a}\\",
        f'{a}\\" or true or "',
    ]
    hostile += [f"%{a}", f"{a}' --", f"{a}%", f"{a}\x00"]
    assert store.read(store.views["titles"], hostile) == [MISSING] * len(hostile)


@given(numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=10, max_size=40, unique=True))
@few_examples
def test_any_integer_is_a_key(store, numbers):
    """Integers are keys from one extreme of int64 to the other."""
    view, numbers = store.views["numbered"], [*numbers, -(2**63), 2**63 - 1]
    keys = [key(number_id=number) for number in numbers]
    store.write(view, *(row(k, title(str(n))) for k, n in zip(keys, numbers, strict=True)))
    assert titles_of(store, view, keys[::-1]) == [str(number) for number in numbers[::-1]]


@given(pairs=st.lists(st.tuples(ids, st.integers(-5, 5)), min_size=10, max_size=40, unique=True))
@few_examples
def test_several_join_keys_make_one_key(store, pairs):
    """A row is found by all of its join keys together, in whatever order a message names them; no two keys run into one."""
    view = store.views["offers"]
    keys = [key(thing_id=thing, shop_id=shop) for thing, shop in pairs]
    turned = [key(shop_id=shop, thing_id=thing) for thing, shop in pairs]
    store.write(view, *(row(k, title(str(number))) for number, k in enumerate(keys)))
    wanted = [str(number) for number in range(len(pairs))]
    assert titles_of(store, view, keys) == wanted
    assert titles_of(store, view, turned) == wanted


def test_join_keys_do_not_run_into_one_another(store):
    """Keys whose parts hold the separator of the plug-in's ids, or its escape, are different keys."""
    view = store.views["offers"]
    things = ["a\x1f1", "a", "a\\x1", "a\\", "\x1f", "1\x1fa", ""]
    keys = [key(thing_id=thing, shop_id=1) for thing in things]
    store.write(view, *(row(k, title(thing)) for k, thing in zip(keys, things, strict=True)))
    assert titles_of(store, view, keys) == things


def test_a_view_without_entities_has_one_row(store):
    """Feast reads it by a key of its own, whose value is the empty text; the plug-in also takes the key without one."""
    view = store.made({"title": types.String}, entities=[])
    nobody = key(__dummy_id="")
    assert store.read(view, [nobody]) == [MISSING]
    store.write(view, row(nobody, title("first"), at(0)))
    store.write(view, row(nobody, title("second"), at(1)))
    assert store.read(view, [nobody, nobody]) == [(at(1), title("second"))] * 2


def test_rows_older_than_the_ttl_are_missing(store):
    """A row that its view's TTL has outlived is as if it were not there; one that it has not is."""
    view = store.made({"title": types.String}, ttl=timedelta(hours=1))
    now = datetime.now(UTC).replace(microsecond=0)
    times = {"old": now - timedelta(hours=2), "new": now - timedelta(minutes=30)}
    store.write(view, *(row(name, title(name), time) for name, time in times.items()))
    assert store.read(view, ["old", "new"]) == [MISSING, (times["new"], title("new"))]


@given(seconds=st.integers(0, 4_000_000_000), microseconds=st.integers(0, 999_999))
@example(seconds=8_192, microseconds=610)
@few_examples
def test_event_times_come_back_to_the_microsecond(store, seconds, microseconds):
    """From 1970 into the next century, in UTC or without a zone, which means UTC; a TTL of zero never ends."""
    view = store.views["titles"]
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=microseconds)
    names = free_ids("utc", "naive")
    store.write(view, row(names[0], title(""), when), row(names[1], title(""), when.replace(tzinfo=None)))
    assert [utc(time) for time, _ in store.read(view, names)] == [when, when]


def test_a_writer_reads_its_own_writes(store):
    """What a write returned from is what the next read shows."""
    view, names = store.views["titles"], free_ids("a")
    for number in range(8):
        store.write(view, row(names[0], title(str(number)), at(number)))
        assert titles_of(store, view, names) == [str(number)]


def test_the_event_loop_reads_the_same(store, three):
    """`online_read_async` answers as `online_read` does, many at once too."""
    view, asked = store.views["titles"], [key(name) for name in (three[2], "nobody", three[0], three[0])]

    async def read():
        reads = (store.online.online_read_async(store.config, view, asked, ["title"]) for _ in range(8))
        return await asyncio.gather(*reads)

    once = store.online.online_read(store.config, view, asked, ["title"])
    assert asyncio.run(read()) == [once] * 8


def test_nothing_is_created_on_read(store):
    """A view that nobody applied cannot be read, and is not there afterwards."""
    view = view_of("never_applied", {"title": types.String})
    before = store.collections()
    with pytest.raises(Exception, match="never_applied"):
        store.read(view, ["a"])
    assert store.collections() == before


def test_vectors_are_read_without_messages(ours, unit_vectors):
    """`read_vectors` gives float32 [n, dim], what is present and when it became true, in the order of the ids."""
    view, names, vectors = ours.views["vectors"], free_ids(*"abc"), unit_vectors(3, DIM)
    rows = [row(names[n], {**title(""), "vector": vector(vectors[n])}, at(n)) for n in range(3)]
    ours.write(view, *rows)
    asked = [names[2], "nobody", names[0], names[2]]
    got, present, event_us = ours.online.read_vectors(ours.config, view, asked)
    assert got.tolist() == [vectors[2].tolist(), [0.0] * DIM, vectors[0].tolist(), vectors[2].tolist()]
    assert present.tolist() == [True, False, True, True]
    hours = [2, None, 0, 2]
    assert event_us.tolist() == [0 if n is None else int(at(n).timestamp()) * 1_000_000 for n in hours]
