"""What `feast apply` may change of a view that holds rows, and what it must refuse."""

import numpy as np
import pyarrow as pa
import pytest
from milvus_rows import DIM, FIELDS, VALUES, rows, schema

from feature_store import milvus_schema
from feature_store.errors import SchemaDriftError
from feature_store.lease import Leases
from feature_store.milvus_schema import REBUILD_VARIABLE
from feature_store.rebuilding import NEW, OLD, rebuild, recover
from feature_store.view_changes import change_of, make

VIEW = "item_things"
IDS = [f"i{n:03d}" for n in range(60)]


@pytest.fixture
def leases(tmp_path):
    return Leases(tmp_path / "leases.db")


@pytest.fixture
def view(core, unit_vectors):
    """A view with sixty rows, one of them deleted, one with every feature set."""
    core.create_view(schema())
    core.upsert(VIEW, rows(IDS, unit_vectors(len(IDS), DIM), 10, created=7))
    core.upsert(VIEW, rows(["full"], unit_vectors(1, DIM), 11, **VALUES))
    core.delete(VIEW, ["i007"], np.array([20]))
    return core


def apply(core, wanted, leases):
    change = change_of(core, wanted, core.list_views())
    make(core, change, leases, 0.0)
    return change.kind


def content(core):
    """Everything readers can see of the view, and what is behind it."""
    ids = [*IDS, "full"]
    vectors, present, event = core.read_vectors(VIEW, ids, strong=True)
    return vectors.tolist(), present.tolist(), event.tolist(), core.read_columns(VIEW, ids, list(FIELDS), strong=True)


def test_a_view_is_created_then_unchanged_then_altered(core, leases):
    """A new view is created; the same definition changes nothing; search parameters and TTL change without touching a row."""
    assert apply(core, schema(index="HNSW"), leases) == "create"
    assert apply(core, schema(index="HNSW"), leases) == "unchanged"
    wanted = schema(index="HNSW", search_params={"ef": 99}, ttl_us=10**15)
    assert apply(core, wanted, leases) == "alter"
    assert core.describe_view(VIEW, refresh=True) == wanted


def test_an_added_feature_is_null_and_every_row_stays(view, leases, unit_vectors):
    """Rows, tombstones and both times survive; the new feature is null until rows bring it; an older late row stays hidden."""
    before = content(view)
    wanted = schema(fields={**FIELDS, "stock": pa.int32(), "labels": pa.list_(pa.string())})
    change = change_of(view, wanted, view.list_views())
    assert str(change) == f"{VIEW}: add features (labels, stock; 61 rows are copied, the next load fills them)"
    make(view, change, leases, 0.0)
    assert content(view) == before
    assert view.read_columns(VIEW, ["full"], ["stock", "labels"]) == {"stock": [None], "labels": [None]}
    assert (view.count(VIEW), view.count_rows(VIEW)) == (60, 61)
    late = rows(["i007"], unit_vectors(1, DIM), 15).append_column("stock", pa.array([1], pa.int32()))
    assert view.upsert(VIEW, late.append_column("labels", pa.array([["x"]]))).stale == 1
    assert not {VIEW + NEW, VIEW + OLD} & set(view.list_views())


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"index": "HNSW", "index_params": {"M": 8}}, "rebuild"),
        ({"metric": "IP"}, "rebuild"),
        ({"fields": {k: t for k, t in FIELDS.items() if k != "title"}}, "rebuild"),
        ({"fields": {**FIELDS, "price": pa.int64()}}, "make anew, with its deletions alone"),
        ({"dim": 2 * DIM}, "make anew, with its deletions alone"),
    ],
)
def test_drift_is_refused_with_the_command_that_mends_it(view, leases, monkeypatch, changes, kind):
    """Nothing changes until a person names the view; then its rows are copied, or dropped where they cannot fit."""
    before = content(view)
    with pytest.raises(SchemaDriftError, match=f"{REBUILD_VARIABLE}={VIEW} feast apply"):
        apply(view, schema(**changes), leases)
    assert change_of(view, schema(**changes), view.list_views(), strict=False).kind == "refuse"
    assert content(view) == before
    monkeypatch.setenv(REBUILD_VARIABLE, f"other, {VIEW}")
    assert apply(view, schema(**changes), leases) == kind
    assert view.describe_view(VIEW, refresh=True) == schema(**changes)
    assert view.count(VIEW) == (60 if kind == "rebuild" else 0)


def test_what_was_deleted_stays_deleted_in_a_view_made_anew(view, leases, monkeypatch, unit_vectors):
    """Rows of before do not fit another dim; a row that is older than a deletion is stale all the same, and a newer one is not."""
    monkeypatch.setenv(REBUILD_VARIABLE, VIEW)
    apply(view, schema(dim=2 * DIM), leases)
    assert (view.count(VIEW), view.count_rows(VIEW)) == (0, 1)
    late = rows(["i007", "i008"], unit_vectors(2, 2 * DIM), 15)
    assert view.upsert(VIEW, late).stale == 1
    assert view.read_vectors(VIEW, ["i007", "i008"], strong=True)[1].tolist() == [False, True]
    assert view.upsert(VIEW, rows(["i007"], unit_vectors(1, 2 * DIM), 21)).stored == 1


def test_a_view_of_another_format_is_made_anew(view, leases, monkeypatch):
    """Nothing can be told of its rows: the named view is emptied, as the refusal said, and marked to be loaded again."""
    view.drop_view(VIEW)
    with monkeypatch.context() as older:
        older.setattr(milvus_schema, "FORMAT", milvus_schema.FORMAT - 1)
        view.create_view(schema())
    with pytest.raises(SchemaDriftError, match=REBUILD_VARIABLE):
        apply(view, schema(), leases)
    monkeypatch.setenv(REBUILD_VARIABLE, VIEW)
    apply(view, schema(), leases)
    assert view.describe_view(VIEW, refresh=True) == schema()
    assert leases.has_added(VIEW)


def test_another_view_being_named_allows_nothing(view, leases, monkeypatch):
    """Only the named view may be rebuilt."""
    monkeypatch.setenv(REBUILD_VARIABLE, VIEW + "_v")
    with pytest.raises(SchemaDriftError):
        apply(view, schema(metric="L2"), leases)


def test_a_swap_that_ended_half_way_is_finished(view, leases):
    """Wherever a process died, the next `apply` finds all rows under the view's name and clears up."""
    before = content(view)
    view.rename_view(VIEW, VIEW + OLD)  # died between the two renames, the copy not there
    recover(view, VIEW)
    assert content(view) == before
    wanted = schema(fields={**FIELDS, "stock": pa.int32()})
    view.create_view(schema(VIEW + NEW))  # died while copying
    with leases.hold(VIEW) as lease:
        rebuild(view, wanted, lease)
    assert content(view) == before
    view.rename_view(VIEW, VIEW + NEW)  # died between the renames, the copy whole
    view.create_view(schema(VIEW + OLD))
    assert apply(view, wanted, leases) == "create"
    assert content(view) == before


def test_a_rebuild_tells_how_far_it_is(view, leases):
    """Progress goes up to the number of rows."""
    told = []
    with leases.hold(VIEW) as lease:
        assert rebuild(view, schema(metric="IP"), lease, lambda done, total: told.append((done, total))) == 61
    assert told[-1] == (61, 61)
