import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import ManifestError, RowError
from ingest.records import RecordFile, id_of, number_of, timestamp_of

ROWS = [{"item_id": "a", "title": "one"}, {"item_id": "b", "title": "two, with a comma"}]


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        path.write_text('item_id,title\na,one\nb,"two, with a comma"\n')
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    """CSV, JSON Lines and Parquet files of the same records read alike, are counted and name their columns."""
    records = RecordFile(write(tmp_path / f"m{ending}"))
    assert list(records) == [(1, ROWS[0]), (2, ROWS[1])]
    assert records.count() == 2
    assert records.columns() == ["item_id", "title"]


def test_mapping_renames_columns(tmp_path):
    """A file with other column names is read under ours."""
    path = tmp_path / "m.csv"
    path.write_text("sku,name\na,one\n")
    records = RecordFile(path, {"sku": "item_id", "name": "title"})
    records.require("item_id")
    assert list(records) == [(1, {"item_id": "a", "title": "one"})]


def test_missing_column_is_named_with_the_remedy(tmp_path):
    """A missing column's error says which columns there are and how to map one."""
    path = tmp_path / "m.csv"
    path.write_text("sku,name\na,one\n")
    with pytest.raises(ManifestError, match=r"no column 'item_id'; it has sku, name.*--map"):
        RecordFile(path).require("item_id")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.parquet", b"item_id,title\na,one\n", "its content is csv"),
        ("m.csv", b"PAR1\x00\x01", "its content is parquet"),
        ("m.csv", b'{"item_id": "a"}\n', "its content is jsonl"),
        ("m.jsonl", b"item_id,title\na,one\n", "its content is csv"),
        ("m.jsonl", b'[{"item_id": "a"}]', "its content is a JSON array"),
        ("m.csv", b"item_id\n\x00\x00\x00\n", "its content is binary data"),
        ("m.csv", b"item_id,title\na,caf\xe9 latin-1\n", "its content is not UTF-8 text"),
        ("m.csv", b"", "its content is empty"),
        ("m.parquet", b"PAR1 and nothing more", "not a readable Parquet file"),
        ("m.xlsx", b"PK", "is none of .csv, .jsonl"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, name, content, said):
    """A file whose content does not fit its ending is refused as a whole, with what it really is."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        RecordFile(tmp_path / name)


@pytest.mark.parametrize("before", [0, 10_000])
def test_a_null_character_in_a_text_is_a_matter_of_that_text(tmp_path, before):
    """Wherever it stands: cleaning drops it with other control characters."""
    path = tmp_path / "m.csv"
    path.write_text(
        "item_id,title\n"
        + "a,a long text\n" * before
        + "b,nu\0ll in a text among others that are as long as texts are wont to be\n"
        + "c,d\n" * 20
    )
    assert dict(RecordFile(path))[before + 1]["title"].startswith("nu\0ll")


def test_missing_file_is_named(tmp_path):
    """A path that is not there is in the error."""
    with pytest.raises(ManifestError, match=r"nowhere\.csv: no such file"):
        RecordFile(tmp_path / "nowhere.csv")


def test_ragged_and_broken_rows_are_errors_of_their_own(tmp_path):
    """A row with another number of fields, or broken JSON, is a row's error; its neighbours are read."""
    ragged = tmp_path / "m.csv"
    ragged.write_text("item_id,title\na,one\nb,two,three\nc,four\n")
    rows = dict(RecordFile(ragged))
    assert isinstance(rows[2], RowError)
    assert rows[2].code == "wrong_field_count"
    assert rows[3] == {"item_id": "c", "title": "four"}
    broken = tmp_path / "m.jsonl"
    broken.write_text('{"item_id": "a"}\n{"item_id": \n[1]\n{"item_id": "d"}\n')
    kinds = [row.code if isinstance(row, RowError) else row["item_id"] for _, row in RecordFile(broken)]
    assert kinds == ["a", "bad_json", "bad_json", "d"]


def test_a_field_of_a_million_characters_is_read(tmp_path):
    """A very long field does not end the run: whether it is too long is for its modality to say."""
    path = tmp_path / "m.csv"
    path.write_text("item_id,title\na," + "x" * 1_000_000 + "\n")
    assert len(dict(RecordFile(path))[1]["title"]) == 1_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1997-09-20T03:05:10Z", 874724710_000000),
        ("1997-09-20T05:05:10+02:00", 874724710_000000),
        ("1997-09-20 03:05:10", 874724710_000000),
        ("874724710", 874724710_000000),
        (874724710.25, 874724710_250000),
        (datetime(1997, 9, 20, 3, 5, 10, tzinfo=UTC), 874724710_000000),
        ("", None),
        (None, None),
    ],
)
def test_timestamps_are_microseconds_utc(value, expected):
    """ISO 8601 with or without a zone, epoch seconds and datetimes are the same instant to the microsecond."""
    assert timestamp_of({"t": value}, "t") == expected


@pytest.mark.parametrize("value", ["yesterday", "874724710123", "nan", "1997-13-01"])
def test_bad_timestamps_name_the_value(value):
    """What is no instant, or ambiguous (milliseconds), is refused with the value."""
    with pytest.raises(RowError, match=value):
        timestamp_of({"t": value}, "t")


@pytest.mark.parametrize("value", ["", "  ", "x" * 129, "ä" * 65, "a\nb", None])
def test_bad_ids_are_refused(value):
    """Ids are 1 to 128 bytes of printable text."""
    with pytest.raises(RowError):
        id_of({"item_id": value}, "item_id")


@pytest.mark.parametrize("value", ["free", "inf", "nan"])
def test_numbers_are_finite(value):
    """A price that is not a finite number is refused; an empty one is none."""
    with pytest.raises(RowError):
        number_of({"price": value}, "price")
    assert number_of({"price": ""}, "price") is None


def test_text_in_another_encoding_is_named_wherever_it_stands(tmp_path):
    """A Latin-1 export of many kilobytes is refused by name, whether the first odd character stands early or late."""
    early, late = tmp_path / "early.csv", tmp_path / "late.csv"
    early.write_bytes(b"item_id,title\n" + b"a,caf\xe9\n" * 2_000)
    late.write_bytes(b"item_id,title\n" + b"a,plain\n" * 2_000 + b"a,caf\xe9\n")
    with pytest.raises(ManifestError, match="not UTF-8 text"):
        RecordFile(early)
    with pytest.raises(ManifestError, match="save it as UTF-8"):
        list(RecordFile(late))


def test_a_character_across_the_sniffed_head_is_no_error(tmp_path):
    """UTF-8 whose multi-byte character straddles the first four kilobytes is read."""
    path = tmp_path / "m.csv"
    path.write_text("item_id,title\na," + "é" * 4_000 + "\n", encoding="utf-8")
    assert len(dict(RecordFile(path))[1]["title"]) == 4_000


def test_a_damaged_parquet_page_is_a_manifest_error(tmp_path):
    """A Parquet file whose pages are overwritten is refused by name, not by a traceback."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"item_id": [str(i) for i in range(1_000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(bytes(data))
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        list(RecordFile(path))
