"""A report is written whole, stands alone, says what it is given and nothing else."""

import base64
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.sparse

from ranker.bootstrap import Estimate, differences, estimates
from ranker.calibration import reliability, sigmoid
from ranker.errors import EvaluationError
from ranker.full_ranking import gauc, ndcg, places, recall, relevant_pairs, user_metrics
from ranker.protocols import STATED
from ranker.report import Attended, Attention, Calibrated, Curve, Gates, Peer, Report, to_dict, write_report
from ranker.report_page import metric_words, number
from ranker.slices import judge_slices, label_slices

USERS, ITEMS = 120, 60
HEADINGS = (
    "How it was measured",
    "Metrics",
    "NDCG@10: ranker less each other",
    "The others",
    "NDCG@10 by slice",
    "Reliability",
    "Training",
    "Modality gates by category",
    "Attention over one user&#x27;s history",
)


@pytest.fixture
def judged(rng):
    """Places of a ranker that knows something, of a peer that knows less and of one that knows nothing; and the labels' pairs."""
    relevant = scipy.sparse.csr_matrix(rng.random((USERS, ITEMS)) < 0.05)
    masked = scipy.sparse.csr_matrix(rng.random((USERS, ITEMS)) < 0.1)
    noise = {"ranker": 0.6, "sasrec": 1.0, "popularity": 100.0}
    scores = {name: relevant.toarray() + level * rng.standard_normal((USERS, ITEMS)) for name, level in noise.items()}
    return {name: places(of, relevant, masked) for name, of in scores.items()}, relevant_pairs(relevant, masked)


@pytest.fixture
def plain(judged):
    """A report with what every report has."""
    found, (user, _) = judged
    values = {name: user_metrics(of) for name, of in found.items()}
    by_metric = {metric: estimates({name: of[metric] for name, of in values.items()}) for metric in values["ranker"]}
    metrics = {name: {metric: by[name] for metric, by in by_metric.items()} for name in found}
    metrics["ranker"]["coverage"] = Estimate(0.42, float("nan"), float("nan"), USERS)
    return Report(
        "first_model",
        "ranker",
        STATED["leave_one_out"],
        "All items that the user had not met before are candidates.",
        "ndcg_at_10",
        metrics,
        len(np.unique(user)),
        len(user),
    )


@pytest.fixture
def whole(plain, judged, rng):
    """A report with all its parts; words have HTML, dollars and other scripts in them."""
    found, (user, item) = judged
    slices = label_slices(
        user,
        item,
        history=rng.integers(0, 90, len(user)),
        item_counts=rng.integers(0, 3, ITEMS),
        present={"image": rng.random(ITEMS) < 0.7},
    )
    logits = rng.normal(0, 2, 2_000)
    labels = rng.random(2_000) < sigmoid(logits)
    return replace(
        plain,
        facts={"data set": "planted", "seeds": "0, 1, 2"},
        differences=differences({name: ndcg(of, 10) for name, of in found.items()}, "ranker"),
        slices=judge_slices(found, slices, lambda of: ndcg(of, 10)),
        calibration=Calibrated(
            "temperature 2.0, fitted on validation",
            reliability(labels, sigmoid(2 * logits)),
            reliability(labels, sigmoid(logits)),
        ),
        training=[
            Curve("loss", "training", (1, 2, 3), (3.0, 2.0, 1.5)),
            Curve("NDCG@10", "$validation$ 检", (1, 2, 3), (0.1, float("nan"), 0.3)),
        ],
        gates=[Gates("<b>剧情</b>", 12, {"text": 0.7, "image": 0.2}), Gates("war", 3, {"text": 0.9})],
        attention=Attention(
            "u & 1", "i9", (Attended("i1", 0.2, "Ночь", "1997-11-02"), Attended("i2", 0.8)), "<script>"
        ),
        peers=[Peer("sasrec", "Kang and McAuley 2018", "dim 64", "2 settings on validation, 25 minutes each", 12.5)],
        notes=["The image of 324 items is missing."],
    )


class Parsed(HTMLParser):
    """A page's tags, links and open tags."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.images = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src"}]
        if tag == "img":
            assert dict(attrs)["alt"]
            self.images.append(dict(attrs)["src"])


def test_both_files_have_every_part(tmp_path, whole):
    """Nine sections and four plots, and JSON whose numbers are those of the report."""
    page = write_report(tmp_path / "new" / "folder", whole)
    text = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == list(HEADINGS)
    parsed = Parsed(text)
    assert len(parsed.images) == 4
    for image in parsed.images:
        ET.fromstring(base64.b64decode(image.removeprefix("data:image/svg+xml;base64,")))
    data = json.loads(page.with_name("report.json").read_text())
    ours = whole.metrics["ranker"]["ndcg_at_10"]
    assert data["metrics"]["ranker"]["ndcg_at_10"] == {
        "mean": ours.mean,
        "low": ours.low,
        "high": ours.high,
        "users": ours.users,
    }
    assert data["differences"]["popularity"]["p"] == whole.differences["popularity"].p
    assert data["slices"][0]["name"] == "all"
    assert len(data["calibration"]["before"]["observed"]) == 10
    assert data["attention"]["history"][1]["weight"] == 0.8
    assert data["gates"][0]["weights"] == {"text": 0.7, "image": 0.2}


def test_what_is_absent_is_in_neither_file(tmp_path, plain):
    """A report with the least has two sections and one plot; JSON has no empty parts."""
    page = write_report(tmp_path, plain)
    text = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["How it was measured", "Metrics"]
    assert len(Parsed(text).images) == 1
    assert set(json.loads((tmp_path / "report.json").read_text())) == {
        "schema_version",
        "model_id",
        "scorer",
        "protocol",
        "masks",
        "main_metric",
        "metrics",
        "users",
        "labels",
    }


def test_the_page_needs_nothing_else(whole, tmp_path):
    """No link, no script, no address: all is in the file."""
    text = write_report(tmp_path, whole).read_text()
    parsed = Parsed(text)
    assert all(link.startswith("data:") for link in parsed.links)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)


def test_words_of_the_data_are_escaped_and_kept(whole, tmp_path):
    """Titles and categories of any script appear as they are, and never as HTML."""
    text = write_report(tmp_path, whole).read_text()
    for words in (
        "&lt;b&gt;剧情&lt;/b&gt;",
        "u &amp; 1",
        "&lt;script&gt;",
        "Ночь",
        "The image of 324 items is missing.",
    ):
        assert words in text
    curves = base64.b64decode(Parsed(text).images[-1].partition(",")[2]).decode()
    assert "$validation$ 检" in curves


def test_the_same_report_gives_the_same_files(whole, tmp_path):
    """Byte for byte, so that a changed file means a changed result."""
    first = {path.name: path.read_bytes() for path in write_report(tmp_path / "a", whole).parent.iterdir()}
    again = {path.name: path.read_bytes() for path in write_report(tmp_path / "b", whole).parent.iterdir()}
    assert first == again
    assert set(first) == {"report.json", "report.html"}


def test_what_has_no_number_is_null_and_a_dash(plain, tmp_path):
    """JSON is strict: a metric without an interval has null bounds, and the page shows its value alone."""
    page = write_report(tmp_path, plain)
    data = json.loads(page.with_name("report.json").read_text(), parse_constant=pytest.fail)
    assert data["metrics"]["ranker"]["coverage"] == {"mean": 0.42, "low": None, "high": None, "users": USERS}
    assert ">0.4200</td>" in page.read_text()
    assert "<td>-</td>" in page.read_text()  # the others have no coverage


def test_the_best_of_each_metric_stands_out(plain, tmp_path):
    """Where more is better the highest, for errors the lowest, and none where neither is better."""
    metrics = {
        name: {
            **of,
            "ece": Estimate(error, float("nan"), float("nan"), USERS),
            "gini": Estimate(error, float("nan"), float("nan"), USERS),
        }
        for (name, of), error in zip(plain.metrics.items(), (0.3, 0.1, 0.2), strict=True)
    }
    text = write_report(tmp_path, replace(plain, metrics=metrics)).read_text()
    assert text.count('<td class="best">0.1000</td>') == 1
    assert text.count(">0.1000</td>") == 2  # ECE's and Gini's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": " "}, "must state its masks"),
        ({"main_metric": "ndcg_at_7"}, "ndcg_at_7 is not in metrics: 'ranker'"),
        ({"scorer": "fusion"}, "'fusion' was not judged"),
        ({"peers": [Peer("ease", "EASE")]}, "ease is compared, but not in metrics"),
        ({"training": [Curve("loss", "training", (1, 2), (0.5,))]}, "2 steps and 1 values"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(plain, change, message):
    """Before anything is written, by the name that is wrong."""
    with pytest.raises(EvaluationError, match=re.escape(message)):
        replace(plain, **change)


def test_a_report_that_cannot_be_drawn_writes_nothing(plain, tmp_path, monkeypatch):
    """Without matplotlib there is neither file, rather than half a report."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        write_report(tmp_path / "out", plain)
    assert not (tmp_path / "out").exists()


def test_numbers_and_names_are_as_readers_know_them():
    """Four digits whatever the size, and the field's names."""
    assert [number(v) for v in (0.08941, -0.5, 3.14159, 42.0, 123.456, 98_765.4, float("nan"))] == [
        "0.0894", "-0.5000", "3.142", "42.00", "123.5", "98,765", "-",
    ]  # fmt: skip
    assert [metric_words(m) for m in ("ndcg_at_10", "recall_at_20", "hr_at_10", "logloss", "novelty_bits", "my_own")] == [
        "NDCG@10", "Recall@20", "HR@10", "log loss", "novelty (bits)", "my own",
    ]  # fmt: skip


def test_slices_are_judged_on_their_own_labels(judged):
    """A slice's value is the metric of its labels alone, and the slice of all is the metric itself."""
    found, (user, item) = judged
    slices = label_slices(user, item, item_counts=(np.arange(ITEMS) % 2))
    results = judge_slices(found, slices, lambda of: ndcg(of, 10), resamples=50)
    for one, result in zip(slices, results, strict=True):
        assert result.labels == one.chosen.sum()
        for name, of in found.items():
            assert result.estimates[name].mean == pytest.approx(ndcg(of.take(one.chosen), 10).mean())
    assert results[0].estimates["ranker"].mean == pytest.approx(ndcg(found["ranker"], 10).mean())
    with pytest.raises(EvaluationError, match="places, and slices are of"):
        judge_slices({"short": found["ranker"].take(item > 3)}, slices, lambda of: ndcg(of, 10))


def test_metrics_by_user_are_all_of_full_ranking(judged):
    """NDCG, recall and HR at 10 and 20, MRR, AUC, whose weighted mean is GAUC."""
    found = judged[0]["sasrec"]
    values = user_metrics(found)
    assert set(values) == {f"{m}_at_{k}" for m in ("ndcg", "recall", "hr") for k in (10, 20)} | {"mrr", "auc"}
    np.testing.assert_array_equal(values["recall_at_20"], recall(found, 20))
    _, count = np.unique(found.user, return_counts=True)
    weighed = estimates({"sasrec": values["auc"]}, weights=count.astype(float), resamples=10)["sasrec"]
    assert weighed.mean == pytest.approx(gauc(found))


def test_to_dict_is_plain(whole):
    """JSON's own types alone, so that a verb may print it."""
    assert json.loads(json.dumps(to_dict(whole), allow_nan=False)) == to_dict(whole)
