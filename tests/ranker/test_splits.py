"""Every protocol goes through training and evaluation, and what it holds out reaches no weight."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rankers.sequences import LeaveOneOut, movielens_100k
from benchmarks.rankers.training_sets import of_sequences
from feature_store.history import Events
from ranker import checkpoint, leakage
from ranker.data import TrainingSet
from ranker.errors import EvaluationError, LeakageError, TrainingSetError
from ranker.evaluate import evaluate, evaluate_scorers, held_out_scorers, tasks
from ranker.judged import report_of
from ranker.loop import fit
from ranker.protocols import Role, held_out
from ranker.scorer import Ranker
from ranker.splits import PROTOCOLS, _apart, held_out_of, plan_split, untied
from ranker.train import train
from tests.ranker.factories import RankerConfig, planted

QUICK = RankerConfig(dim=16, space_dim=12, prototypes=8, max_epochs=2)
OTHERS = [name for name in PROTOCOLS if name != "time"]


@pytest.fixture(scope="module")
def ts(tmp_path_factory):
    """A small shop with 80 items and 80 users; nothing in it ties."""
    return TrainingSet.load(planted(tmp_path_factory.mktemp("split") / "ts", n_items=80, n_users=80, seed=4).folder)


@pytest.fixture(scope="module")
def tied(ts):
    """The same with times cut to days, so that many of a user's events tie."""
    day = 86_400_000_000

    def cut(times):
        return (times // day + 1) * day

    events = {user: replace(one, timestamps_us=cut(one.timestamps_us)) for user, one in ts.events.items()}
    items = replace(ts.items, valid_from_R=np.full(len(ts.items), -1))
    order = np.lexsort((ts.labels.event_ids, cut(ts.labels.timestamps_us)))
    labels = replace(ts.labels, timestamps_us=cut(ts.labels.timestamps_us)).take(order)
    return replace(ts, items=items, labels=labels, events=events)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_is_trained_judged_and_reported(ts, tmp_path, protocol):
    """The checkpoint judged again gives what training reported: the test labels of that protocol, which the report names."""
    result = train(ts, QUICK, tmp_path, "one", seed=3, protocol=protocol)
    manifest = checkpoint.read_manifest(result.folder)
    assert (manifest["protocol"]["name"], manifest["protocol"]["seed"]) == (protocol, 3)
    again = evaluate(result.folder, ts)
    assert again["scorers"]["ranker"] == result.metrics["scorers"]["ranker"]
    assert again["protocol"] == protocol
    plan = plan_split(ts, protocol, QUICK, 3)
    assert again["labels"] == len(tasks(plan.ts, plan.split.test, QUICK, plan.candidates)) > 20
    report = report_of(Ranker.load(result.folder), ts)
    assert report.labels == again["labels"]
    assert report.facts["protocol"] == protocol
    assert {"time": "70 %", "leave-one-out": "the last is the test's", "ratio": "first 80 %"}.get(
        protocol, f"A fifth of the {protocol.removeprefix('cold-')}"
    ) in report.protocol
    assert ("held-out items" in report.masks) == (protocol == "cold-items")


@pytest.mark.parametrize("protocol", ["leave-one-out", "ratio", "cold-users"])
def test_what_was_tested_changes_no_weight(ts, protocol):
    """With every test event about another item the model is the same, bit for bit."""
    plan = plan_split(ts, protocol, QUICK, 3)
    other = _about_another_item(plan)
    spoilt = plan_split(other, protocol, QUICK, 3, plan.roles)
    one, two = (fit(p.training, p.split, QUICK, 0).model.state_dict() for p in (plan, spoilt))
    assert all(torch.equal(one[name], two[name]) for name in one)


def _about_another_item(plan):
    """The set with the item of every test label, and of its event, exchanged for item 0."""
    ts, test = plan.ts, {plan.ts.labels.event_ids[at] for at in np.flatnonzero(plan.roles == Role.TEST)}
    events = {
        user: replace(
            one,
            item_ids=[
                ts.items.names[0] if event_id in test else item
                for event_id, item in zip(one.event_ids, one.item_ids, strict=True)
            ],
        )
        for user, one in ts.events.items()
    }
    rows = np.where(plan.roles == Role.TEST, 0, ts.labels.item_row)
    return replace(ts, events=events, labels=replace(ts.labels, item_row=rows))


def test_content_of_cold_items_changes_no_weight(ts):
    """Neither a loss nor a projection has seen it; their events are in no history, and validation's neither."""
    plan = plan_split(ts, "cold-items", QUICK, 3)
    test, validation = held_out(len(ts.items.names), seed=3, validation_share=0.1)
    met = {item for events in plan.training.events.values() for item in events.item_ids}
    assert not met & {ts.items.names[i] for i in (*test, *validation)}
    at = np.isin(ts.items.item_R, test)
    turned = {space: np.where(at[:, None], np.roll(v, 1, axis=1), v) for space, v in ts.items.vectors.items()}
    other = replace(ts, items=replace(ts.items, vectors=turned))
    spoilt = plan_split(other, "cold-items", QUICK, 3)
    one, two = (fit(p.training, p.split, QUICK, 0) for p in (plan, spoilt))
    weights = two.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())
    assert not set(one.vocabulary.items) & {ts.items.names[i] for i in test}


def test_cold_items_are_ranked_among_themselves(ts):
    """Candidates are held-out items alone, popularity knows none of them, and all count as unseen."""
    plan = plan_split(ts, "cold-items", QUICK, 3)
    held = plan.held_out(QUICK)
    cold = set(held_out(len(ts.items.names), seed=3)[0].tolist())
    todo = tasks(held.ts, held.labels, QUICK, held.candidates)
    assert todo
    assert all(set(ts.items.item_R[task.rows].tolist()) <= cold for task in todo)
    assert held.likes[list(cold)].sum() == 0
    assert held.learned_counts[0][list(cold)].sum() == 0


def test_cold_users_have_their_own_history_and_nobody_learned_it(ts, tmp_path):
    """All test labels are of cold users, also by the report's slices, and their histories grow from nothing."""
    plan = plan_split(ts, "cold-users", QUICK, 3)
    assert not set(plan.split.test.users) & set(plan.training.events)
    report = report_of(Ranker.load(train(ts, QUICK, tmp_path, "cold", seed=3, protocol="cold-users").folder), ts)
    slices = {(one.group, one.name): one.labels for one in report.slices}
    assert slices["user", "cold"] == report.labels
    assert len([name for group, name in slices if group == "history"]) > 1


@pytest.mark.parametrize("protocol", ["leave-one-out", "ratio"])
def test_ties_are_decided_by_the_files_order(tied, protocol):
    """The last of the tied events by event_id is the test's, and the earlier ones are in its history, for every model alike."""
    plan = plan_split(tied, protocol, QUICK, 0)
    last, moved = {}, 0
    for user, events in tied.events.items():
        order = np.lexsort((events.event_ids, events.timestamps_us))
        last[user] = events.event_ids[order[-1]]
        moved += int(np.sum(np.diff(events.timestamps_us[order]) == 0))
    assert moved > 50
    tested = dict(zip(plan.split.test.users, plan.split.test.event_ids, strict=True))  # of several the last stays
    assert tested == {user: event for user, event in last.items() if user in tested}
    held = plan.held_out(QUICK)
    for user, event_id, t in zip(held.labels.users, held.labels.event_ids, held.labels.timestamps_us, strict=True):
        events = held.ts.events[user]
        assert int((events.timestamps_us < t).sum()) == events.event_ids.index(event_id)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_untied_times_ascend_and_keep_their_order(times):
    """Strictly; what does not tie and nothing was pushed into stays where it was."""
    n = len(times)
    events = Events([f"e{i:02d}" for i in range(n)], ["i"] * n, ["view"] * n, np.zeros(n), np.asarray(times, np.int64))
    found = _apart(events)
    assert (np.diff(found.timestamps_us) > 0).all()
    assert found.event_ids == [f"e{i:02d}" for i in np.lexsort((events.event_ids, times))]
    assert (found.timestamps_us >= np.sort(times)).all()
    if len(set(times)) == n:
        np.testing.assert_array_equal(found.timestamps_us, np.sort(times))


def test_dislikes_and_second_meetings_are_nobodys_test(ts):
    """They train where they come before what is held out, and are dropped after it."""
    labels = ts.labels
    user = labels.users[-1]
    of_user = [at for at, name in enumerate(labels.users) if name == user]
    kinds = [("dislike" if at in {of_user[0], of_user[-1]} else kind) for at, kind in enumerate(labels.event_types)]
    plan = plan_split(replace(ts, labels=replace(labels, event_types=kinds)), "leave-one-out", QUICK, 0)
    assert plan.roles[of_user[0]] == Role.TRAIN
    assert plan.roles[of_user[-1]] == Role.DROPPED
    assert plan.roles[of_user[-2]] == Role.TEST


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_leak_in_a_split_is_refused(ts, protocol):
    """A test event called training's is named before anything is trained."""
    plan = plan_split(ts, protocol, QUICK, 3)
    tested = np.flatnonzero(plan.roles == Role.TEST)
    spoilt = plan.roles.copy()
    spoilt[tested[np.argmax(plan.ts.labels.timestamps_us[tested])]] = Role.TRAIN
    with pytest.raises(LeakageError):
        plan_split(ts, protocol, QUICK, 3, spoilt)


def test_a_held_out_event_in_a_history_is_refused():
    """The guard that looks at what training reads names the event."""
    roles = np.array([Role.TRAIN, Role.TEST, Role.VALIDATION], np.int8)
    leakage.check_hidden(roles, np.array([True, False, True]), (Role.TEST,), "a history")
    with pytest.raises(LeakageError, match="a history has test event 1 in it"):
        leakage.check_hidden(roles, np.ones(3, bool), (Role.TEST,), "a history")


def test_labels_that_changed_since_training_are_not_judged(ts, tmp_path):
    """One label less and nobody knows which ones the model has learned from; by time an instant decides, and it does not matter."""
    fewer = replace(ts, labels=ts.labels.take(np.arange(len(ts.labels) - 1)))
    folder = train(ts, QUICK, tmp_path, "loo", protocol="leave-one-out").folder
    with pytest.raises(EvaluationError, match="not those that loo was split by"):
        evaluate(folder, fewer)
    by_time = {"model_id": "x", "data": {"test_start_us": int(ts.labels.timestamps_us[-10])}}
    assert len(held_out_of(fewer, by_time, QUICK).labels) == 9


def test_what_cannot_be_split_is_told(ts):
    """A protocol that does not exist, and parts without a label."""
    with pytest.raises(EvaluationError, match="choose one of time, leave-one-out"):
        plan_split(ts, "random", QUICK, 0)
    few = replace(ts, labels=ts.labels.take(np.arange(4)))
    with pytest.raises(TrainingSetError, match=r"leave-one-out there are labels .* 0 for"):
        plan_split(few, "leave-one-out", QUICK, 0)


def test_a_set_without_ties_is_left_as_it_is(ts):
    """Times, rows and order."""
    same = untied(ts)
    np.testing.assert_array_equal(same.labels.timestamps_us, ts.labels.timestamps_us)
    np.testing.assert_array_equal(same.labels.item_row, ts.labels.item_row)
    assert same.labels.event_ids == ts.labels.event_ids


def test_movielens_is_split_and_judged_as_the_benchmark_does_it():
    """Raw times, of which 415 last events tie: the same test events, each with all that the file has before it, and popularity's .044."""
    try:
        found = movielens_100k()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    apart = of_sequences(found, {})
    raw = found.timestamp * 1_000_000
    names = [f"e{n:06d}" for n in range(len(raw))]  # ids that ascend as the file does
    at = np.cumsum([0, *(len(events) for events in apart.events.values())])
    events = {
        user: replace(one, event_ids=names[a:b], timestamps_us=raw[a:b])
        for (user, one), a, b in zip(apart.events.items(), at[:-1], at[1:], strict=True)
    }
    labels = replace(apart.labels, event_ids=names, timestamps_us=raw).take(np.argsort(raw, kind="stable"))
    plan = plan_split(replace(apart, labels=labels, events=events), "leave-one-out", QUICK, 0)
    tested = sorted(int(name[1:]) for name in plan.split.test.event_ids)
    np.testing.assert_array_equal(tested, np.sort(LeaveOneOut.of(found).test))
    held = plan.held_out(QUICK)
    popularity = held_out_scorers(held, QUICK)["popularity"]
    judged = evaluate_scorers(held, {"popularity": popularity}, QUICK)["popularity"]["all"]
    assert judged["labels"] == 943
    assert judged["ndcg_at_10"] == pytest.approx(0.044, abs=0.0005)


def test_a_set_with_other_items_or_events_is_not_judged(ts, tmp_path):
    """Which items and events are held out depends on all of them, not on labels alone."""
    result = train(ts, QUICK, tmp_path, "split", protocol="cold-items", seed=3)
    manifest = Ranker.load(result.folder).manifest
    more = replace(ts, items=replace(ts.items, names=[*ts.items.names, "another"]))
    with pytest.raises(EvaluationError, match="the items of this training set are not those"):
        held_out_of(more, manifest, QUICK)
    user, events = next(iter(ts.events.items()))
    fewer = replace(ts, events={**ts.events, user: events.take(np.arange(len(events) - 1))})
    with pytest.raises(EvaluationError, match="the events of this training set are not those"):
        held_out_of(fewer, manifest, QUICK)


def test_roles_that_are_not_the_protocols_are_refused(ts):
    """By time they are two instants, and the split is made of these."""
    plan = plan_split(ts, "time", QUICK, 0)
    assert (plan_split(ts, "time", QUICK, 0, plan.roles).roles == plan.roles).all()
    with pytest.raises(EvaluationError, match="not those of the protocol time"):
        plan_split(ts, "time", QUICK, 0, np.where(plan.roles == 0, 3, plan.roles).astype(np.int8))
