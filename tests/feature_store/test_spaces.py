import json
import threading
from dataclasses import replace

import pytest

from encoders.space import EmbeddingSpace
from feature_store.errors import SpaceInUseError, SpaceRegistryError
from feature_store.home import Home
from feature_store.parts import list_parts
from feature_store.pins import check_unpinned, pinned_by
from feature_store.spaces import (
    ADDED,
    SpaceEntry,
    embeddings_folder,
    find_entry,
    find_space,
    read_entries,
    read_spaces,
    register_entries,
    register_spaces,
    retire_spaces,
    view_name,
)
from feature_store.tables import Tables

TEXT = EmbeddingSpace.from_recipe("text", "tiny", 4, {"weights": "none"}, description="a tiny one: for tests")
IMAGE = EmbeddingSpace.from_recipe("image", "tiny", 6, {"weights": "none"}, kind="untrained", query_modality="text")


def test_a_registered_space_comes_back_whole_and_has_a_table(home):
    """Recipe, kind and description survive the file, and reading the new table is no error."""
    assert register_spaces(home, [TEXT, IMAGE]) == [TEXT, IMAGE]
    assert read_spaces(home) == [TEXT, IMAGE]
    assert read_spaces(home)[0].recipe == TEXT.recipe
    assert Tables(home).read_embeddings("item", IMAGE.space_id).vectors.shape == (0, 6)


def test_registering_again_changes_nothing(home):
    """The second time nothing is new, and no second zero-row part appears."""
    register_spaces(home, [TEXT])
    assert register_spaces(home, [TEXT]) == []
    assert len(list_parts(embeddings_folder(home, "item", TEXT.space_id))) == 1


def test_one_space_may_describe_items_and_users(home):
    """Each entity has a view of its own in the same space."""
    register_spaces(home, [TEXT])
    assert register_spaces(home, [TEXT], entity="user") == [TEXT]
    assert [entry.view for entry in read_entries(home)] == [
        view_name("item", TEXT.space_id),
        view_name("user", TEXT.space_id),
    ]
    assert read_spaces(home) == [TEXT]
    assert read_spaces(home, "user") == [TEXT]


def test_a_space_that_contradicts_its_id_is_refused(home):
    """The same id with another dim is an error, not a second entry."""
    register_spaces(home, [TEXT])
    with pytest.raises(SpaceRegistryError, match="dim 4, not encoder with dim 5"):
        register_spaces(home, [replace(TEXT, dim=5)])


def test_writers_at_the_same_time_lose_no_space(home):
    """Every one of many concurrent registrations is in the file afterwards."""
    spaces = [EmbeddingSpace.from_recipe("text", "tiny", 4, {"n": n}) for n in range(12)]
    threads = [threading.Thread(target=register_spaces, args=(home, [space])) for space in spaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.space_id for s in read_spaces(home)} == {s.space_id for s in spaces}


def test_a_new_home_starts_with_the_committed_spaces(tmp_path):
    """Without a file in the home, the committed list is in use: one space per modality."""
    assert {s.modality for s in read_spaces(Home(tmp_path))} == {"text", "image", "audio"}


@pytest.mark.parametrize("text", ["spaces: 3", "spaces:\n- {modality: text}", "- a", "{"])
def test_an_unusable_list_is_named(home, text):
    """A file that is not a list of spaces is an error with its path."""
    home.spaces.write_text(text)
    with pytest.raises(SpaceRegistryError, match=r"spaces\.yaml"):
        read_entries(home)


def test_an_unknown_space_lists_those_there_are(home):
    """The message helps with a mistyped id."""
    register_spaces(home, [TEXT])
    with pytest.raises(SpaceRegistryError, match=TEXT.space_id):
        find_space(home, "text_tiny_00000000")


def test_state_and_encoder_survive_the_file(home):
    """What was added with its encoder is read as such; registering it again, as ingestion does, changes neither."""
    options = {"source": "models/new", "pooling": "cls", "max_length": 64}
    assert register_entries(home, [SpaceEntry(TEXT, "item", ADDED, options)])
    register_spaces(home, [TEXT])
    [entry] = read_entries(home)
    assert (entry.state, dict(entry.encoder)) == (ADDED, options)
    register_spaces(home, [TEXT], encoders={TEXT.space_id: {"source": "moved"}})
    assert read_entries(home)[0].encoder == {"source": "moved"}


def test_a_retired_space_is_out_of_use_and_its_table_stays(home):
    """It is listed only for who asks; it is found by name; registering does not revive it, adding it does."""
    register_spaces(home, [TEXT, IMAGE])
    register_spaces(home, [TEXT], "user")
    assert [entry.view for entry in retire_spaces(home, [TEXT.space_id])] == [
        view_name("item", TEXT.space_id),
        view_name("user", TEXT.space_id),
    ]
    assert retire_spaces(home, [TEXT.space_id]) == []
    register_spaces(home, [TEXT])
    assert read_spaces(home) == [IMAGE]
    assert read_spaces(home, retired=True) == [TEXT, IMAGE]
    assert find_entry(home, TEXT.space_id).retired
    assert list_parts(embeddings_folder(home, "item", TEXT.space_id))
    register_entries(home, [SpaceEntry(TEXT, "item", ADDED)], revive=True)
    assert {entry.key: entry.state for entry in read_entries(home)} == {
        ("item", TEXT.space_id): ADDED,
        ("item", IMAGE.space_id): "active",
    }


def test_a_pinned_space_is_not_retired(home):
    """The models that pin it are named, nothing is changed, and a manifest that cannot be read may pin anything."""
    register_spaces(home, [TEXT])
    for name, content in (
        ("first", json.dumps({"model_id": "first", "space_ids": {"text": TEXT.space_id}})),
        ("other", json.dumps({"model_id": "other", "space_ids": {"image": IMAGE.space_id}})),
        ("broken", "{"),
    ):
        (home.models / name).mkdir()
        (home.models / name / "manifest.json").write_text(content)
    before = home.spaces.read_text()
    with pytest.raises(SpaceInUseError, match=r"pinned by broken .*, first") as caught:
        retire_spaces(home, [TEXT.space_id], lambda: check_unpinned(home, TEXT.space_id))
    assert len(caught.value.models) == 2
    assert home.spaces.read_text() == before
    assert pinned_by(home) == {
        TEXT.space_id: ["first"],
        IMAGE.space_id: ["other"],
        "fused_first": ["first"],
        "fused_other": ["other"],
    }


def test_writers_of_states_lose_nothing(home):
    """Retiring and registering at the same time: every space is there, and every retirement holds."""
    spaces = [EmbeddingSpace.from_recipe("text", "tiny", 4, {"n": n}) for n in range(12)]
    register_spaces(home, spaces[:6])
    jobs = [(retire_spaces, [space.space_id]) for space in spaces[:6]]
    jobs += [(register_spaces, [space]) for space in spaces[6:]]
    threads = [threading.Thread(target=job, args=(home, given)) for job, given in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_spaces(home)) == set(spaces[6:])
    assert set(read_spaces(home, retired=True)) == set(spaces)


@pytest.mark.parametrize("state", ["gone", 3])
def test_an_unknown_state_is_named(home, state):
    """A word that no state has is an error with the file's path."""
    home.spaces.write_text(f"spaces:\n- {{space_id: a, modality: text, kind: encoder, dim: 4, state: {state}}}\n")
    with pytest.raises(SpaceRegistryError, match="state"):
        read_entries(home)


def test_a_models_name_is_used_once(home):
    """The vectors of a removed model stay under its name, so another model of that name is refused its space."""
    register_spaces(home, [EmbeddingSpace.fused("one", 4, {"model_sha256": "a"})])
    assert register_spaces(home, [EmbeddingSpace.fused("one", 4, {"model_sha256": "a"})]) == []
    with pytest.raises(SpaceRegistryError, match="another model of this name"):
        register_spaces(home, [EmbeddingSpace.fused("one", 4, {"model_sha256": "b"})])
