"""One user at a time is scored as a batch is."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from feature_store.history import Events
from ranker.config import RankerConfig, preset
from ranker.errors import RankerError
from ranker.prior import Prior
from ranker.scorer import Context, ItemBatch, ItemTokens, Ranker, UserState
from tests.ranker.factories import TINY, example_spaces, random_items, tiny_checkpoint

NOW = Context(1_700_000_000_000_000)
IDS = [f"item{i}" for i in range(20)] + ["stranger1", "stranger2"]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    return Ranker.load(tiny_checkpoint(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def tokens(ranker):
    return ranker.item_tokens(random_items(example_spaces(), IDS, seed=5))


def history_of(item_ids, types=None):
    n = len(item_ids)
    times = NOW.now_us - np.arange(n, 0, -1) * 3_600_000_000
    return Events([f"e{i}" for i in range(n)], list(item_ids), types or ["click"] * n, np.full(n, np.nan), times)


def state_of(ranker, tokens, item_ids, **more):
    history = history_of(item_ids)
    row_of = {item_id: row for row, item_id in enumerate(tokens.item_ids)}
    return UserState(history, ranker.history_tokens(history, tokens, row_of), **more)


@pytest.fixture
def user(ranker, tokens):
    return state_of(ranker, tokens, ["item1", "gone", "item4", "item9"])


def test_scores_are_finite_float32_and_attention_is_aligned_with_the_history(ranker, tokens, user):
    """One score per row; attention per event of the history, 0 for items that nobody knows."""
    scored = ranker.score(user, tokens, [3, 0, 21], NOW)
    assert scored.scores.dtype == scored.attention.dtype == np.float32
    assert scored.scores.shape == (3,)
    assert scored.attention.shape == (3, 4)
    assert np.isfinite(scored.scores).all()
    assert (scored.attention[:, 1] == 0).all()
    assert (scored.attention[:, [0, 2, 3]] > 0).all()
    assert (scored.attention.sum(1) < 1).all()


def test_a_score_does_not_depend_on_its_neighbours(ranker, tokens, user):
    """Scoring a row alone, among others or in another order gives the same number."""
    together = ranker.score(user, tokens, range(len(IDS)), NOW).scores
    alone = np.concatenate([ranker.score(user, tokens, [row], NOW).scores for row in range(len(IDS))])
    assert np.allclose(together, alone, atol=1e-5)


def test_item_tokens_do_not_depend_on_the_user_or_on_the_batch(ranker, tokens, user):
    """Tokens may be computed once and kept: the same alone or in a batch, and scoring does not change them."""
    before = tokens.items.token_ND.clone()
    ranker.score(user, tokens, range(len(IDS)), NOW)
    assert (tokens.items.token_ND == before).all()
    whole = random_items(example_spaces(), IDS, seed=5)
    one = ItemBatch(
        whole.item_ids[7:8],
        {space: v[7:8] for space, v in whole.vectors.items()},
        {space: p[7:8] for space, p in whole.present.items()},
        whole.category[7:8],
        whole.price[7:8],
    )
    assert np.allclose(ranker.item_tokens(one).items.token_ND, before[7:8], atol=1e-6)


def test_what_is_unknown_scores_cold(ranker, tokens):
    """No history, an unknown id without any feature, a missing modality: a finite score each, and no exception."""
    nobody = UserState(Events(), ranker.no_items())
    bare = ranker.item_tokens(ItemBatch(["never heard of"]))
    for items in (bare, tokens):
        assert np.isfinite(ranker.score(nobody, items, range(len(items)), NOW).scores).all()
    stranger = state_of(ranker, bare, ["gone", "also gone"])
    assert np.isfinite(ranker.score(stranger, bare, [0], NOW).scores).all()
    assert np.isfinite(ranker.fused_user(stranger, NOW)).all()
    assert np.allclose(ranker.shares(nobody, bare, [0], NOW), 0.0, atol=1e-9)


def test_unknown_history_changes_nothing(ranker, tokens):
    """Events about items that nobody knows are as if they had not been."""
    with_gone = state_of(ranker, tokens, ["item1", "gone", "item4"])
    history = with_gone.history.take([0, 2])
    rows = [tokens.item_ids.index(i) for i in history.item_ids]
    without = UserState(history, tokens.take(rows))
    pair = [ranker.score(state, tokens, range(5), NOW).scores for state in (with_gone, without)]
    assert np.allclose(*pair, atol=1e-5)


def test_a_missing_modality_is_masked_whatever_its_row_holds(ranker):
    """Absent rows may hold anything finite or not: what is not present is not read."""
    batch = random_items(example_spaces(), ["item0", "item1"])
    space_id = ranker.space_ids["audio"]
    gone = {**batch.present, space_id: np.asarray([True, False])}
    noise = batch.vectors[space_id].copy()
    noise[1] = np.nan
    one = ranker.item_tokens(replace(batch, present=gone))
    two = ranker.item_tokens(replace(batch, vectors={**batch.vectors, space_id: noise}))
    left_out = {s: v for s, v in batch.vectors.items() if s != space_id}
    three = ranker.item_tokens(replace(batch, vectors=left_out))
    assert (one.items.token_ND == two.items.token_ND).all()
    assert (one.items.token_ND[1] == three.items.token_ND[1]).all()


def test_without_attention_the_prior_says_which_events_a_score_is_due_to(tmp_path, tokens, user):
    """Shares of what neighbours add, the rest is 0: also for what speaks against it, for an item without neighbours, and without a prior."""
    plain = Ranker.load(tiny_checkpoint(tmp_path, config=replace(TINY, batch_size=0, batch_users=8)))
    assert (plain.influences(user, tokens, [0, 2], NOW) == 0).all()
    weights = np.zeros((20, 20), np.float32)
    weights[1, 0], weights[4, 0], weights[9, 0] = 3.0, 1.0, -2.0
    plain.model.prior = Prior.of(weights, np.arange(1, 21), 20, 5)
    plain.model.prior.scale.fill_(0.5)
    assert np.allclose(plain.influences(user, tokens, [0, 2, 21], NOW), [[0.75, 0, 0.25, 0], [0] * 4, [0] * 4])
    assert plain.influences(state_of(plain, tokens, []), tokens, [0], NOW).shape == (1, 0)


def test_attention_says_it_where_the_model_has_any(ranker, tokens, user):
    """As the scores have it."""
    assert (ranker.influences(user, tokens, [3, 5], NOW) == ranker.score(user, tokens, [3, 5], NOW).attention).all()


def test_wrong_dims_are_an_error(ranker):
    """Vectors of another length are refused, not broadcast."""
    with pytest.raises(ValueError, match="must be"):
        ranker.item_tokens(ItemBatch(["item0"], {ranker.space_ids["text"]: np.zeros((1, 3), np.float32)}))


def test_shares_sum_to_the_score_minus_its_base(ranker, tokens, user):
    """Shapley values are exact: they add up to what the features changed."""
    rows = list(range(len(IDS)))
    shares = ranker.shares(user, tokens, rows, NOW)
    scores = ranker.score(user, tokens, rows, NOW).scores
    assert shares.shape == (len(rows), len(ranker.groups))
    assert np.allclose(shares.sum(1) + ranker.base_score(user, NOW), scores, atol=1e-4)


def test_a_group_that_an_item_lacks_has_no_share(ranker, user):
    """What is not there explains nothing."""
    batch = random_items(example_spaces(), ["item0"])
    without_image = ranker.item_tokens(replace(batch, present={ranker.space_ids["image"]: np.asarray([False])}))
    shares = ranker.shares(user, without_image, [0], NOW)[0]
    assert abs(shares[ranker.groups.index("image")]) < 1e-6
    assert abs(shares[ranker.groups.index("text")]) > 1e-3


def test_an_encoded_user_scores_like_the_state(ranker, tokens, user):
    """A request may read the history once and use it for scores, shares and retrieval."""
    encoded = ranker.encode_user(user, NOW)
    assert (
        ranker.score(encoded, tokens, range(9), NOW).scores == ranker.score(user, tokens, range(9), NOW).scores
    ).all()
    assert (ranker.fused_user(encoded, NOW) == ranker.fused_user(user, NOW)).all()


def test_profile_and_query_pull_towards_what_is_like_them(ranker, tokens):
    """A query that is an item's own vector raises that item's score above all others' gains."""
    batch = random_items(example_spaces(), IDS, seed=5)
    text = ranker.space_ids["text"]
    plain = state_of(ranker, tokens, ["item1"])
    asked = replace(plain, query={text: batch.vectors[text][12]})
    gain = ranker.score(asked, tokens, range(20), NOW).scores - ranker.score(plain, tokens, range(20), NOW).scores
    assert gain.argmax() == 12
    told = replace(plain, profile=batch.vectors[text][12])
    assert not np.allclose(
        ranker.score(told, tokens, range(20), NOW).scores, ranker.score(plain, tokens, range(20), NOW).scores
    )


def test_a_device_changes_scores_and_one_that_nobody_knows_does_not(ranker, tokens, user):
    """Known devices score apart; a name that was not met in training scores as none at all, to the bit."""
    none, strange, phone, desktop = (
        ranker.score(user, tokens, range(20), replace(NOW, device=name)).scores
        for name in ("", "fridge", "phone", "desktop")
    )
    assert (none == strange).all()
    assert not np.allclose(none, phone)
    assert not np.allclose(phone, desktop)


def test_a_query_of_a_space_that_the_model_does_not_read_is_refused(ranker, tokens):
    """By its name, whatever its length; and one of another length by that."""
    text = ranker.space_ids["text"]
    plain = state_of(ranker, tokens, ["item1"])
    vector = np.eye(1, example_spaces()["text"].dim, dtype=np.float32)[0]
    for query, complaint in (
        ({"text_other_00000000": vector}, "text_other_00000000"),
        ({text: vector[:-1]}, "must be"),
    ):
        with pytest.raises(ValueError, match=complaint):
            ranker.score(replace(plain, query=query), tokens, range(3), NOW)


def test_fused_vectors_are_unit_and_order_items_as_the_tower_does(ranker, tokens, user):
    """The cosine in the fused space is a monotone function of the two-tower score: retrieval loses nothing of it."""
    items, reader = ranker.fused_items(tokens), ranker.fused_user(user, NOW)
    assert np.allclose(np.linalg.norm(items, axis=1), 1, atol=1e-5)
    assert np.isclose(np.linalg.norm(reader), 1, atol=1e-5)
    assert ranker.fused_space.check(items) is items
    with torch.no_grad():
        tower = ranker.model.score(ranker.encode_user(user, NOW).user, tokens.items).tower_BC[0].numpy()
    assert np.array_equal(np.argsort(items @ reader), np.argsort(tower))


def test_only_the_newest_events_are_read(ranker, tokens):
    """A history longer than the model's is cut to its newest events, and attention still has one column per event."""
    long = [f"item{i % 20}" for i in range(3 * ranker.history_length)]
    state = state_of(ranker, tokens, long)
    scored = ranker.score(state, tokens, [0], NOW)
    assert scored.attention.shape == (1, len(long))
    assert (scored.attention[0, : -ranker.history_length] == 0).all()


def test_ages_of_events_are_exact_however_long_ago(ranker, user):
    """Thirty years and a second are not thirty years: float32 would round to a minute."""
    later = Context(NOW.now_us + 30 * 365 * 86_400_000_000 + 1_000_000)
    ages = ranker.history(user, later).age_seconds_BL[0].numpy()
    known = user.history.timestamps_us[user.history_tokens.known]
    assert np.array_equal(ages, (later.now_us - known) / 1e6)


def test_tokens_can_be_joined_and_indexed(ranker, tokens):
    """Concatenated tokens score as each part did; row -1 is an unknown item."""
    extra = ranker.item_tokens(ItemBatch(["new"]))
    joined = ItemTokens.concat([tokens, extra])
    user = state_of(ranker, tokens, ["item3"])
    assert joined.item_ids[-1] == "new"
    assert np.allclose(
        ranker.score(user, joined, [len(tokens)], NOW).scores, ranker.score(user, extra, [0], NOW).scores, atol=1e-6
    )
    assert joined.take([0, -1]).known.tolist() == [True, False]


def test_threads_do_not_disturb_each_other(ranker, tokens, user):
    """One ranker scores for several threads at once, with the same results."""
    expected, wrong = ranker.score(user, tokens, range(20), NOW).scores, []

    def work():
        wrong.extend(1 for _ in range(30) if not (ranker.score(user, tokens, range(20), NOW).scores == expected).all())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_config_round_trips_and_refuses_what_it_does_not_know():
    """A manifest's settings come back as they were; a field of another version is an error, as is an unknown preset."""
    config = preset("small")
    assert RankerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(RankerError, match="another version"):
        RankerConfig.from_dict({**config.to_dict(), "made_up": 1})
    with pytest.raises(RankerError, match="tiny, small"):
        preset("huge")
