"""A whole training on a planted catalogue learns most of what can be known, and nothing where there is nothing."""

import numpy as np
import pytest
import torch

from ranker import checkpoint
from ranker.config import preset
from ranker.data import TrainingSet, time_split
from ranker.errors import CheckpointError, TrainingSetError
from ranker.evaluate import evaluate, ranker_scorer, tasks
from ranker.scorer import Ranker
from ranker.train import train
from tests.ranker.factories import RankerConfig, planted

QUICK = RankerConfig(dim=16, space_dim=12, prototypes=8, max_epochs=2)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted") / "ts")


@pytest.fixture(scope="module")
def ts(truth):
    return TrainingSet.load(truth.folder)


@pytest.fixture(scope="module")
def trained(ts, tmp_path_factory):
    """One training at the demo's size, and what its progress callback saw."""
    seen = []
    result = train(ts, preset("tiny"), tmp_path_factory.mktemp("models"), "full", seed=7, progress=seen.append)
    return result, seen


def ratio(report, name="all"):
    """(ranker - popularity) / (oracle - popularity) of NDCG@10."""
    ranker, popularity, oracle = (report["scorers"][s][name]["ndcg_at_10"] for s in ("ranker", "popularity", "oracle"))
    return (ranker - popularity) / (oracle - popularity)


def test_most_of_what_can_be_known_is_learned(ts, truth, trained):
    """On later choices, unseen items included, the ranker gets more than half of the oracle's gain over popularity."""
    report = evaluate(trained[0].folder, ts, scorers={"oracle": truth.oracle})
    assert ratio(report) >= 0.57
    assert ratio(report, "unseen_items") >= 0.57
    assert report["scorers"]["ranker"]["unseen_items"]["labels"] > 100
    assert report["scorers"]["ranker"]["all"]["auc"] > 0.8
    assert abs(report["scorers"]["random"]["all"]["auc"] - 0.5) < 0.05


def test_with_shuffled_content_there_is_little_to_learn(ts, truth, tmp_path):
    """Trained on the same ids and events with content permuted over items, at most a fifth of the gain is left."""
    shuffled = ts.shuffled_content(1)
    result = train(shuffled, preset("tiny"), tmp_path, "shuffled", seed=7)
    report = evaluate(result.folder, shuffled, scorers={"oracle": truth.oracle})
    assert ratio(report) <= 0.2


def test_training_tells_how_far_it_is(trained):
    """The progress callback sees every step, an estimate of what is left, and the validation metric once there is one."""
    _, seen = trained
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))
    assert all(p.eta_seconds >= 0 for p in seen)
    assert seen[-1].epoch >= 2
    assert np.isnan(seen[0].ndcg)
    assert seen[-1].ndcg > 0.1


def test_the_manifest_tells_how_the_model_came_about(trained, ts):
    """Data window, metrics, seed and versions are in the manifest, and the window is the one that was trained on."""
    manifest = checkpoint.read_manifest(trained[0].folder)
    split = time_split(ts.labels)
    assert manifest["data"]["train_end_us"] == split.train_end_us
    assert manifest["data"]["test_start_us"] == split.test_start_us
    assert manifest["metrics"] == trained[0].metrics["scorers"]
    assert manifest["seed"] == 7
    assert {"torch", "numpy", "python"} <= set(manifest["versions"])


def test_retrieval_agrees_with_ranking(trained, ts):
    """Of the ten best by the full score, most are among the fifty nearest in the fused space."""
    ranker = Ranker.load(trained[0].folder)
    tokens = ranker.item_tokens(ts.items.batch(np.arange(len(ts.items))))
    fused, found = ranker.fused_items(tokens), []
    score = ranker_scorer(ts, ranker)
    for task in tasks(ts, time_split(ts.labels).test, ranker.model.config)[:60]:
        full = score(task.user, task.t_us, [ts.items.names[i] for i in ts.items.item_R[task.rows]])
        best = set(task.rows[np.argsort(-full)[:10]].tolist())
        user = _fused_user(ranker, tokens, ts, task)
        near = task.rows[np.argsort(-(fused[task.rows] @ user))[:50]].tolist()
        found.append(len(best & set(near)) / 10)
    assert np.mean(found) > 0.9


def _fused_user(ranker, tokens, ts, task):
    from feature_store.history import history_as_of
    from ranker.scorer import Context, UserState

    history = history_as_of(ts.events[task.user], task.t_us)
    row_of = {ts.items.names[i]: row for row, i in enumerate(ts.items.item_R)}
    state = UserState(history, ranker.history_tokens(history, tokens, row_of))
    return ranker.fused_user(state, Context(task.t_us))


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("little") / "ts"
    return TrainingSet.load(planted(folder, n_items=80, n_users=60, seed=2).folder)


def test_the_same_seed_gives_the_same_model(little, tmp_path):
    """Training is deterministic: equal weights for equal seeds, others for another; the caller's random state is not touched."""
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    folders = [train(little, QUICK, tmp_path, name, seed=s).folder for name, s in (("a", 1), ("b", 1), ("c", 2))]
    assert (torch.random.get_rng_state() == before).all()
    a, b, c = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert a == b
    assert a != c


def test_evaluation_of_the_saved_model_is_what_training_reported(little, tmp_path):
    """Loading the checkpoint and evaluating again gives the report that training gave."""
    result = train(little, QUICK, tmp_path, "again")
    again = evaluate(result.folder, little)
    assert again["scorers"]["ranker"] == result.metrics["scorers"]["ranker"]


def test_a_taken_name_is_refused_before_training(little, tmp_path):
    """Nothing is trained for a name that cannot be written."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="take another"):
        train(little, QUICK, tmp_path, "taken", progress=lambda _: pytest.fail("it trained"))


def test_too_little_data_says_so(little, tmp_path):
    """A handful of labels is refused with counts, and leaves no checkpoint."""
    from dataclasses import replace

    few = replace(little, labels=little.labels.take(np.arange(12)))
    with pytest.raises(TrainingSetError, match="too few"):
        train(few, QUICK, tmp_path, "few")
    assert not list(tmp_path.iterdir())


def test_a_catalogue_without_audio_and_with_ratings_trains(little, tmp_path):
    """One modality less and events with stars are nothing special; expected ratings come out in the stars' unit."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    stars = rng.integers(1, 6, len(little.labels)).astype(np.float64)
    labels = replace(little.labels, event_types=["rating"] * len(stars), values=stars)
    spaces = {m: s for m, s in little.spaces.items() if m != "audio"}
    rated = replace(little, labels=labels, spaces=spaces)
    ranker = Ranker.load(train(rated, QUICK, tmp_path, "rated").folder)
    assert list(ranker.space_ids) == ["text", "image"]
    tokens = ranker.item_tokens(little.items.batch(np.arange(5)))
    from feature_store.history import Events
    from ranker.scorer import Context, UserState

    expected = ranker.ratings(UserState(Events(), ranker.no_items()), tokens, range(5), Context(10**15))
    assert ((expected > 0) & (expected < 7)).all()


def test_a_large_catalogue_is_sampled(little, tmp_path):
    """With fewer places than items, each step compares with a sample, and training still works."""
    from dataclasses import replace

    result = train(little, replace(QUICK, max_candidates=16), tmp_path, "sampled")
    assert result.metrics["scorers"]["ranker"]["all"]["auc"] > 0.55
