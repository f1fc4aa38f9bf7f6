"""What the hot tier reads beside vectors: categories, prices and tags, of stores with and without them."""

import numpy as np
import pyarrow as pa

from feature_store.milvus_schema import ViewSchema
from serving.hot_tier import PROFILE_VIEW, Profiles, read_items
from tests.serving.world import stamps

FIELDS = {"category": pa.string(), "price": pa.float64()}
LISTS = {"tags": pa.list_(pa.string())}
TAGS = ["director:Agnès Varda", "year:1962"]


def store(core, fields, **columns):
    core.create_view(ViewSchema(PROFILE_VIEW, fields, key="item_id"))
    rows = {"item_id": ["a", "b"], "category": ["Drama", None], "price": [None, 2.5], **columns}
    core.upsert(PROFILE_VIEW, pa.table({**rows, "event_timestamp": stamps(2)}))


def test_profiles_have_categories_prices_and_tags(core):
    """What is not known of an item is told as such, and an item that is not there has nothing."""
    store(core, {**FIELDS, **LISTS}, tags=pa.array([TAGS, None], LISTS["tags"]))
    profiles = Profiles.scan(core)
    categories, prices = profiles.columns(["b", "a", "x"])
    assert categories == [None, "Drama", None]
    np.testing.assert_array_equal(prices, [2.5, np.nan, np.nan])
    assert profiles.tags_of(["b", "a", "x"]) == [[], TAGS, []]
    assert profiles.newest_us > 0


def test_a_store_from_before_there_were_tags_is_read(core):
    """A server that is newer than the last `feast apply` reads what there is, and the tags once they are added."""
    store(core, FIELDS)
    assert Profiles.scan(core).columns(["a"])[0] == ["Drama"]
    assert Profiles.scan(core).tags_of(["a"]) == [[]]
    assert read_items(core, ["a", "x"], []).category == ["Drama", None]
    core.drop_view(PROFILE_VIEW)
    store(core, {**FIELDS, **LISTS}, tags=pa.array([TAGS, None], LISTS["tags"]))
    assert Profiles.scan(core).tags_of(["a"]) == [TAGS]


def test_a_store_without_profiles_is_an_empty_one(core):
    """No view, no profiles, and no error."""
    assert Profiles.scan(core) == Profiles()
    assert read_items(core, ["a"], []).category == [None]
