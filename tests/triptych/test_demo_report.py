"""The demo's report and table, on a story whose ranking is made up but whose catalogue and truth are the real ones."""

import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from triptych.demo.catalogue import make_catalogue, write_catalogue
from triptych.demo.report import render, write_report
from triptych.demo.story import METRICS, MODALITIES, Story, choose_people, lift, tell_person
from triptych.demo.table import share_bar, show
from triptych.demo.truth import World, make_world

END = datetime(2026, 6, 1, tzinfo=UTC)
GROUPS = ["text", "image", "audio", "id", "other"]
MEASURED = dict(zip(METRICS, (0.30, 0.02, 0.47, 0.03, 0.88, 0.63), strict=True))


def made_up_reply(world: World, user_id: str) -> dict:
    """A Rank reply as `triptych client rank --json` prints it: the oracle's order, with invented shares."""
    rng = np.random.default_rng(0)
    taken = [event.item_id for event in world.events if event.user_id == user_id]
    new = [item_id for item_id in world.truth.item_ids if item_id not in taken]
    p = world.truth.probabilities(user_id, int(END.timestamp() * 1e6), new)
    best = np.argsort(-p)[:10]
    return {
        "item_ids": [new[i] for i in best],
        "scores": np.log(p[best] * 100).tolist(),
        "share_groups": GROUPS,
        "shares": rng.normal(0.6, 0.5, (10, len(GROUPS))).tolist(),
        "influences": [[(item_id, 0.3) for item_id in rng.choice(taken, 3, replace=False)] for _ in best],
        "degraded": [],
        "timings_ms": {"total": 4.2},
        "model_id": "demo",
    }


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("shop")
    catalogue = make_catalogue(7, end=END)
    world = make_world(catalogue, 7)
    write_catalogue(catalogue, folder, 7)
    people = [tell_person(catalogue, world, user, made_up_reply(world, user)) for user in choose_people(world)]
    return Story(
        people=people,
        metrics=MEASURED,
        quarantined=[(catalogue.corrupt[0], "the picture is cut short")],
        counts={"items": 300, "users": 400},
        seconds={"catalogue": 3.1, "ingest": 20.5},
        media=folder,
        home=folder / "home",
        corrupt=catalogue.corrupt,
    )


def test_a_reader_a_looker_and_a_listener_are_chosen(story: Story):
    """Each of the three is moved most by another modality."""
    assert [max(MODALITIES, key=lambda m: person.weights[m]) for person in story.people] == list(MODALITIES)


def test_the_best_by_truth_have_the_first_true_places(story: Story):
    """A ranking in the oracle's order is shown with the true places 1 to 10, and matches where the favourite is met."""
    for person in story.people:
        assert [result.true_place for result in person.results] == list(range(1, 11))
        assert person.results[0].matches


def test_the_report_is_self_contained(story: Story, tmp_path: Path):
    """One file: no link, no script and no picture from elsewhere, and no placeholder left."""
    page = write_report(story, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=|url\((?!data:)|@import|https?://""", page)
    assert not re.search(r"\$[a-z]+\b", page)
    assert len(page) < 4_000_000


def test_the_report_shows_each_person_and_item(story: Story):
    """Users, the titles of their top ten, their pictures, and the quarantined file with its reason are on the page."""
    page = render(story)
    for person in story.people:
        assert f"<h2>{person.user_id}, the " in page
        for result in person.results:
            assert result.item.title.replace("'", "&#x27;") in page
            if result.item.image and result.item.image not in story.corrupt:
                assert page.count(f".{result.item.item_id}{{background-image:url(data:image/webp;base64,") == 1
    assert story.corrupt[0] in page
    assert "the picture is cut short" in page


def test_what_users_wrote_cannot_become_markup(story: Story):
    """Text is escaped, in the page and in its attributes."""
    person = story.people[0]
    evil = type(person)(**{**vars(person), "words": '<script>alert("x")</script>'})
    page = render(type(story)(**{**vars(story), "people": [evil]}))
    assert '<script>alert("x")' not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_is_readable_without_a_terminal(story: Story, width: int):
    """The same story in plain text, narrow or wide: every person, the first title of each, the bars of the metrics."""
    console = Console(file=io.StringIO(), width=width)
    show(story, console)
    text = console.file.getvalue()
    for person in story.people:
        assert person.user_id in text
        assert person.results[0].item.title[:20] in text
    for word in ("popularity", "oracle", "content shuffled", "0.300", "62%"):
        assert word in text


def test_lift_is_the_way_from_popularity_to_the_oracle():
    """0 for popularity itself, 1 for the oracle."""
    assert lift(MEASURED, "ndcg_at_10_popularity") == 0
    assert lift(MEASURED, "ndcg_at_10_oracle") == 1
    assert lift(MEASURED, "ndcg_at_10") == pytest.approx(0.28 / 0.45)


def test_share_bars_are_in_proportion():
    """Cells follow the positive shares; what counts against the item takes no room; no gain at all draws nothing."""
    bar = share_bar({"text": 3.0, "image": 1.0, "audio": -2.0}, cells=16)
    assert [len(bar.plain[span.start : span.end]) for span in bar.spans if span.end > span.start] == [12, 4]
    assert share_bar({"text": -1.0}, cells=16).plain == ""


@pytest.mark.parametrize("width", [80, 140])
def test_data_is_never_read_as_markup(story: Story, width: int):
    """Titles, users, models and reasons with rich's own brackets in them are printed as they are."""
    person = story.people[0]
    result = person.results[0]
    item = replace(result.item, title="a [/b] c")
    first = replace(result, item=item, because=[(item, 0.5)])
    odd = replace(person, user_id="u[/i]", model_id="m[/u]", degraded=["d[red]"], results=[first])
    printed = io.StringIO()
    show(replace(story, people=[odd]), Console(file=printed, width=width))
    shown = printed.getvalue()
    assert shown.count("a [/b] c") == (2 if width > 100 else 1)
    for text in ("u[/i]", "m[/u]", "d[red]"):
        assert text in shown
