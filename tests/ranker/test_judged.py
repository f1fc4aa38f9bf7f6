"""Reports judge a checkpoint on what its own protocol held out."""

import json

import numpy as np
import pytest

from ranker.config import preset
from ranker.data import TrainingSet
from ranker.judged import gates_by_category, report_of
from ranker.report import write_report
from ranker.scorer import Ranker
from ranker.train import train
from tests.ranker.factories import planted


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A ranker of a small shop, its test report, and the report that its training gave."""
    folder = tmp_path_factory.mktemp("judged")
    ts = TrainingSet.load(planted(folder / "ts", n_items=80, n_users=80, seed=3).folder)
    result = train(ts, preset("tiny"), folder / "models", "judged")
    return report_of(Ranker.load(result.folder), ts), result.metrics


def test_the_report_agrees_with_what_training_measured(judged):
    """The same labels, and AUC above that of random and below one."""
    report, measured = judged
    assert report.labels == measured["labels"]
    found = report.metrics["ranker"]["ndcg_at_10"]
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(
        measured["scorers"]["ranker"]["all"]["ndcg_at_10"], abs=0.05
    )  # by user, not label
    assert report.differences["random"].low > 0


def test_slices_gates_curves_and_attention_are_there(judged):
    """Cold items, missing modalities, history lengths; parts of the token by category; weights that sum to less than one."""
    report, _ = judged
    groups = {one.group for one in report.slices}
    assert {"all", "item", "history", "popularity", "modality"} <= groups
    everything = next(one for one in report.slices if one.group == "all")
    assert everything.labels == report.labels
    assert {"text", "image", "audio", "id"} <= set(report.gates[0].weights)
    assert 0 < sum(event.weight for event in report.attention.history) < 1
    assert report.training[1].values[-1] > 0


def test_the_report_is_written_as_page_and_json(judged, tmp_path):
    """Both name the model; every number is finite or absent."""
    page = write_report(tmp_path / "out", judged[0])
    text = page.read_text()
    assert "judged" in text
    plain = json.loads((tmp_path / "out" / "report.json").read_text())
    assert np.isfinite(plain["metrics"]["ranker"]["mrr"]["mean"])
    assert 0 < plain["metrics"]["ranker"]["coverage"]["mean"] <= 1


def test_intervals_of_slices_are_over_users(judged):
    """The slice of everything is the whole: the same mean and interval, of as many users."""
    report, _ = judged
    everything = next(one for one in report.slices if one.group == "all").estimates["ranker"]
    whole = report.metrics["ranker"]["ndcg_at_10"]
    assert (everything.mean, everything.low, everything.high, everything.users) == pytest.approx(
        (whole.mean, whole.low, whole.high, whole.users)
    )
    assert everything.users < report.labels
    assert report.metrics["ranker"]["coverage"].users == report.users


def test_gates_are_of_what_the_model_reads(tmp_path):
    """An item that training learned nothing of has no id."""
    ts = TrainingSet.load(planted(tmp_path / "ts", n_items=80, n_users=80, seed=3).folder)
    ranker = Ranker.load(train(ts, preset("tiny"), tmp_path / "models", "gates").folder)
    ranker.model.id_row[:] = 0
    assert all("id" not in gates.weights for gates in gates_by_category(ranker, ts))
