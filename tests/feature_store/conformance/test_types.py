"""Types: what was written comes back, of every type that Feast has, with nulls as nulls."""

import json
import uuid
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import LISTS, Value, Value_pb2, few_examples, free_ids, row, types, value

INT32, INT64 = 2**31, 2**63
float32s = st.floats(width=32, allow_nan=False)
doubles = st.floats(allow_nan=False)
texts = st.text(max_size=40)
seconds = st.integers(-(10**10), 10**11)
# Name of a feature -> its Feast type, the slot of Feast's message, and the values that it may have.
SCALARS = {
    "text": (types.String, "string", texts),
    "document": (types.Json, "json", st.builds(json.dumps, st.dictionaries(texts, st.integers() | texts, max_size=3))),
    "uuid": (types.Uuid, "uuid", st.builds(str, st.uuids())),
    "time_uuid": (types.TimeUuid, "time_uuid", st.builds(lambda: str(uuid.uuid1()))),
    "amount": (types.Decimal, "decimal", st.builds(str, st.decimals(allow_nan=False, allow_infinity=False))),
    "raw": (types.Bytes, "bytes", st.binary(max_size=60)),
    "pdf": (types.PdfBytes, "bytes", st.binary(max_size=60)),
    "image": (types.ImageBytes, "bytes", st.binary(max_size=60)),
    "flag": (types.Bool, "bool", st.booleans()),
    "small": (types.Int32, "int32", st.integers(-INT32, INT32 - 1)),
    "large": (types.Int64, "int64", st.integers(-INT64, INT64 - 1)),
    "single": (types.Float32, "float", float32s),
    "double": (types.Float64, "double", doubles),
    "since": (types.UnixTimestamp, "unix_timestamp", seconds),
}
ARRAYS = {
    f"{name}_list": (types.Array(dtype), slot, st.lists(values, max_size=5))
    for name, (dtype, slot, values) in SCALARS.items()
    if name not in {"pdf", "image"}  # Feast's lists of bytes are of one kind
}
EVERY = SCALARS | ARRAYS


def fields_of(kinds):
    return {name: dtype for name, (dtype, *_) in kinds.items()}


def rows_of(kinds):
    """Batches of rows: of each feature a message with a value, or the one without."""
    one = st.fixed_dictionaries({name: st.none() | values for name, (_, _, values) in kinds.items()})
    return st.lists(one, min_size=5, max_size=20)


def messages(kinds, features):
    return {name: value(kinds[name][1], content) for name, content in features.items()}


@pytest.fixture(scope="module")
def views():
    """Views of this module by store and features."""
    return {}


def written_and_read(store, views, kinds, rows):
    """The rows as the store gives them back, in order."""
    # One view for all tests, but where a store cannot hold all types: there each test has a view of its own.
    made = kinds if store.name == "stock" else EVERY
    at = store.name, tuple(made)
    if at not in views:
        views[at] = store.made(fields_of(made))
    ids = free_ids(*(str(number) for number in range(len(rows))))
    store.write(views[at], *(row(name, features) for name, features in zip(ids, rows, strict=True)))
    return [features for _, features in store.read(views[at], ids, list(kinds))]


def only(*names):
    return {name: EVERY[name] for name in names}


def same(store, views, names, *rows):
    """Write rows of these features and compare every message with what comes back."""
    kinds = only(*names)
    wanted = [messages(kinds, dict(zip(names, contents, strict=True))) for contents in rows]
    assert written_and_read(store, views, kinds, wanted) == wanted


@given(data=st.data())
@few_examples
def test_every_type_comes_back_as_it_was_written(ours, views, data):
    """Scalars and lists of every type, any of them null, in any mixture."""
    rows = [messages(EVERY, features) for features in data.draw(rows_of(EVERY))]
    assert written_and_read(ours, views, EVERY, rows) == rows


def test_integers_keep_their_extremes(store, views):
    """From the smallest to the largest, and odd numbers beyond what a double can hold."""
    rows = [(-INT32, -INT64), (INT32 - 1, INT64 - 1), (0, 2**53 + 1), (-1, -(2**53) - 1)]
    same(store, views, ("small", "large"), *rows)


def test_floats_keep_every_bit(store, views):
    """Float32 and float64 come back exactly: the least and the greatest, negative zero, infinities."""
    singles = [0.1, -0.0, 1e-45, 3.4028234663852886e38, float("inf"), float("-inf")]
    doubles = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf")]
    rows = [(float(np.float32(a)), b) for a, b in zip(singles, doubles, strict=True)]
    same(store, views, ("single", "double"), *rows)


def test_a_nan_is_a_missing_value(ours, views):
    """As in pandas and Feast, NaN is how a number is missing; in a list it is kept."""
    kinds, nan = only("single", "double"), float("nan")
    rows = [{"single": value("float", nan), "double": value("double", nan)}]
    assert written_and_read(ours, views, kinds, rows) == [{"single": Value(), "double": Value()}]
    (found,) = written_and_read(ours, views, only("double_list"), [{"double_list": value("double", [1.0, nan])}])
    assert str(list(found["double_list"].double_list_val.val)) == "[1.0, nan]"


def test_booleans_are_booleans(store, views):
    """False is neither null nor 0."""
    same(store, views, ("flag",), (True,), (False,), (None,))


def test_bytes_are_bytes(store, views):
    """Every byte comes back, in pictures and documents too; no bytes are not null."""
    same(store, views, ("raw", "pdf", "image"), (bytes(range(256)), b"%PDF", b"\x89PNG"), (b"", b"\x00", None))


def test_timestamps_are_timestamps(store, views):
    """Before 1970 and after 2038, to the second, which is what Feast's message holds."""
    days = [datetime(1901, 2, 3, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)]
    same(store, views, ("since",), *((int(day.timestamp()),) for day in days))


def test_texts_of_other_kinds_keep_their_kind(store, views):
    """JSON, UUIDs and decimals come back as such, to the letter."""
    names = ("document", "uuid", "time_uuid", "amount")
    first = (
        '{"b": [1, 2.50], "a": null}',
        str(uuid.uuid4()),
        str(uuid.uuid1()),
        "3.14159265358979323846264338327950288",
    )
    same(store, views, names, first, ('"text"', str(uuid.uuid4()), str(uuid.uuid1()), "-0.00"))


def test_hostile_texts_are_texts(store, views):
    """What would end a literal, an expression, a line or a string is kept as it is; the empty text is not null."""
    hostile = [
        "",
        '"',
        "'",
        "\\",
        '\\"',
        "' or 1==1",
        "a\x00b",
        "\r\n\t",
        "{x}",
        "%",
        "\u2028",
        "日本 😀 ünï",
        "null",
        "\x1f",
    ]
    same(store, views, ("text",), *((text,) for text in hostile))


def test_lists_keep_order_and_duplicates(store, views):
    """A list comes back as it was, the empty one too."""
    names = (
        "text_list",
        "large_list",
        "single_list",
        "double_list",
        "flag_list",
        "raw_list",
        "since_list",
        "small_list",
    )
    full = (
        ["b", "a", "b", ""],
        [INT64 - 1, -INT64],
        [0.5, -0.5],
        [0.1, 0.1],
        [True, False],
        [b"\x00", b""],
        [5, -5],
        [7],
    )
    same(store, views, names, full, ([],) * len(names))


def test_nulls_are_null(store, views):
    """A scalar without a value comes back without one, whatever its type, beside values that look like nothing."""
    names = tuple(SCALARS)
    nothing = ("", "{}", "0" * 8, "0" * 8, "0", b"", b"", b"", False, 0, 0, 0.0, 0.0, 0)
    same(store, views, names, nothing, (None,) * len(names))


def test_null_lists_are_not_empty_lists(store, views):
    """A list that is missing and a list of nothing are told apart."""
    names = tuple(ARRAYS)
    same(store, views, names, ([],) * len(names), (None,) * len(names))


def test_a_feature_that_a_row_does_not_have_is_null(store, views):
    """Feast's rows may lack features; they are null then."""
    kinds = only("text", "large", "text_list")
    rows = [{"text": value("string", "a")}, {}]
    nothing = {"text": Value(), "large": Value(), "text_list": Value()}
    assert written_and_read(store, views, kinds, rows) == [{**nothing, "text": value("string", "a")}, nothing]


def nested(**fields):
    return Value_pb2.Map(val=fields)


COLLECTIONS = {
    "map": (types.Map, Value(map_val=nested(a=value("string", "x"), b=Value(map_val=nested(c=value("int64", 1)))))),
    "maps": (
        types.Array(types.Map),
        Value(map_list_val=Value_pb2.MapList(val=[nested(a=value("bool", True)), nested()])),
    ),
    "struct": (types.Struct({"name": types.String}), Value(struct_val=nested(name=value("string", "n")))),
    "structs": (
        types.Array(types.Struct({"name": types.String})),
        Value(struct_list_val=Value_pb2.MapList(val=[nested(name=value("string", "n"))])),
    ),
    "nested": (
        types.Array(types.Array(types.Int64)),
        Value(list_val=Value_pb2.RepeatedValue(val=[value("int64", [1, 2]), value("int64", [])])),
    ),
    "zoned": (
        types.ZonedTimestamp,
        Value(zoned_timestamp_val=Value_pb2.ZonedTimestamp(unix_timestamp=5, zone="Asia/Tokyo")),
    ),
    "texts": (types.Set(types.String), Value(string_set_val=Value_pb2.StringSet(val=["b", "a"]))),
    "numbers": (types.Set(types.Int64), Value(int64_set_val=Value_pb2.Int64Set(val=[3, -1]))),
    "singles": (types.Set(types.Float32), Value(float_set_val=Value_pb2.FloatSet(val=[0.5]))),
}


def test_maps_structs_sets_and_nested_lists_come_back(store):
    """Feast's collections are kept whole; `feast init` makes a repository with some of them."""
    view = store.made({name: dtype for name, (dtype, _) in COLLECTIONS.items()})
    full = {name: message for name, (_, message) in COLLECTIONS.items()}
    store.write(view, row("full", full), row("nothing", {}))
    assert [features for _, features in store.read(view, ["full", "nothing"])] == [full, dict.fromkeys(full, Value())]


def test_no_type_is_left_out():
    """Every type that Feast has is in a test above, but the invalid one, and the map that Feast cannot list."""
    covered = {str(dtype) for dtype, *_ in (*SCALARS.values(), *COLLECTIONS.values())}
    assert {str(t) for t in types.SUPPORTED_BASE_TYPES} - covered == {"Invalid"}
    assert {slot for _, slot, _ in ARRAYS.values()} == set(LISTS)
