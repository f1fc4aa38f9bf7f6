"""How parts are written: what is compressed, and that what is read is what was written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.parts import write_part


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
