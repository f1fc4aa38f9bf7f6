import json

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from feature_store.milvus_schema import ViewSchema
from tests.feature_store.vector_views import made, table
from triptych.verbs import index

run = CliRunner().invoke


def test_the_verb_prints_a_table_and_writes_a_page(live_home, core, unit_vectors, monkeypatch):
    """All views with vectors are measured; empty ones are named; the page has a plot and each view's numbers. Exit code 0."""
    monkeypatch.setenv("COLUMNS", "160")
    made(core, unit_vectors, "FLAT", rows=300)
    made(core, unit_vectors, "HNSW", rows=1_000)
    made(core, unit_vectors, "FLAT", name="user_none", rows=0)
    core.create_view(ViewSchema("item_words", {"title": pa.string()}))
    done = run(index.app, ["report", "--k", "5", "--queries", "10"])
    assert done.exit_code == 0, done.stderr
    assert "item_flat_cosine" in done.stdout
    assert "ef=512" in done.stdout
    assert "user_none is left out: it has no rows" in done.stderr
    assert "item_words" not in done.stdout
    page = (live_home.root / "index-report.html").read_text()
    assert page.count("<section>") == 3
    assert "<svg" in page
    assert "item_hnsw_cosine" in page


def test_the_verb_s_json_has_every_number(live_home, core, unit_vectors, tmp_path):
    """`--json` is one document; a picture is written where one is asked for; queries may come from another view."""
    view, _, _ = made(core, unit_vectors, "FLAT", rows=300)
    made(core, unit_vectors, "FLAT", name="user_flat", rows=20)
    picture = tmp_path / "plot.png"
    arguments = ["report", view, "--k", "5,10", "--queries", "10", "--queries-from", "user_flat"]
    done = run(index.app, [*arguments, "--json", "--out", str(picture)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    (measured,) = document["views"]
    assert (measured["view"], measured["rows"], measured["queries_from"]) == (view, 300, "rows of user_flat")
    assert [(point["k"], point["recall"]) for point in measured["points"]] == [(5, 1.0), (10, 1.0)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (live_home.root / "index-report.html").exists()


def test_items_are_searched_with_the_users_of_their_space(live_home, core, unit_vectors):
    """Without `--queries-from` an item view is queried with the user view of its space, once that has rows; else with its own."""
    made(core, unit_vectors, "FLAT", name="item_space", rows=50)
    made(core, unit_vectors, "FLAT", name="user_space", rows=0)
    arguments = ["report", "item_space", "--k", "5", "--json"]
    own = run(index.app, arguments)
    assert json.loads(own.stdout)["views"][0]["queries_from"] == "rows of item_space"
    core.upsert("user_space", table(["i00001"], unit_vectors(1, 64)))
    (measured,) = json.loads(run(index.app, arguments).stdout)["views"]
    assert (measured["queries_from"], measured["queries"]) == ("rows of user_space", 1)
    assert measured["points"][0]["recall"] == 1.0


def test_an_index_that_is_not_in_use_ends_with_three(live_home, core, unit_vectors):
    """Numbers of a scan where an index was meant are degraded: exit code 3, and a remark."""
    view, _, _ = made(core, unit_vectors, "HNSW", rows=200, flush=False)
    done = run(index.app, ["report", view, "--k", "5", "--queries", "5", "--wait", "0", "--json"])
    assert done.exit_code == 3
    assert "does not search the index yet" in json.loads(done.stdout)["views"][0]["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["item_nowhere"], 2, "there is no such view; views with vectors: item_few"),
        (["item_words"], 2, "it has no vector"),
        (["item_few"], 1, "triptych materialize"),
        (["--k", "ten"], 2, "whole numbers above 0"),
        (["--k", "20000"], 2, "from 1 to 16383"),
        (["--ef", "0"], 2, "whole numbers above 0"),
        (["--out", "plot.gif"], 2, "must end in .html, .png, .svg"),
        (["--out", "nowhere/plot.png"], 2, "there is no folder nowhere"),
        (["item_few", "--queries-from", "nobody"], 1, "nobody"),
    ],
)
def test_wrong_usage_and_failures_name_the_remedy(live_home, core, unit_vectors, arguments, code, told):
    """2 for what was asked wrongly, 1 where nothing could be measured; nothing is written."""
    made(core, unit_vectors, "FLAT", name="item_few", rows=1)
    core.create_view(ViewSchema("item_words", {"title": pa.string()}))
    done = run(index.app, ["report", *arguments])
    assert done.exit_code == code, done.output
    assert told in " ".join(done.stderr.split())
    assert not (live_home.root / "index-report.html").exists()
