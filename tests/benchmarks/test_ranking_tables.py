"""Committed results become tables of Markdown."""

from benchmarks.rankers import tables

DETAILS = {
    "options": {"seeds": 2},
    "movielens-1m ease": {"recall_20": 0.2752, "ndcg_20": 0.4107, "settings": "l2 200"},
    "movielens-1m cold fusion": {
        "recall_20": 0.2, "ndcg_20": 0.3, "gauc": 0.8,
        "by_seed": [{"recall_20": 0.2, "ndcg_20": 0.29, "gauc": 0.8}, {"recall_20": 0.2, "ndcg_20": 0.31, "gauc": 0.8}],
        "runs": [{"minutes": 3.25}, {"minutes": 4.0}],
    },
    "movielens-1m lost without": {"text": 0.01},
    "movielens-1m fusion less ease": {"recall_20": {"mean": 0.01, "low": 0.0, "high": 0.02}},
    "movielens-1m fusion": {
        "recall_20": 0.28, "ndcg_20": 0.42, "intervals": {"ndcg_20": {"mean": 0.42, "low": 0.41, "high": 0.43}},
    },
    "lastfm-2k ablation no dropout": {"ndcg_20": 0.3, "low": 0.29, "high": 0.31, "by_seed": [0.29, 0.31]},
}  # fmt: skip


def test_each_set_has_a_table_of_its_methods():
    """Cold items are a set of their own; what is no method, and what was not measured, is in none."""
    text = "".join(tables.methods({"details": DETAILS}))
    warm, cold = text.split("**movielens-1m cold**")
    assert "| ease | 0.2752 | 0.4107 |  |  |" in warm
    assert "| fusion | 0.2800 | 0.4200 (0.4100 to 0.4300) |  |  |" in warm
    assert "| fusion | 0.2000 | 0.3000 | 0.8000 | 0.2900, 0.3100 | 3.2, 4.0 |" in cold
    assert "lost" not in text
    assert "less" not in text
    assert "ablation" not in text
    assert "lastfm" not in text
    lines = [line.count("|") for line in warm.splitlines() if line.startswith("|")]
    assert len(set(lines)) == 1


def test_ablations_have_a_table_for_each_set():
    """The metric is the header's, and each seed's is told."""
    text = "".join(tables.ablations({"details": DETAILS}))
    assert "**lastfm-2k**" in text
    assert "| variant | ndcg_20 |" in text
    assert "| no dropout | 0.3000 | 0.2900 to 0.3100 | 0.2900, 0.3100 |" in text
