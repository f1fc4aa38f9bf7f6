"""The demo's measurements, in a process of their own: the trained ranker against popularity, the oracle, and shuffled content.

`python -m triptych.demo.judge --home HOME --model-id ID --truth TRUTH.npz` prints one JSON document. Every scorer is judged on
the same later-in-time labels and candidates; the shuffled ranker is trained afresh with each item given another item's
content, its id kept, so that whatever it still learns is no merit of the encoders.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Final

SHUFFLE_SEED: Final = 5


def judge(home_root: Path, model_id: str, truth_file: Path, seed: int) -> dict[str, float]:
    """The metrics of the test part of the split, by the names of metrics.json, with `..._unseen` beside."""
    from feature_store.home import Home
    from ranker.data import TrainingSet
    from ranker.evaluate import evaluate
    from triptych.demo.truth import Truth

    home, truth = Home(home_root), Truth.load(truth_file)
    ts = TrainingSet.load(newest_training_set(home.training))
    scorers = {"oracle": truth.probabilities}
    judged = evaluate(home.models / model_id, ts, scorers=scorers)["scorers"]
    shuffled = _shuffled(ts, home.models / model_id, seed)
    ranker = judged["ranker"]
    return {
        "ndcg_at_10": ranker["all"]["ndcg_at_10"],
        "ndcg_at_10_popularity": judged["popularity"]["all"]["ndcg_at_10"],
        "ndcg_at_10_oracle": judged["oracle"]["all"]["ndcg_at_10"],
        "ndcg_at_10_shuffled_content": shuffled["all"]["ndcg_at_10"],
        "auc": ranker["all"]["auc"],
        "recall_at_20": ranker["all"]["recall_at_20"],
        "ndcg_at_10_unseen": ranker["unseen_items"]["ndcg_at_10"],
        "ndcg_at_10_oracle_unseen": judged["oracle"]["unseen_items"]["ndcg_at_10"],
        "labels": ranker["all"]["labels"],
        "labels_unseen": ranker["unseen_items"]["labels"],
    }


def newest_training_set(folder: Path) -> Path:
    """The training set that was written last."""
    found = sorted(folder.glob("*/meta.json"), key=lambda meta: meta.stat().st_mtime_ns)
    if not found:
        raise FileNotFoundError(f"{folder} holds no training set: run `triptych train` first")
    return found[-1].parent


def _shuffled(ts: Any, checkpoint: Path, seed: int) -> dict[str, Any]:
    """Train the same model, the same way, on shuffled content, and return its metrics by slice."""
    from ranker.checkpoint import read_manifest
    from ranker.config import RankerConfig
    from ranker.train import train

    config = RankerConfig.from_dict(read_manifest(checkpoint)["config"])
    with tempfile.TemporaryDirectory() as folder:
        result = train(ts.shuffled_content(SHUFFLE_SEED), config, Path(folder), "shuffled", seed=seed)
    return dict(result.metrics["scorers"]["ranker"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(judge(given.home, given.model_id, given.truth, given.seed)))


if __name__ == "__main__":
    main()
