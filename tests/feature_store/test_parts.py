"""How parts are written: what is compressed, and that what is read is what was written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.parts import ZERO_ROWS, ensure_zero_rows, list_parts, read_parts, write_part
from feature_store.schemas import ITEMS, conform


def test_vectors_are_not_compressed_and_all_else_is(tmp_path, rng):
    """Vectors' bits are as good as random: a codec would cost time at each load and save next to nothing."""
    vectors = rng.standard_normal((100, 8)).astype(np.float32)
    table = pa.table(
        {
            "item_id": [f"i{n}" for n in range(100)],
            "vector": pa.array(list(vectors), pa.list_(pa.float32())),
            "score": pa.array(vectors[:, 0]),
            "tags": pa.array([["a", "b"]] * 100, pa.list_(pa.string())),
        }
    )
    path = write_part(tmp_path, table)
    group = pq.read_metadata(path).row_group(0)
    codecs = {(c := group.column(at)).path_in_schema: c.compression for at in range(group.num_columns)}
    assert codecs == {
        "item_id": "ZSTD",
        "vector.list.element": "UNCOMPRESSED",
        "score": "ZSTD",
        "tags.list.element": "ZSTD",
    }
    assert pq.read_table(path).equals(table)


def test_parts_from_before_there_were_tags_still_read(tmp_path):
    """A part that lacks the column reads as null beside one that has it, and the part without rows is renewed so that SQL finds it."""
    before = pa.schema([field for field in ITEMS if field.name != "tags"], metadata=ITEMS.metadata)
    write_part(tmp_path, before.empty_table(), ZERO_ROWS)
    time = pa.array([1], pa.timestamp("us", "UTC"))
    old = conform(pa.table({"item_id": ["old"], "event_timestamp": time}), before)
    new = conform(pa.table({"item_id": ["new"], "event_timestamp": time, "tags": [["year:1962"]]}), ITEMS)
    kept = [write_part(tmp_path, table).read_bytes() for table in (old, new)]
    ensure_zero_rows(tmp_path, ITEMS)
    zero, *parts = list_parts(tmp_path)
    assert (zero.name, pq.read_schema(zero).names) == (ZERO_ROWS, ITEMS.names)
    assert [part.read_bytes() for part in parts] == kept
    rows = pa.concat_tables(read_parts([zero, *parts], ITEMS)).to_pylist()
    assert {row["item_id"]: row["tags"] for row in rows} == {"old": None, "new": ["year:1962"]}
    stamp = zero.stat().st_mtime_ns
    ensure_zero_rows(tmp_path, ITEMS)
    assert zero.stat().st_mtime_ns == stamp
