"""New users and new items are ranked without training again."""

import numpy as np
import pytest

from feature_store.history import Events
from ranker.data import TrainingSet
from ranker.scorer import Context, ItemTokens, Ranker, UserState
from ranker.train import train
from tests.ranker.newcomers import SETTINGS, alike, auc, newcomers, tastes

MODALITIES = ("text", "image", "audio")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return tastes(tmp_path_factory.mktemp("planted") / "ts")


@pytest.fixture(scope="module")
def ts(truth):
    return TrainingSet.load(truth.folder)


@pytest.fixture(scope="module")
def ranker(ts, tmp_path_factory):
    return Ranker.load(train(ts, SETTINGS, tmp_path_factory.mktemp("models"), "planted").folder)


@pytest.fixture(scope="module")
def tokens(ranker, ts):
    return ranker.item_tokens(ts.items.batch(np.arange(len(ts.items))))


@pytest.fixture(scope="module")
def now(ts):
    return Context(int(ts.labels.timestamps_us.max()) + 1)


def after_one_click(ranker, tokens, row, now):
    """A user of whom nothing is known but one click, on the item at `row`."""
    click = Events(["only"], [tokens.item_ids[row]], ["click"], np.full(1, np.nan), np.array([now.now_us - 10**9]))
    return ranker.encode_user(UserState(click, tokens.take([row])), now)


def test_one_event_moves_a_new_users_ranking_towards_what_is_like_it(ranker, tokens, truth, now):
    """After one click, items of its kind in two modalities or more beat those of other kinds; without it there is nothing to tell."""
    after, before = [], []
    nobody = ranker.encode_user(UserState(Events(), ranker.no_items()), now)
    for row in range(len(tokens)):
        others = np.delete(np.arange(len(tokens)), row)
        count = alike(truth, tokens.item_ids[row], [tokens.item_ids[i] for i in others])
        rows = others[count != 1]
        good = count[count != 1] >= 2
        if good.any():
            user = after_one_click(ranker, tokens, row, now)
            after.append(auc(good, ranker.score(user, tokens, rows, now).scores))
            before.append(auc(good, ranker.score(nobody, tokens, rows, now).scores))
    assert len(after) > 100
    assert np.mean(after) > 0.9
    assert 0.4 < np.mean(before) < 0.6


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_new_item_of_one_modality_is_placed_by_its_content(ranker, tokens, ts, truth, now, modality):
    """For a new user with one click, new items that only have this modality rank by whether they are of the click's kind in it.

    Both are unseen: neither the user, nor the items, nor their names were there in training.
    """
    batch, kinds = newcomers(ts, truth, modality)
    new = ranker.item_tokens(batch)
    there = ts.items.present[truth.spaces[modality].space_id]
    found = []
    for row in np.flatnonzero(there):
        good = kinds == truth.kinds[modality][int(tokens.item_ids[row][1:])]
        if 0 < good.sum() < len(good):
            user = after_one_click(ranker, tokens, row, now)
            found.append(auc(good, ranker.score(user, new, range(len(new)), now).scores))
    assert len(found) > 100
    assert np.mean(found) > 0.9


def test_new_items_of_one_modality_rise_among_the_known_where_they_are_liked(ranker, tokens, ts, truth, now):
    """Ranked with the whole catalogue for users with histories, newcomers of a loved kind stand far above those of a disliked one."""
    for modality in MODALITIES:
        batch, kinds = newcomers(ts, truth, modality)
        joined = ItemTokens.concat([tokens, ranker.item_tokens(batch)])
        loved, others = [], []
        for user, events in sorted(ts.events.items())[:60]:
            rows = [tokens.item_ids.index(i) for i in events.item_ids]
            scores = ranker.score(UserState(events, tokens.take(rows)), joined, range(len(joined)), now).scores
            place = scores.argsort().argsort()[len(tokens) :] / len(joined)  # 1: the best
            liking = truth.likings[modality][int(user[1:])][kinds]
            loved.append(place[liking == 1].mean() if (liking == 1).any() else np.nan)
            others.append(place[liking < 0].mean() if (liking < 0).any() else np.nan)
        assert np.nanmean(loved) > np.nanmean(others) + 0.3
