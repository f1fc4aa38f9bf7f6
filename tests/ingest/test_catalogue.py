import json

import pytest

from ingest.catalogue import open_manifest, read_items
from ingest.errors import ManifestError
from ingest.quarantine import Quarantine


def read(tmp_path, text):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with Quarantine(tmp_path / "q", path) as quarantine:
        items = list(read_items(open_manifest(path), quarantine))
    return items, quarantine


def test_a_full_row_is_an_item(tmp_path):
    """Every column arrives with its type, and media paths are relative to the manifest."""
    header = "item_id,title,description,category,price,image,audio,available_at\n"
    (item,), quarantine = read(tmp_path, header + "a,Wren,A small brown bird,birds,3.5,i/a.png,,1997-01-01\n")
    assert (item.item_id, item.category, item.price, item.audio) == ("a", "birds", 3.5, None)
    assert item.image == tmp_path / "i/a.png"
    assert item.text == "Wren. A small brown bird"
    assert item.available_us == 852076800_000000
    assert len(quarantine) == 0
    assert not quarantine.path.exists()


def test_the_title_is_not_said_twice(tmp_path):
    """Where the description begins with the title, the text is the description."""
    (item,), _ = read(tmp_path, "item_id,title,description\na,A wren,A wren sings\n")
    assert item.text == "A wren sings"


def test_bad_rows_are_quarantined_and_the_run_goes_on(tmp_path):
    """Duplicates, empty rows, bad ids and bad dates are refused one by one, with what is wrong; good rows are read."""
    rows = ["a,one,,", "a,again,,", ",nameless,,", "b,,,", "c,three,,sometime", "d,four,,1997-01-01"]
    items, quarantine = read(tmp_path, "item_id,title,image,available_at\n" + "\n".join(rows) + "\n")
    assert [item and item.item_id for item in items] == ["a", None, None, None, None, "d"]
    written = [json.loads(line) for line in quarantine.path.read_text().splitlines()]
    assert [(row["row"], row["code"]) for row in written] == [
        (2, "duplicate_item_id"),
        (3, "missing_item_id"),
        (4, "nothing_to_encode"),
        (5, "bad_available_at"),
    ]
    assert "row 1 already" in written[0]["reason"]
    assert "sometime" in written[3]["reason"]


def test_a_bad_price_costs_the_price_only(tmp_path):
    """A price that is no number is left out with a reason, and the item is kept."""
    (item,), quarantine = read(tmp_path, "item_id,title,price\na,one,cheap\n")
    assert item.price is None
    assert quarantine.by_part == {"price": 1}
    assert "cheap" in quarantine.refusals[0].reason


def read_rows(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(json.dumps({"item_id": f"i{n}", "title": "one", **row}) + "\n" for n, row in enumerate(rows))
    )
    with Quarantine(tmp_path / "q", path) as quarantine:
        return list(read_items(open_manifest(path), quarantine)), quarantine


def test_tags_are_a_list_or_one_text(tmp_path):
    """A list in JSON Lines and a text with bars in CSV give the same tags: in order, once each, without blanks around them."""
    (listed,), _ = read_rows(tmp_path, {"tags": ["director:Agnès Varda", "year: 1962", "director:Agnès Varda", " "]})
    (barred, none), quarantine = read(tmp_path, "item_id,title,tags\na,one,director:Agnès Varda | year:1962|\nb,two,\n")
    assert listed.tags == barred.tags == ("director:Agnès Varda", "year:1962")
    assert none.tags == ()
    assert len(quarantine) == 0


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([f"cast:{n}" for n in range(65)], "65, and at most 64"),
        (["cast:" + "é" * 62], "longer than 128 bytes"),
        (["comedy"], "'comedy', which is not kind:value"),
        (["genre:"], "not kind:value"),
        (["genre:a\nb"], "control characters"),
        ([["genre:x"]], "not kind:value"),
        ([7], "'7', which is not kind:value"),
        ({"genre": "x"}, "not kind:value"),
    ],
)
def test_bad_tags_cost_the_tags_only(tmp_path, tags, said):
    """Too many, too long, without a kind, or no texts: they are left out with a reason, what is stored stays, and the item is kept."""
    (item,), quarantine = read_rows(tmp_path, {"tags": tags})
    assert (item.tags, "tags" in item.given) == ((), False)
    assert [(refusal.part, refusal.code) for refusal in quarantine.refusals] == [("tags", "bad_tags")]
    assert said in quarantine.refusals[0].reason


def test_as_many_and_as_long_tags_as_may_be_are_kept(tmp_path):
    """64 tags of 128 bytes."""
    tags = [f"cast:{n:02d}" + "x" * 121 for n in range(64)]
    (item,), quarantine = read_rows(tmp_path, {"tags": tags})
    assert item.tags == tuple(tags)
    assert len(quarantine) == 0


def test_a_manifest_without_content_columns_is_refused(tmp_path):
    """A file that gives nothing to encode is refused as a whole."""
    path = tmp_path / "m.csv"
    path.write_text("item_id,colour\na,red\n")
    with pytest.raises(ManifestError, match="nothing to encode"):
        open_manifest(path)


def test_an_address_is_not_a_path(tmp_path):
    """Media are not fetched: a web address is refused with that reason, and the item is kept."""
    (item,), quarantine = read(tmp_path, "item_id,title,image\na,one,https://example.org/a.png\n")
    assert (item.title, item.image) == ("one", None)
    assert quarantine.refusals[0].code == "bad_image"
    assert "download it" in quarantine.refusals[0].reason


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    """Two columns of one name cannot both be meant."""
    with pytest.raises(ManifestError, match="two columns 'title'"):
        read(tmp_path, "item_id,title,title\na,one,two\n")
