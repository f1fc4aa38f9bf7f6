"""Public sets become training sets of the same events in the same order."""

import warnings

import pyarrow.parquet as pq
import pytest

from benchmarks.training_sets import DIM, join, write_rows

# Feast and ibis warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")


def test_both_sides_make_the_same_training_set(tmp_path):
    """What is timed is the same work: random labels hit no version's very instant, so both see the same vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ibis
    write_rows(tmp_path, 3)
    try:
        results = [join(tmp_path, side, 100, 3) for side in ("ours", "stock")]
    finally:
        if ibis.options.default_backend is not None:
            ibis.options.default_backend.disconnect()
            ibis.options.default_backend = None
    order = [("thing_id", "ascending"), ("event_timestamp", "ascending")]
    ours, stock = (pq.read_table(tmp_path / f"{side}.parquet").sort_by(order) for side in ("ours", "stock"))
    vectors = ours["things__vector"].to_pylist()
    assert vectors == stock["things__vector"].to_pylist()
    assert {len(vector) for vector in vectors} == {DIM}
    assert all(result["seconds"] > 0 for result in results)
