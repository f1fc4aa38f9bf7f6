"""Encoders beside the profile's: recorded, loaded again, checked to be the same."""

from dataclasses import dataclass, field

import pytest

from encoders import TextEncoder
from encoders.errors import EncoderError, ProfileError, WeightsError
from encoders.profiles import Encoders, load_profile
from encoders.recorded import given_options, in_use, load_recorded
from encoders.space import EmbeddingSpace


@dataclass(frozen=True)
class Record:
    """A record as a registry keeps it."""

    space: EmbeddingSpace
    state: str = "added"
    entity: str = "item"
    encoder: dict = field(default_factory=dict)


@pytest.fixture
def old(bert_folder):
    return TextEncoder(bert_folder)


@pytest.fixture
def new(bert_folder):
    options = {"source": str(bert_folder), "pooling": "cls"}
    return Record(TextEncoder(**options).space, encoder=options)


def test_what_a_command_line_gives_are_the_options_of_a_profile(bert_folder):
    """Numbers and switches are read as such, words are kept as written, folders become absolute."""
    given = ["max_length=16", "compile=true", "template=passage : {text}", "slug=2020_01"]
    options = given_options("text", bert_folder.name, given, bert_folder.parent)
    assert options == {
        "source": str(bert_folder),
        "max_length": 16,
        "compile": True,
        "template": "passage : {text}",
        "slug": "2020_01",
    }
    assert given_options("text", "intfloat/e5-base-v2", [], bert_folder.parent) == {"source": "intfloat/e5-base-v2"}
    assert given_options("text", "bundled", ["whitening=w.npz"], bert_folder)["whitening"] == str(bert_folder / "w.npz")


@pytest.mark.parametrize(
    ("modality", "given", "complaint"),
    [
        ("smell", [], "modality 'smell'"),
        ("text", ["pooling"], "must be NAME=VALUE"),
        ("text", ["colour=red"], r"unknown options \['colour'\]"),
        ("text", ["max_length=long"], "max_length must be a whole number, not 'long'"),
        ("audio", ["window_seconds=[1]"], "window_seconds must be a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, modality, given, complaint):
    """In the words of a profile file."""
    with pytest.raises(ProfileError, match=complaint):
        given_options(modality, "bundled", given, tmp_path)


def test_a_profile_remembers_how_its_encoders_are_made(bert_folder, tmp_path):
    """From what it remembers each encoder is loaded again, from any folder."""
    profile = tmp_path / "p.yaml"
    (tmp_path / "bert").symlink_to(bert_folder)
    profile.write_text("text: {source: bert, pooling: cls}\n")
    encoders = load_profile(profile)
    [(space_id, options)] = encoders.options.items()
    assert options["source"] == str(tmp_path / "bert")
    assert load_recorded(encoders.text.space, options).space.space_id == space_id


def test_added_encoders_stand_beside_the_profiles(old, new):
    """The profile's stays the modality's own; both are found by space; words reach both."""
    encoders = in_use(Encoders(text=old), [new])
    assert encoders.text is old
    assert [e.space for e in encoders.all_of("text")] == [old.space, new.space]
    assert encoders.by_space(new.space.space_id).space == new.space
    assert encoders.query_encoder(new.space.space_id)(["a red bird"]).shape == (1, new.space.dim)
    assert in_use(encoders, [new]).all == encoders.all
    assert in_use(Encoders(text=old), [new], wanted=lambda _: False).all == [old]
    assert in_use(Encoders(), [new], wanted=lambda _: False, modalities=["image"]).all == []


def test_a_retired_space_gives_way_to_its_successor(old, new):
    """Its encoder is dropped; the newest that was added takes the modality over, even where only needed ones are loaded."""
    gone = Record(old.space, "retired")
    encoders = in_use(Encoders(text=old), [gone, new], wanted=lambda _: False)
    assert encoders.text.space == new.space
    assert encoders.all == [encoders.text]
    assert in_use(Encoders(text=old), [gone]).all == []
    both = Encoders(text=old).joined(load_recorded(new.space, new.encoder), new.encoder)
    assert both.without({old.space.space_id}).text.space == new.space


def test_records_without_an_encoder_or_of_users_load_nothing(old, new):
    """Imported vectors have no encoder; the users' side of a space is no second encoder."""
    assert in_use(
        Encoders(text=old), [Record(new.space), Record(new.space, entity="user", encoder=new.encoder)]
    ).all == [old]


def test_an_encoder_that_is_not_what_was_recorded_is_refused(new, tmp_path):
    """Other files, missing files and options that no encoder takes: each with the space and the remedy."""
    wrong = {**new.encoder, "pooling": "mean"}
    with pytest.raises(WeightsError, match=f"was recorded for space {new.space.space_id} and now gives"):
        load_recorded(new.space, wrong)
    with pytest.raises(WeightsError, match=f"spaces retire {new.space.space_id}"):
        load_recorded(new.space, {**new.encoder, "source": str(tmp_path / "gone")})
    with pytest.raises(EncoderError, match="is not understood"):
        load_recorded(new.space, {**new.encoder, "colour": "red"})
