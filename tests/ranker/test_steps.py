"""Losses are what their formulas say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom

from feature_store.history import history_as_of
from ranker.fit import build_model, build_vocabulary
from ranker.model import MASKED
from ranker.run import start, weighed_choice
from ranker.sequences import Histories
from ranker.steps import Sample, _both, _encode, align_loss, bag, choose_rows, corrected, place_loss, set_loss
from tests.ranker.sets import SMALL, ordered, unordered


def run_of(ts, split, config=SMALL):
    torch.manual_seed(0)
    vocabulary = build_vocabulary(ts, split)
    model = build_model(ts, split, config, vocabulary)
    return start(ts, split, model, vocabulary, 0)


def test_smoothing_is_over_what_may_be_chosen(rng):
    """Masked candidates change nothing: the loss and its gradient are those without their columns."""
    scores = torch.from_numpy(rng.normal(size=(3, 6)).astype(np.float32))
    target, weight = torch.tensor([0, 2, 1]), np.asarray([1.0, 0.5, 2.0], np.float32)
    for weights in (None, weight):
        whole, few = (values.clone().requires_grad_() for values in (scores, scores[:, :4]))
        masked = whole.masked_fill(torch.arange(6) >= 4, MASKED)
        losses = weighed_choice(masked, target, weights, 0.1), weighed_choice(few, target, weights, 0.1)
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(whole.grad[:, :4], few.grad)


def test_each_place_has_read_what_lies_strictly_before_its_label(rng):
    """Prefixes are those of `history_as_of`, ties in time left out."""
    ts, split = ordered(rng, users=20)
    tied = {
        user: type(events)(events.event_ids, events.item_ids, events.event_types, events.values, events.timestamps_us // 2_000_000)
        for user, events in ts.events.items()
    }  # fmt: skip
    ts = type(ts)(ts.items, ts.labels, tied, ts.profiles, ts.spaces, ts.meta)
    run = run_of(ts, split)
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    for number in np.flatnonzero(histories.label):
        user = int(np.searchsorted(histories.starts, number, side="right")) - 1
        t_us = int(histories.time_us[number])
        expected = history_as_of(tied[histories.users[user]], t_us).item_ids
        first = histories.starts[user]
        rows = histories.row[first : first + histories.before[number]]
        assert [ts.items.names[ts.items.item_R[row]] for row in rows] == expected


def test_an_item_met_before_is_no_label(rng):
    """Only what was new to the user is to be predicted."""
    ts, split = ordered(rng, users=40)
    run = run_of(ts, split)
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    for user in range(len(histories)):
        part = slice(histories.starts[user], histories.starts[user + 1])
        rows = histories.row[part]
        assert len(set(rows[histories.label[part]].tolist())) == histories.label[part].sum()


def test_without_padding_histories_are_read_as_with_it(rng):
    """Training packs the places that are read: their states, and the gradients, are those of whole padded rows."""
    ts, split = ordered(rng, users=30)
    run = run_of(ts, split, replace(SMALL, dropout=0.0, layers=2))
    whole = Histories.of(ts, split.train, run.model, run.vocabulary)
    starts = np.union1d(whole.starts, whole.starts[:9] + 3)  # some users as two, so that lengths differ
    histories = replace(whole, starts=starts, users=[str(user) for user in range(len(starts) - 1)])
    number, there = histories.padded(np.arange(len(histories)))
    assert len(set(there.sum(1).tolist())) >= 3
    history, _ = _encode(run, histories, number, there, np.arange(60))
    history = replace(history, token_BLD=history.token_BLD.detach())
    found = []
    for training in (True, False):
        run.model.train(training).zero_grad()
        states = run.model.read(history)[torch.from_numpy(np.pad(there, ((0, 0), (1, 0)), constant_values=True))]
        states.square().sum().backward()
        found.append((states, run.model.blocks[0].qkv.weight.grad.clone()))
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)


def test_a_place_does_not_know_how_many_events_follow(rng):
    """What was read after 3 events is the same whether there are more: training reads within histories, serving at their end."""
    ts, split = ordered(rng, users=20)
    run = run_of(ts, split)
    run.model.eval()
    torch.nn.init.normal_(run.model.place.weight)
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    number, there = histories.padded(np.arange(20))
    parts = [_encode(run, histories, number[:, :length], there[:, :length], np.arange(60))[0] for length in (3, None)]
    few, many = (run.model.read(history)[:, :4] for history in parts)
    torch.testing.assert_close(few, many)


def test_the_time_between_events_is_the_same_however_long_ago_they_are(rng):
    """Training counts ages from the last event that it reads, serving from now: 30 years later, seconds between events are still seconds."""
    ts, split = ordered(rng, users=20)
    run = run_of(ts, split)
    run.model.eval()
    torch.nn.init.normal_(run.model.gap.weight)
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    number, there = histories.padded(np.arange(20))
    history, _ = _encode(run, histories, number, there, np.arange(60))
    history = replace(history, age_seconds_BL=30 * history.age_seconds_BL)
    aged = replace(history, age_seconds_BL=history.age_seconds_BL + 30 * 365.25 * 86_400)
    torch.testing.assert_close(run.model.read(aged), run.model.read(history))


def test_the_future_does_not_change_a_loss(rng):
    """The loss of early labels is the same whatever the user did later."""
    ts, split = ordered(rng, users=30)
    run = run_of(ts, split)
    run.model.eval()
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    at = np.arange(len(histories))
    early = np.arange(len(histories.row)) - histories.starts[np.searchsorted(histories.starts, np.arange(len(histories.row)), side="right") - 1] < 3  # fmt: skip
    kept = Histories(**{**vars(histories), "label": histories.label & early})
    before = place_loss(run, kept, at)
    changed = histories.row.copy()
    changed[~early] = (changed[~early] + 7) % len(ts.items)
    after = place_loss(run, Histories(**{**vars(kept), "row": changed}), at)
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("cold_share", [0.0, 1.0])
def test_in_cold_steps_candidates_have_no_ids_and_histories_keep_theirs(rng, cold_share):
    """In no step and in every step; without dropout, so that tokens differ by the id alone."""
    ts, split = ordered(rng, users=20)
    whole = replace(SMALL, id_dropout=0.0, modality_dropout=0.0, content_dropout=0.0)
    run = run_of(ts, split, replace(whole, cold_share=cold_share))
    run.model.train()
    rows = np.arange(len(ts.items))
    read, candidates = _both(run, rows)
    warm, cold = run.encoded(rows).token_ND, run.encoded(rows, without_ids=True).token_ND
    assert not torch.allclose(warm, cold, atol=1e-4)
    assert torch.allclose(read.token_ND, warm, atol=1e-6)
    assert torch.allclose(candidates.token_ND, cold if cold_share else warm, atol=1e-6)


def test_a_bag_is_the_sum_by_the_root_of_the_number():
    """Users without any event get zeros."""
    tokens = torch.arange(8.0).view(4, 2)
    found = bag(tokens, np.asarray([1, 3, 2]), np.asarray([0, 0, 2]), 3)
    assert torch.allclose(found[0], (tokens[1] + tokens[3]) / np.sqrt(2))
    assert (found[1] == 0).all()
    assert torch.allclose(found[2], tokens[2])


def test_of_many_items_popular_ones_are_drawn_more_often_and_labels_own_are_there(rng):
    """About as many as asked for, by their count; what was not drawn is marked."""
    ts, split = ordered(rng)
    run = run_of(ts, split, replace(SMALL, full_softmax=20))
    targets = np.asarray([3, 7])
    times = np.asarray([10**9])
    samples = [choose_rows(run, times, targets) for _ in range(400)]
    drawn = np.zeros(60)
    for sample in samples:
        assert np.isin(targets, sample.rows).all()
        drawn[sample.rows[np.isfinite(sample.log_chance_C)]] += 1
    weight = (1.0 + run.label_counts) ** 0.75
    assert np.abs(drawn / 400 - np.minimum(1, 20 * weight / weight.sum())).max() < 0.12
    assert abs(drawn.sum() / 400 - 20) < 1


def test_the_corrected_denominator_is_the_full_one_on_average(rng):
    """Over many samples, the mean of the sampled sums is the sum over all items: logQ undoes that popular items are drawn more often."""
    logits = torch.tensor(rng.normal(size=(1, 60)), dtype=torch.float32)
    chance = rng.uniform(0.1, 0.9, 60)
    own, sums = 5, []
    for _ in range(4000):
        drawn = rng.random(60) < chance
        rows = np.flatnonzero(drawn | (np.arange(60) == own))
        log_chance = np.where(drawn[rows], np.log(chance[rows]), -np.inf).astype(np.float32)
        found = corrected(logits[:, rows], Sample(rows, log_chance), torch.tensor([int(np.searchsorted(rows, own))]))
        sums.append(float(found.exp().sum()))
        assert float(found[0, np.searchsorted(rows, own)]) == float(logits[0, own])
    assert abs(np.mean(sums) / float(logits.exp().sum()) - 1) < 4 * np.std(sums) / np.mean(sums) / np.sqrt(4000)


def test_other_labels_items_count_only_where_they_were_drawn():
    """A candidate that is there for another label alone is no negative."""
    sample = Sample(np.asarray([2, 9]), np.asarray([-0.5, -np.inf], np.float32))
    found = corrected(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), sample, torch.tensor([0, 1]))
    assert found.tolist() == [[1.0, MASKED], [1.5, 2.0]]


def test_ids_and_contents_are_drawn_together(rng):
    """A few steps on the contrastive loss alone lower it, and each id finds the content of its kind."""
    ts, split = ordered(rng)
    run = run_of(ts, split)
    optimizer = torch.optim.Adam(run.model.encoder.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = align_loss(run)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    rows = np.arange(60)
    with torch.no_grad():
        cosines = (
            F.normalize(run.model.encoder.ids(run.inputs.index_N), dim=1)
            @ F.normalize(run.encoded(rows, without_ids=True).token_ND, dim=1).T
        )
    kinds = rows % 4
    assert np.mean(kinds[cosines.argmax(1).numpy()] == kinds) > 0.8


def test_what_no_label_is_about_is_never_to_be_found(rng):
    """Events without a label in training are read, and their items are neither candidates nor targets: the loss stays that of a guess."""
    ts, split = unordered(rng)
    config = replace(SMALL, history="set", layers=0, set_dim=16, hidden_share=(0.9, 0.9))
    unlabelled = replace(split, train=split.train.take(np.flatnonzero(split.train.item_row % 5 != 0)))
    run = run_of(ts, unlabelled, config)
    histories = Histories.of(ts, split.train, run.model, run.vocabulary)
    loss = set_loss(run, histories, np.arange(32))
    assert 0 < float(loss.detach()) < 2 * np.log(60)
