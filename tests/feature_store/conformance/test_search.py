"""Search: the right rows with the right scores, under any filter, and nothing that a filter was not meant to show."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import (
    DIM,
    NUMBER,
    SHOP,
    THING,
    ComparisonFilter,
    CompoundFilter,
    Value,
    at,
    key,
    more_examples,
    row,
    title,
    types,
    unit,
    value,
    vector,
    vector_field,
    view_of,
)

from feature_store.errors import FeatureStoreError, StoreRequestError
from feature_store.schemas import as_us

COUNT = 40
METRICS = ("COSINE", "IP", "L2")
TOLERANCE = 1e-5  # of scores, float32 on both sides


def scores(metric, query, stored):
    """Scores of the stored vectors [n, dim], in float64; L2 is squared, as Milvus has it."""
    query, stored = np.asarray(query, np.float64), np.asarray(stored, np.float64)
    if metric == "L2":
        return ((stored - query) ** 2).sum(axis=1)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(query) if metric == "COSINE" else 1.0
    return stored @ query / norms


@pytest.fixture(scope="module")
def made():
    """Views of this module that are filled already, by store and name."""
    return {}


def filled(made, store, name, build):
    """What `build` makes, once per store."""
    if (store.name, name) not in made:
        made[store.name, name] = build(store)
    return made[store.name, name]


def vectors_by(metric):
    def build(store):
        seeded = np.random.default_rng(5)
        stored = seeded.standard_normal((COUNT, DIM)).astype(np.float32)
        stored = unit(stored) if metric == "COSINE" else stored
        view = store.made({"title": types.String}, vectors=[vector_field(metric=metric)])
        rows = [row(f"i{n}", {**title(f"t{n}"), "vector": vector(v)}, at(n)) for n, v in enumerate(stored)]
        store.write(view, *rows)
        return view, stored

    return build


@pytest.mark.parametrize("metric", METRICS)
def test_right_scores_belong_to_right_ids(ours, made, metric, rng):
    """Every hit of `search` has the score, the features and the vector of its own row; the best come first; numpy agrees."""
    view, stored = filled(made, ours, metric, vectors_by(metric))
    queries = rng.standard_normal((5, DIM)).astype(np.float32)
    fields = ["title", "vector", "event_timestamp"]
    found = ours.online.search(ours.config, view, queries, 10, output=fields)
    for at_query, query in enumerate(queries):
        exact = scores(metric, query, stored)
        best = np.argsort(exact if metric == "L2" else -exact)[:10]
        rows = [int(name[1:]) for name in found.ids[at_query]]
        np.testing.assert_allclose(found.scores[at_query], exact[rows], atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(found.scores[at_query], exact[best], atol=TOLERANCE, rtol=TOLERANCE)
        assert found.fields["title"][at_query] == [f"t{n}" for n in rows]
        np.testing.assert_array_equal(np.stack(found.fields["vector"][at_query]), stored[rows])
        times = as_us([at(n) for n in rows], len(rows)).tolist()
        assert found.fields["event_timestamp"][at_query] == times


def test_batched_queries_equal_single_ones(ours, made, rng):
    """Queries that share a request are answered as each alone."""
    view, _ = filled(made, ours, "COSINE", vectors_by("COSINE"))
    queries = rng.standard_normal((7, DIM)).astype(np.float32)
    together = ours.online.search(ours.config, view, queries, 6, output=["title"])
    for at_query, query in enumerate(queries):
        alone = ours.online.search(ours.config, view, query[None], 6, output=["title"])
        assert together.ids[at_query] == alone.ids[0]
        assert together.fields["title"][at_query] == alone.fields["title"][0]
        np.testing.assert_allclose(together.scores[at_query], alone.scores[0], atol=TOLERANCE)


def test_fewer_rows_than_asked_for_are_all_there_is(ours, made):
    """A search for more than there is gives every row once."""
    view, stored = filled(made, ours, "L2", vectors_by("L2"))
    found = ours.online.search(ours.config, view, stored[:1], 3 * COUNT)
    assert sorted(found.ids[0]) == sorted(f"i{n}" for n in range(COUNT))


def test_documents_come_best_first_with_their_own_features(store, made, rng):
    """`retrieve_online_documents_v2`: each hit has its own key, time, features, vector and distance."""
    view, stored = filled(made, store, "COSINE", vectors_by("COSINE"))
    query = rng.standard_normal(DIM).astype(np.float32)
    exact = scores("COSINE", query, stored)
    hits = store.nearest(view, query, 5, ["title", "vector"])
    numbers = [int(dict(zip(k.join_keys, k.entity_values, strict=True))["thing_id"].string_val[1:]) for _, k, _ in hits]
    assert numbers == np.argsort(-exact)[:5].tolist()
    for n, (time, _, features) in zip(numbers, hits, strict=True):
        assert features["title"] == value("string", f"t{n}")
        assert np.isclose(features["distance"].float_val, exact[n], atol=TOLERANCE)
        assert time.replace(tzinfo=UTC) == at(n)
        assert list(features["vector"].float_list_val.val) == stored[n].tolist()


@pytest.mark.parametrize("entities", [(NUMBER,), (THING, SHOP)], ids=["integer", "two_keys"])
def test_documents_have_the_keys_that_they_were_written_under(store, entities):
    """Keys of integers, and of several join keys, come back typed as Feast made them."""
    view = store.made(vectors=[vector_field()], entities=entities)
    if len(entities) == 1:
        keys = [key(number_id=number) for number in (-(2**63), 0, 7)]
    else:
        keys = [key(shop_id=number, thing_id=thing) for number, thing in ((1, "a"), (2, "a"), (1, "b\x1f\\"))]
    axes = np.eye(DIM)[:3]
    store.write(view, *(row(k, {"vector": vector(axis)}) for k, axis in zip(keys, axes, strict=True)))
    query = [0.5, 0.9, 0.1, 0.0]
    found = [k for _, k, _ in store.nearest(view, query, 3, ["vector"])]
    assert [(list(k.join_keys), list(k.entity_values)) for k in found] == [
        (list(keys[n].join_keys), list(keys[n].entity_values)) for n in (1, 0, 2)
    ]


def test_documents_have_typed_features(store):
    """Numbers, truths, lists and nulls come back as what they are, as from a read."""
    kinds = {"n": types.Int64, "x": types.Float64, "ok": types.Bool, "tags": types.Array(types.String)}
    view = store.made(kinds, vectors=[vector_field()])
    features = {
        "n": value("int64", 2**53 + 1),
        "x": value("double", 0.1),
        "ok": value("bool", False),
        "tags": value("string", ["b", "a"]),
    }
    store.write(view, row("full", {**features, "vector": vector([1, 0, 0, 0])}))
    store.write(view, row("null", {"vector": vector([0, 1, 0, 0])}))
    hits = store.nearest(view, [1, 0.5, 0, 0], 2, [*features, "vector"])
    assert [{name: hit[name] for name in features} for *_, hit in hits] == [features, dict.fromkeys(features, Value())]


def test_another_metric_than_the_views_is_refused(ours, made):
    """A view is indexed for one metric; asking for its own is fine, in any letters."""
    view, _ = filled(made, ours, "COSINE", vectors_by("COSINE"))
    assert len(ours.nearest(view, [1, 0, 0, 0], 3, distance_metric="cosine")) == 3
    with pytest.raises(StoreRequestError, match="indexed for COSINE, not L2"):
        ours.nearest(view, [1, 0, 0, 0], 3, distance_metric="L2")


def test_a_query_of_another_dim_is_refused(ours, made):
    """The error names both shapes."""
    view, _ = filled(made, ours, "COSINE", vectors_by("COSINE"))
    with pytest.raises(StoreRequestError, match=r"must be \[q, 4\], not \[1, 3\]"):
        ours.nearest(view, [1, 0, 0], 3)


def test_deleted_and_expired_rows_are_not_found(ours):
    """Neither by search nor through a filter in Milvus's own language."""
    view = ours.made({"title": types.String}, vectors=[vector_field()], ttl=timedelta(hours=1))
    now = datetime.now(UTC)
    times = {"live": now, "old": now - timedelta(hours=2), "gone": now}
    rows = [row(name, {**title(name), "vector": vector([1, 0, 0, 0])}, time) for name, time in times.items()]
    ours.write(view, *rows)
    ours.online.delete(ours.config, view, ["gone"], now + timedelta(minutes=1))
    wide = [None, 'title != "x"', "title != 'x' or row_deleted == true", "row_deleted == true or row_event_us > 0"]
    for where in wide:
        assert ours.online.search(ours.config, view, np.eye(DIM)[:1], 9, where).ids == [["live"]]
    for escape in ("true) or (row_deleted == true", 'title == ")" or true) or (true', "true) || (true", ")(", "(true"):
        with pytest.raises(StoreRequestError):
            ours.online.search(ours.config, view, np.eye(DIM)[:1], 9, escape)


def test_a_replaced_row_is_found_by_its_new_vector_alone(ours):
    """After an update a row is found once, where it is now."""
    view = ours.made(vectors=[vector_field()])
    ours.write(
        view, row("a", {"vector": vector([1, 0, 0, 0])}, at(0)), row("b", {"vector": vector([0, 0, 1, 0])}, at(0))
    )
    ours.write(view, row("a", {"vector": vector([0, 1, 0, 0])}, at(1)))
    found = ours.online.search(ours.config, view, np.eye(DIM)[:1], 5)
    assert sorted(found.ids[0]) == ["a", "b"]
    assert found.scores[0] == pytest.approx([0.0, 0.0], abs=TOLERANCE)


# Filters

INSTANTS = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 5)]
TEXTS = ["a", "b", "", 'q"', "\\", "' or 1==1", "日本", "a\nb"]
# Feature -> its type, slot, and the few values that rows and filters choose from.
FILTERED = {
    "n": (types.Int64, "int64", [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1]),
    "small": (types.Int32, "int32", [-(2**31), -1, 0, 5, 2**31 - 1]),
    "x": (types.Float64, "double", [-1.5, 0.0, 0.1, 1e-300, 1e300]),
    "single": (types.Float32, "float", [-1.5, 0.0, 0.1, 0.25, 1e30]),
    "text": (types.String, "string", TEXTS),
    "ok": (types.Bool, "bool", [True, False]),
    "raw": (types.Bytes, "bytes", [b"", b"\x00", b"abc"]),
    "since": (types.UnixTimestamp, "unix_timestamp", INSTANTS),
    "tags": (types.Array(types.String), "string", TEXTS),
    "numbers": (types.Array(types.Int64), "int64", [-(2**62), 0, 1, 7]),
}
LISTS_OF = {"tags", "numbers"}
NOT_ORDERED = {"ok", "raw", *LISTS_OF}
COMPARE = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


def filterable(store):
    seeded = np.random.default_rng(11)
    view = store.made({name: dtype for name, (dtype, *_) in FILTERED.items()}, vectors=[vector_field()])
    rows = {}
    for number in range(COUNT):
        content = {}
        for name, (_, _, choices) in FILTERED.items():
            picked = [choices[i] for i in seeded.integers(len(choices), size=seeded.integers(0, 4))]
            content[name] = picked if name in LISTS_OF else (picked or [None])[0]
            content[name] = None if seeded.random() < 0.2 else content[name]
        rows[f"r{number}"] = content
    store.write(
        view, *(row(name, {**stored(content), "vector": vector([1, 0, 0, 0])}) for name, content in rows.items())
    )
    return view, rows


def stored(content):
    """Feast's messages of a row."""
    plain = {n: int(v.timestamp()) if isinstance(v, datetime) else v for n, v in content.items()}
    return {name: value(FILTERED[name][1], held) for name, held in plain.items()}


def holds(where, content):
    """The oracle: whether a row is meant by a filter, in plain Python."""
    if isinstance(where, CompoundFilter):
        return (all if where.type == "and" else any)(holds(part, content) for part in where.filters)
    held, wanted = content[where.key], where.value
    if wanted is None:
        return (held is None) == (where.type == "eq")
    if held is None:
        return False
    if where.key == "single":  # a number is compared as the feature's own type has it
        held, wanted = (
            np.float32(held),
            [np.float32(v) for v in wanted] if isinstance(wanted, list) else np.float32(wanted),
        )
    if where.key in LISTS_OF:
        many = wanted if isinstance(wanted, list) else [wanted]
        return any(v in held for v in many) == (where.type in {"eq", "in"})
    if where.type in {"in", "nin"}:
        return (held in wanted) == (where.type == "in")
    return bool(COMPARE[where.type](held, wanted))


@st.composite
def comparisons(draw):
    name = draw(st.sampled_from(sorted(FILTERED)))
    kinds = ["eq", "ne", "in", "nin"] if name in NOT_ORDERED else [*COMPARE, "in", "nin"]
    kind, choice = draw(st.sampled_from(kinds)), st.sampled_from(FILTERED[name][2])
    if kind in {"in", "nin"}:
        return ComparisonFilter(type=kind, key=name, value=draw(st.lists(choice, max_size=3)))
    return ComparisonFilter(type=kind, key=name, value=draw(choice | st.none() if kind in {"eq", "ne"} else choice))


filters = st.recursive(
    comparisons(),
    lambda inner: st.builds(
        lambda kind, parts: CompoundFilter(type=kind, filters=parts),
        st.sampled_from(["and", "or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)


def found_by(store, view, where):
    return set(store.online.search(store.config, view, np.eye(DIM)[:1], COUNT, where).ids[0])


@given(where=filters)
@settings(more_examples, max_examples=40)
def test_filters_find_what_a_plain_program_finds(ours, made, where):
    """Every comparison, on every type, joined by and / or, with nulls, lists and times, on random rows."""
    view, rows = filled(made, ours, "filters", filterable)
    assert found_by(ours, view, where) == {name for name, content in rows.items() if holds(where, content)}


@pytest.mark.parametrize("name", sorted(FILTERED))
def test_every_comparison_of_every_type(ours, made, name):
    """Each comparison with each value once, and with null."""
    view, rows = filled(made, ours, "filters", filterable)
    kinds = ["eq", "ne"] if name in NOT_ORDERED else COMPARE
    every = [ComparisonFilter(type=kind, key=name, value=v) for kind in kinds for v in FILTERED[name][2]]
    every += [ComparisonFilter(type=kind, key=name, value=None) for kind in ("eq", "ne")]
    every += [ComparisonFilter(type=kind, key=name, value=FILTERED[name][2][:2]) for kind in ("in", "nin")]
    every += [ComparisonFilter(type=kind, key=name, value=[]) for kind in ("in", "nin")]
    wanted = [{r for r, content in rows.items() if holds(where, content)} for where in every]
    assert [found_by(ours, view, where) for where in every] == wanted


@given(text=st.text(max_size=30))
@settings(more_examples, max_examples=40)
def test_no_text_in_a_filter_widens_the_result(ours, made, text):
    """Whatever a value holds, a filter by it shows rows with that very value, and none where no row has it."""
    view, rows = filled(made, ours, "filters", filterable)
    wanted = {name for name, content in rows.items() if content["text"] == text}
    for hostile, same in ((text, wanted), (f'zz" or text != "{text}', set()), (f"zz\\{text}' or '' == '", set())):
        assert found_by(ours, view, ComparisonFilter(type="eq", key="text", value=hostile)) == same
        assert found_by(ours, view, {"type": "in", "key": "text", "value": [hostile]}) == same
        tagged = {name for name, c in rows.items() if hostile in (c["tags"] or [])}
        assert found_by(ours, view, ComparisonFilter(type="eq", key="tags", value=hostile)) == tagged


HOSTILE_NAMES = ["row_deleted", "text == '' or n", 'n"', "n == 0) or (1", "", "vector", "unknown", "row_nulls", "n\x00"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_filter_by_what_is_no_feature_is_refused(ours, made, name):
    """The key of a filter is a feature of the view, its key or its event time; the error names it and what there is."""
    view, _ = filled(made, ours, "filters", filterable)
    with pytest.raises(StoreRequestError, match="cannot be filtered by") as refused:
        found_by(ours, view, ComparisonFilter(type="eq", key=name, value=0))
    assert "event_timestamp" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "kind", "wrong"),
    [
        ("n", "eq", "0 or 1 == 1"),
        ("n", "eq", 1.5),
        ("n", "eq", True),
        ("n", "eq", {"a": 1}),
        ("n", "eq", float("nan")),
        ("x", "gt", float("inf")),
        ("x", "eq", "0.0"),
        ("text", "eq", 5),
        ("text", "in", "abc"),
        ("text", "gt", None),
        ("ok", "eq", 1),
        ("ok", "gt", False),
        ("raw", "lt", b"a"),
        ("since", "eq", 5),
        ("tags", "gt", "a"),
        ("tags", "eq", ["a"]),
        ("numbers", "in", ["1"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused(ours, made, name, kind, wrong):
    """Text for a number, a number for a text, an order where there is none: the error names the feature, and nothing is sent."""
    view, _ = filled(made, ours, "filters", filterable)
    with pytest.raises(StoreRequestError, match=f"'{name}'"):
        found_by(ours, view, {"type": kind, "key": name, "value": wrong})


def test_filters_by_key_and_event_time(ours, made):
    """The row's own id and valid time can be filtered by too."""
    view, _ = filled(made, ours, "COSINE", vectors_by("COSINE"))
    by_time = {"type": "and", "filters": [between("gte", at(3)), between("lt", at(6))]}
    assert found_by(ours, view, by_time) == {"i3", "i4", "i5"}
    by_key = ComparisonFilter(type="in", key="entity_id", value=["i7", "i9", 'i" or true'])
    assert found_by(ours, view, by_key) == {"i7", "i9"}


def between(kind, when):
    return {"type": kind, "key": "event_timestamp", "value": when}


def test_documents_are_filtered_by_feasts_own_filters(store, made):
    """The filter objects of Feast, handed to `retrieve_online_documents_v2`."""
    view, _ = filled(made, store, "COSINE", vectors_by("COSINE"))
    either = [ComparisonFilter(type="eq", key="title", value=text) for text in ("t3", "t8", "t' or title != '")]
    hits = store.nearest(view, [1, 0, 0, 0], 9, ["title", "vector"], filters=CompoundFilter(type="or", filters=either))
    assert sorted(features["title"].string_val for *_, features in hits) == ["t3", "t8"]


def test_numbers_are_compared_as_numbers(store):
    """9 is less than 100."""
    view = store.made({"n": types.Int64}, vectors=[vector_field()])
    rows = [row(str(n), {"n": value("int64", n), "vector": vector([1, 0, 0, 0])}) for n in (9, 100, -5)]
    store.write(view, *rows)
    hits = store.nearest(view, [1, 0, 0, 0], 9, ["n", "vector"], filters=ComparisonFilter(type="lt", key="n", value=50))
    assert sorted(features["n"].int64_val for *_, features in hits) == [-5, 9]


def test_a_search_creates_nothing(store):
    """A view that nobody applied cannot be searched, and is not there afterwards."""
    view = view_of("never_searched", vectors=[vector_field()])
    before = store.collections()
    with pytest.raises(Exception, match="never_searched"):
        store.nearest(view, [1, 0, 0, 0], 3, ["vector"])
    assert store.collections() == before


def test_a_view_without_vectors_cannot_be_searched(ours):
    """Its placeholder is no vector of anybody's."""
    with pytest.raises(FeatureStoreError, match="has no vector to search by"):
        ours.nearest(ours.views["titles"], [1, 0], 3)
