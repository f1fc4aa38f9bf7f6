"""A real catalogue of interactions: MovieLens-100K, where `TRIPTYCH_DATA` points at the folder that holds it."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_store.tables import Tables
from ingest.events import load_interactions
from ingest.users import build_users

DATA = Path(os.environ.get("TRIPTYCH_DATA", "/nonexistent")) / "movielens-100k" / "ml-100k.inter"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="TRIPTYCH_DATA has no movielens-100k")
EVENTS, USERS, ITEMS = 100_000, 943, 1_682
FIRST_US, LAST_US = 874_724_710_000_000, 893_286_638_000_000  # September 1997 to April 1998


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """All interactions in the tables, and histories built from them."""
    from feature_store.home import Home

    home = Home(tmp_path_factory.mktemp("movielens") / "home")
    path = home.root.parent / "interactions.csv"
    rows = [line.split("\t") for line in DATA.read_text().splitlines()[1:]]
    lines = [f"{user},{item},rating,{rating},{timestamp}" for user, item, rating, timestamp in rows]
    path.write_text("user_id,item_id,event_type,value,event_timestamp\n" + "\n".join(lines) + "\n")
    return home, load_interactions(home, path), build_users(home)


def test_every_rating_of_1997_is_loaded(loaded):
    """All 100,000 ratings arrive, none twice, with their own times; tied times are kept apart by their items."""
    home, report, _ = loaded
    table = Tables(home).read_interactions()
    assert (report.written, report.quarantined, table.num_rows) == (EVENTS, 0, EVENTS)
    times = table["event_timestamp"].cast(pa.int64())
    assert (pc.min(times).as_py(), pc.max(times).as_py()) == (FIRST_US, LAST_US)
    assert len(pc.unique(table["item_id"])) == ITEMS


def test_every_user_has_a_history_that_ends_with_their_last_event(loaded):
    """943 histories of at most 100 events, oldest first, dated by the newest event of each user."""
    home, _, built = loaded
    history = Tables(home).read_user_history()
    assert (built.users, history.num_rows) == (USERS, USERS)
    table = Tables(home).read_interactions()
    last = table.group_by("user_id").aggregate([("event_timestamp", "max")]).sort_by("user_id")
    assert history["event_timestamp"].to_pylist() == last["event_timestamp_max"].to_pylist()
    times = history["timestamps_us"].to_pylist()
    assert max(map(len, times)) == 100
    assert all(np.all(np.diff(row) >= 0) for row in times)
