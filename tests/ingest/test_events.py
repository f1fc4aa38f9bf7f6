import pyarrow.compute as pc
import pytest

from feature_store.event_log import EventLog, LoggedEvent
from feature_store.home import Home
from feature_store.tables import Tables
from ingest.errors import ManifestError
from ingest.events import drain, load_interactions

HEADER = "user_id,item_id,event_type,value,event_timestamp\n"


@pytest.fixture
def place(tmp_path):
    return Home(tmp_path / "home").create()


def write(tmp_path, rows):
    path = tmp_path / "events.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_interactions_are_loaded_once(tmp_path, place):
    """Events without ids are given stable ones: loading a file twice leaves each event once, sorted by user and time."""
    path = write(tmp_path, ["u2,a,click,,1997-01-02", "u1,b,rating,4.5,1997-01-03", "u1,a,,,1997-01-01"])
    assert load_interactions(place, path).written == 3
    load_interactions(place, path)
    table = Tables(place).read_interactions()
    assert table["user_id"].to_pylist() == ["u1", "u1", "u2"]
    assert table["item_id"].to_pylist() == ["a", "b", "a"]
    assert table["event_type"].to_pylist() == ["click", "rating", "click"]
    assert table["value"].to_pylist() == [None, 4.5, None]


def test_bad_events_are_quarantined(tmp_path, place):
    """Events without a user, an item or a time, or with a value that is no number, are refused with reasons."""
    path = write(
        tmp_path,
        [",a,click,,1997-01-01", "u,,click,,1997-01-01", "u,a,click,,", "u,a,click,much,1997-01-01", "u,a,click,,1"],
    )
    report = load_interactions(place, path)
    assert (report.rows, report.written, report.quarantined) == (5, 1, 4)
    codes = [refusal.code for refusal in report.refusals]
    assert codes == ["missing_user_id", "missing_item_id", "missing_event_timestamp", "bad_value"]


def test_how_an_item_was_shown_is_kept(tmp_path, place):
    """Device, impression, position and propensity of each event, where the file has them; what cannot be is refused with reasons."""
    path = tmp_path / "shown.csv"
    path.write_text(
        "user_id,item_id,event_timestamp,device,impression_id,request_id,position,propensity\n"
        "u,a,1997-01-01,phone,p1,r1,1,0.5\nu,b,1997-01-02,,,,,\nu,c,1997-01-03,,,,0,\nu,d,1997-01-03,,,,1.5,\n"
        f"u,e,1997-01-03,,,,,1.5\nu,f,1997-01-03,{'x' * 33},,,,\n"
    )
    report = load_interactions(place, path)
    assert [refusal.code for refusal in report.refusals] == [
        "bad_position",
        "bad_position",
        "bad_propensity",
        "bad_device",
    ]
    columns = ("device", "impression_id", "request_id", "position", "propensity")
    rows = Tables(place).read_interactions().select(columns).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("phone", "p1", "r1", 1, 0.5), (None,) * 5]


def test_a_missing_column_stores_nothing(tmp_path, place):
    """A file without a needed column is refused as a whole."""
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\nu,a\n")
    with pytest.raises(ManifestError, match="no column 'event_timestamp'"):
        load_interactions(place, path)
    assert Tables(place).read_interactions().num_rows == 0


def test_drain_moves_recorded_events_once(place):
    """What the server recorded reaches the interactions, each event once, also when a drain was cut off before it was noted."""
    log = EventLog(place.events)
    log.append([LoggedEvent(f"e{i}", "u", "a", "click", None, 1_000_000 + i) for i in range(5)])
    assert drain(place) == 5
    assert drain(place) == 0
    log.append([LoggedEvent("e5", "u", "a", "click", 2.0, 2_000_000, propensity=0.5, device="phone", position=4)])
    Tables(place).append_interactions(Tables(place).read_interactions())  # a drain that was killed before its mark
    assert drain(place) == 1
    log.close()
    table = Tables(place).read_interactions()
    assert sorted(table["event_id"].to_pylist()) == [f"e{i}" for i in range(6)]
    assert pc.sum(table["value"]).as_py() == 2.0
    last = table.to_pylist()[-1]
    assert (last["propensity"], last["device"], last["position"]) == (0.5, "phone", 4)


def test_drain_without_a_log_does_nothing(place):
    """No server ever ran: nothing to drain, and no log is made."""
    assert drain(place) == 0
    assert not place.events.exists()
