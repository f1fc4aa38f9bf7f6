"""Views: what `apply` makes, changes and refuses, what `plan` tells beforehand, and what is dropped."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pymilvus.grpc_gen import milvus_pb2
from stores import (
    MISSING,
    THING,
    LabelView,
    Registry,
    StreamFeatureView,
    Value,
    at,
    free_name,
    push_source,
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

from feature_store.errors import FeatureStoreError, SchemaDriftError

THREE = {  # index -> (dim, metric, tags)
    "FLAT": (4, "COSINE", {"index": "FLAT"}),
    "HNSW": (
        8,
        "IP",
        {"index": "HNSW", "index_params": '{"M": 8, "efConstruction": 64}', "search_params": '{"ef": 50}'},
    ),
    "AUTOINDEX": (16, "L2", {"index": "AUTOINDEX"}),
}


def test_views_of_three_dims_metrics_and_indexes_live_in_one_database(store, rng):
    """Each is written, read and searched by its own dim and metric."""
    views = {
        index: view_of(free_name(index.lower()), vectors=[vector_field("vector", dim, metric)], tags=tags)
        for index, (dim, metric, tags) in THREE.items()
    }
    store.apply(*views.values())
    for index, (dim, _, _) in THREE.items():
        vectors = unit(rng.standard_normal((20, dim)))
        store.write(views[index], *(row(f"i{n}", {"vector": vector(v)}) for n, v in enumerate(vectors)))
        messages = store.features(views[index], "vector", ["i3", "i7"])
        assert [list(message.float_list_val.val) for message in messages] == vectors[[3, 7]].tolist()
        ((_, nearest, _),) = store.nearest(views[index], vectors[5], 1, ["vector"])
        assert nearest.entity_values[0].string_val == "i5"


def test_an_index_is_built_as_its_tags_say(ours):
    """Kind, metric and build parameters are those that the server reports."""
    _, metric, tags = THREE["HNSW"]
    view = ours.made(vectors=[vector_field("vector", 8, metric)], tags=tags)
    core = ours.online.core(ours.config)
    reply = core.channel.call("DescribeIndex", milvus_pb2.DescribeIndexRequest(collection_name=view.name))
    (described,) = reply.index_descriptions
    told = {pair.key: pair.value for pair in described.params}
    assert (told["index_type"], told["metric_type"]) == ("HNSW", "IP")
    assert '"M": 8' in str(told) or told.get("M") == "8"
    assert core.describe_view(view.name, refresh=True).search_options(10)["ef"] == 50


def test_a_view_is_dropped_by_its_exact_name(store):
    """Views whose names begin, continue or end the dropped one's stay, with their rows."""
    base = free_name("item")
    names = [base, f"{base}_text", f"{base}_v2", f"x_{base}", base.upper()]
    views = [view_of(name, {"title": types.String}) for name in names]
    store.apply(*views)
    for view in views:
        store.write(view, row("a", title(view.name)))
    store.apply(*views[1:], drop=views[:1])
    assert [titles_of(store, view, ["a"]) for view in views[1:]] == [[view.name] for view in views[1:]]
    assert sum(name.endswith(base) for name in store.collections()) == 1


def test_teardown_drops_the_views_that_it_is_given(lite_store):
    """And no other; a second time it finds nothing to do."""
    gone, kept = lite_store.made({"title": types.String}), lite_store.made({"title": types.String})
    for _ in range(2):
        lite_store.online.teardown(lite_store.config, [gone], [THING])
        assert gone.name not in lite_store.collections()
        assert kept.name in lite_store.collections()


def test_a_dropped_view_comes_back_empty(store):
    """A view that is made again under the same name has no rows of before."""
    view = store.made({"title": types.String})
    store.write(view, row("a", title("before")))
    store.apply(drop=[view])
    store.apply(view)
    assert store.read(view, ["a"]) == [MISSING]


def test_applying_twice_changes_nothing(store):
    """The same definition again keeps the rows, in this process and in another."""
    view = store.made({"title": types.String}, vectors=[vector_field()])
    store.write(view, row("a", {**title("A"), "vector": vector([1, 0, 0, 0])}))
    before = store.collections()
    store.apply(view)
    store.reopened().apply(view)
    assert store.collections() == before
    assert titles_of(store, view, ["a"]) == ["A"]


def changed(view, fields, **options):
    """The view as a new definition has it."""
    return view_of(view.name, fields, **options)


def test_an_added_feature_is_added_and_rows_survive(store):
    """Old rows have the new feature as null, keep their times, vectors and deletes, and new rows have it."""
    view = store.made({"title": types.String}, vectors=[vector_field()])
    axis = {"vector": vector([1, 0, 0, 0])}
    store.write(view, row("a", {**title("A"), **axis}, at(0)))
    wider = changed(view, {"title": types.String, "tags": types.Array(types.String)}, vectors=[vector_field()])
    store.apply(wider)
    assert store.read(wider, ["a"], ["title", "tags"]) == [(at(0), {**title("A"), "tags": Value()})]
    tags = {"tags": value("string", ["x"])}
    store.write(
        wider, row("a", {**title("late"), **tags, **axis}, at(-1)), row("b", {**title("B"), **tags, **axis}, at(1))
    )
    assert store.read(wider, ["a", "b"], ["title", "tags"]) == [
        (at(0), {**title("A"), "tags": Value()}),
        (at(1), {**title("B"), **tags}),
    ]


def test_a_delete_outlives_an_added_feature(lite_store):
    """What was deleted stays so when the view is copied."""
    view = lite_store.made({"title": types.String})
    lite_store.online.delete(lite_store.config, view, ["a"], at(1))
    wider = changed(view, {"title": types.String, "stock": types.Int64})
    lite_store.apply(wider)
    lite_store.write(wider, row("a", title("old"), at(0)))
    assert lite_store.read(wider, ["a"]) == [MISSING]


STORED = {"title": types.String, "stock": types.Int64}
DRIFTS = {
    "type": ({"title": types.String, "stock": types.Float64}, {}, "fields", "triptych index drop"),
    "removed": ({"title": types.String}, {}, "fields", "triptych index rebuild"),
    "dim": (STORED, {"vectors": [vector_field(dim=8)]}, "dim: stored 4, defined 8", "triptych index drop"),
    "metric": (STORED, {"vectors": [vector_field(metric="L2")]}, "metric: stored 'COSINE', defined 'L2'", "rebuild"),
    "index": (STORED, {"tags": {"index": "HNSW"}}, "index: stored 'FLAT', defined 'HNSW'", "triptych index rebuild"),
    "vector": (STORED, {"vectors": [vector_field("other")]}, "vector_field", "triptych index drop"),
}


@pytest.fixture
def drifting(ours):
    """A view with one row."""
    view = ours.made(STORED, vectors=[vector_field()])
    ours.write(view, row("a", {**title("A"), "stock": value("int64", 1), "vector": vector([1, 0, 0, 0])}))
    return view


def test_drift_fails_naming_it_and_its_remedy_and_changes_nothing(ours, drifting):
    """A changed type, dim, metric or index: the error says what was stored and what is defined, and no view is touched."""
    stored = ours.read(drifting, ["a"])
    for fields, options, what, remedy in DRIFTS.values():
        new = view_of(free_name("new"), {"title": types.String})
        definition = changed(drifting, fields, **{"vectors": [vector_field()], **options})
        with pytest.raises(SchemaDriftError) as failed:
            ours.apply(new, definition, drop=[ours.views["titles"]])
        assert all(text in str(failed.value) for text in (drifting.name, what, remedy))
        assert new.name not in ours.collections()
        assert ours.views["titles"].name in ours.collections()
        assert ours.read(drifting, ["a"]) == stored


@pytest.mark.parametrize("kind", ["dim", "metric"])
def test_a_changed_vector_is_not_ignored(store, kind):
    """Any store must say that stored vectors are not what the definition says, at the latest when it writes."""
    view = store.made(vectors=[vector_field()])
    store.write(view, row("a", {"vector": vector([1, 0, 0, 0])}))
    options = DRIFTS[kind][1]
    definition = changed(view, None, **options)
    with pytest.raises(Exception, match=kind):
        store.apply(definition)


def test_a_changed_ttl_and_search_parameters_take_effect_at_once(ours):
    """They are no drift: rows do not depend on them."""
    view = ours.made({"title": types.String}, vectors=[vector_field()])
    when = datetime.now(UTC) - timedelta(hours=2)
    ours.write(view, row("a", {**title("A"), "vector": vector([1, 0, 0, 0])}, when))
    for ttl, wanted in ((timedelta(hours=1), [None]), (timedelta(hours=3), ["A"])):
        soft = changed(view, {"title": types.String}, vectors=[vector_field()], ttl=ttl, tags={"search_params": "{}"})
        ours.apply(soft)
        assert titles_of(ours, soft, ["a"]) == wanted


def planned(ours, capsys, *views, **others):
    """What `plan` prints, by view."""
    registry = Registry(feature_views=[view.to_proto() for view in views], **others)
    capsys.readouterr()
    assert ours.online.plan(ours.config, registry) == []
    lines = [line.removeprefix("Milvus: ") for line in capsys.readouterr().out.splitlines()]
    return dict(line.split(": ", 1) for line in lines)


def test_plan_tells_what_apply_would_do(ours, drifting, capsys):
    """New, unchanged, added to, refused with the reason; nothing is changed by telling."""
    new = view_of(free_name("new"), STORED, vectors=[vector_field()])
    before = ours.collections()
    assert "create" in planned(ours, capsys, new)[new.name]
    assert planned(ours, capsys, drifting)[drifting.name] == "unchanged"
    wider = changed(drifting, {**STORED, "more": types.Bool}, vectors=[vector_field()])
    told = planned(ours, capsys, wider)[drifting.name]
    assert "add features" in told
    assert "more" in told
    assert "1 rows" in told
    narrower = changed(drifting, STORED, vectors=[vector_field(dim=8)])
    assert "dim: stored 4, defined 8" in planned(ours, capsys, narrower)[drifting.name]
    assert ours.collections() == before
    offline = view_of(free_name("offline"), STORED, online=False)
    assert planned(ours, capsys, offline) == {}


def test_plan_knows_views_of_every_kind(ours, capsys):
    """Stream views and label views are told too."""
    label = LabelView(name=free_name("label"), entities=[THING], schema=view_of("v", STORED).schema)
    stream = StreamFeatureView(
        name=free_name("stream"),
        entities=[THING],
        schema=view_of("v", STORED).schema,
        source=push_source("pushed"),
        ttl=timedelta(0),
    )
    told = planned(ours, capsys, stream_feature_views=[stream.to_proto()], label_views=[label.to_proto()])
    assert {name: text.split()[0] for name, text in told.items()} == {stream.name: "create", label.name: "create"}


def test_label_views_are_stored_too(store):
    """Feast's labels are written and read as features are."""
    label = LabelView(name=free_name("label"), entities=[THING], schema=view_of("v", {"title": types.String}).schema)
    store.apply(label)
    store.write(label, row("a", title("A")))
    assert titles_of(store, label, ["a"]) == ["A"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tags": {"index": "IVF_FLAT"}}, "IVF_FLAT"),
        ({"tags": {"index": "HNSW", "index_params": '{"nlist": 5}'}}, "nlist"),
        ({"tags": {"index_params": "[]"}}, "must be a JSON object"),
        ({"tags": {"search_params": "{"}}, "must be a JSON object"),
        ({"vectors": [vector_field(metric="HAMMING")]}, "HAMMING"),
        ({"vectors": [vector_field(dim=1)]}, "at least 2"),
    ],
    ids=["index", "parameter", "list", "json", "metric", "dim"],
)
def test_a_definition_that_cannot_be_made_is_refused(ours, options, why):
    """The error names the view and what is wrong with it, and nothing is made."""
    view = view_of(free_name("wrong"), **{"vectors": [vector_field()], **options})
    with pytest.raises(FeatureStoreError, match=why) as refused:
        ours.apply(view)
    assert view.name in str(refused.value)
    assert view.name not in ours.collections()


def test_searches_of_hnsw_find_what_exact_ones_do(ours, rng):
    """With the default parameters an HNSW view of few rows finds the exact neighbours."""
    vectors = unit(rng.standard_normal((300, 8)))
    views = [ours.made(vectors=[vector_field(dim=8)], tags={"index": index}) for index in ("FLAT", "HNSW")]
    for view in views:
        ours.write(view, *(row(f"i{n}", {"vector": vector(v)}) for n, v in enumerate(vectors)))
    flat, hnsw = (ours.online.search(ours.config, view, vectors[:10], 10).ids for view in views)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(flat, hnsw, strict=True)])
    assert overlap > 0.95
