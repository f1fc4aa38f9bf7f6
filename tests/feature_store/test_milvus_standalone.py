"""The same core on a real Milvus standalone server: what differs between servers (nulls, order, consistency) is walked through once."""

import numpy as np
import pyarrow as pa
import pytest
from milvus_rows import DIM, FIELDS, HARD_IDS, VALUES, rows, schema

from feature_store.errors import RefusedRowsError, SchemaDriftError, ViewNotFoundError
from feature_store.milvus_core import MilvusCore, Written

VIEW = "item_things"


@pytest.fixture(scope="module")
def core(standalone_uri):
    with MilvusCore(standalone_uri) as connection:
        connection.create_view(schema())
        yield connection


@pytest.mark.timeout(120)
def test_rows_on_a_standalone_server(core, unit_vectors):
    """Vectors, types, nulls, order, newest-wins, tombstones, search, scan, count and flush are what they are on the embedded one."""
    vectors = unit_vectors(len(HARD_IDS), DIM)
    assert core.upsert(VIEW, rows(HARD_IDS, vectors, 10, created=1, **VALUES)) == Written(len(HARD_IDS), 0)
    asked = [*reversed(HARD_IDS), "missing"]
    got, present, event = core.read_vectors(VIEW, asked)
    assert (present.tolist(), set(event[:-1].tolist())) == ([True] * len(HARD_IDS) + [False], {10})
    np.testing.assert_array_equal(got[:-1], vectors[::-1])
    assert core.read_columns(VIEW, ["plain"], list(FIELDS)) == {name: [value] for name, value in VALUES.items()}

    assert core.upsert(VIEW, rows(["plain"], vectors[1:2], 9, created=99)) == Written(0, 1)
    assert core.upsert(VIEW, rows(["plain"], vectors[1:2], 10, created=2)) == Written(1, 0)
    assert set(map(tuple, core.read_columns(VIEW, ["plain"], list(FIELDS)).values())) == {(None,)}
    assert core.delete(VIEW, ["%"], np.array([11])) == Written(1, 0)
    assert core.upsert(VIEW, rows(["%"], vectors[:1], 10, created=99)) == Written(0, 1)

    assert core.count(VIEW) == len(HARD_IDS) - 1
    core.flush(VIEW)
    live = sorted(set(HARD_IDS) - {"%"}, key=lambda text: text.encode())
    table = pa.Table.from_batches(core.scan(VIEW, ["vector", "tags"], batch=4))
    assert table["entity_id"].to_pylist() == live
    found = core.search(VIEW, vectors[2:3], 20, fields=["title"])
    assert (found.ids[0][0], set(found.ids[0]), found.fields["title"][0][0]) == (
        HARD_IDS[2],
        set(live),
        VALUES["title"],
    )
    assert core.search(VIEW, vectors[2:3], 20, where="price > 99").ids == [[]]


def test_refusals_on_a_standalone_server(core, unit_vectors):
    """Drift, wrong rows and missing views are the same errors as on the embedded one."""
    with pytest.raises(SchemaDriftError, match="dim: stored 8, defined 16"):
        core.create_view(schema(dim=16))
    with pytest.raises(RefusedRowsError, match="'broken': the vector's norm is not 1"):
        core.upsert(VIEW, rows(["broken"], unit_vectors(1, DIM) * 2, 1))
    with pytest.raises(ViewNotFoundError, match="triptych materialize"):
        core.read_vectors("item_nothing", ["a"])
    assert not core.drop_view("item_nothing")
