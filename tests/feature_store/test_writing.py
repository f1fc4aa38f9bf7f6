"""The one writer path: how requests are cut, and what is checked before the first of them."""

import numpy as np
import pyarrow as pa
import pytest
from milvus_rows import DIM, rows, schema, times

from feature_store import writing
from feature_store.errors import RefusedRowsError, SchemaDriftError
from feature_store.lease import Leases
from feature_store.milvus_schema import ViewSchema

VIEW = "item_things"


def test_long_texts_are_cut_into_requests_that_the_server_takes(core, monkeypatch):
    """Rows whose texts are far larger than their vectors arrive all the same, each once."""
    sizes = []
    send = core.channel.start_upsert
    monkeypatch.setattr(writing, "MAX_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(core.channel, "start_upsert", lambda r, t: sizes.append(len(r)) or send(r, t))
    core.create_view(ViewSchema("item_texts", {"text": pa.string()}))
    ids = [f"i{n:03d}" for n in range(300)]
    texts = [f"{n:04d}" * 5_000 for n in range(300)]
    table = pa.table({"entity_id": ids, "text": texts, "event_timestamp": times(np.full(300, 5))})
    assert core.upsert("item_texts", table).stored == 300
    assert max(sizes) <= 1 << 20
    assert core.read_columns("item_texts", ids, ["text"], strong=True)["text"] == texts


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"title": "x" * 65_536}, "title has more than 65,535 bytes"),
        ({"raw": b"x" * 49_152}, "raw has more than"),
        ({"tags": ["x"] * 4_097}, "tags has more than 4,096 values"),
        ({"tags": ["x", None]}, "tags has a null in its list"),
        ({"tags": ["y", "x" * 65_536]}, "tags has more than 65,535 bytes"),
    ],
)
def test_nothing_is_written_where_a_late_row_cannot_be_stored(core, unit_vectors, monkeypatch, bad, why):
    """The last row of many requests refuses them all, and is named."""
    monkeypatch.setattr(writing, "WRITE_ROWS_PER_REQUEST", 10)
    core.create_view(schema())
    fine = rows([f"i{n}" for n in range(50)], unit_vectors(50, DIM), 1)
    with pytest.raises(RefusedRowsError, match=why) as error:
        core.upsert(VIEW, pa.concat_tables([fine, rows(["last"], unit_vectors(1, DIM), 1, **bad)]))
    assert error.value.keys == ["last"]
    assert core.count(VIEW) == 0


def test_the_longest_values_that_fit_are_stored(core, unit_vectors):
    """A text of 65,535 bytes, bytes of 49,149, a list of 4,096 values."""
    core.create_view(schema())
    values = {"title": "x" * 65_535, "raw": b"x" * 49_149, "numbers": list(range(4_096))}
    core.upsert(VIEW, rows(["a"], unit_vectors(1, DIM), 1, **values))
    got = core.read_columns(VIEW, ["a"], list(values), strong=True)
    assert {name: column[0] for name, column in got.items()} == values


@pytest.mark.parametrize("name", ["created", "deleted", "event_timestamp"])
def test_a_feature_cannot_have_the_name_of_a_rows_own_column(name):
    """Such a view could never be written: its definition says so."""
    with pytest.raises(SchemaDriftError, match="reserved"):
        ViewSchema("v", {name: pa.int64()})


def test_leases_of_two_stores_are_two(tmp_path):
    """The same view on two servers has a writer on each, and a late write to one is not mended by a load of the other."""
    one, other = (Leases(tmp_path / "leases.db", store=name) for name in ("http://one/", "http://other/"))
    with one.hold("v"), other.hold("v"):
        one.remember_late("v", 1)
        assert (one.has_late("v"), other.has_late("v")) == (True, False)
        other.forget_late("v")
        assert one.has_late("v")
