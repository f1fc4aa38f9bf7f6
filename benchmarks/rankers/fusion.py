"""The fusion ranker on public sets: settings and the prior's weight chosen on validation, then the test's metrics by user.

Where a protocol lets the final model learn from validation too (every method alike), it is trained again for as many epochs as validation
chose, with the prior's settings as chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from benchmarks.rankers.clock import worked_seconds
from benchmarks.rankers.sequences import LeaveOneOut
from benchmarks.rankers.sets import Interactions, Matrix
from benchmarks.rankers.training_sets import Content, leave_one_out, of_sequences, of_sets, set_split
from ranker import full_ranking, metrics
from ranker.config import RankerConfig
from ranker.data import Labels, Split, TrainingSet
from ranker.full_ranking import Places
from ranker.leakage import check_split
from ranker.loop import Fitted, Progress, fit
from ranker.mixing import Mix, mix_prior, set_prior
from ranker.protocols import Role
from ranker.scoring import LabelScoring, Scoring, SetScoring, label_places

Values = NDArray[np.float64]
Tags = Sequence[Sequence[str]]
Tell = Callable[[str], None]

PLAIN: Final = RankerConfig(
    space_dim=256,
    prototypes=1,
    taste_steps=0,
    content_dropout=0.5,
    attention=False,
    popularity=False,
    learning_rate=1e-3,
    weight_decay=0.0,
    id_decay=0.0,
    batch_size=0,
    batch_users=64,
    threads=0,
    max_candidates=1_000_000,
    precision="float32",  # so that a GPU gives what the CPU gives
)
VARIATIONAL: Final = replace(
    PLAIN, history="set", layers=0, dim=400, set_dim=400, content_dim=200, history_length=8, dropout=0.0, kl_weight=0.2,
    modality_dropout=0.0, id_dropout=0.0, batch_users=256, look_epochs=5, patience=6, max_epochs=200,
)  # fmt: skip
DETERMINISTIC: Final = replace(
    VARIATIONAL, dim=300, set_dim=600, kl_weight=0.0, dropout=0.5, hidden_share=(0.3, 0.9), weight_decay=0.05, id_decay=0.05,
    batch_users=500, learning_rate=5e-4, look_epochs=10, patience=3,
)  # fmt: skip
COLD: Final = replace(
    VARIATIONAL, dim=256, set_dim=600, content_dim=256, kl_weight=0.0, cold_share=1.0, id_dropout=0.5, modality_dropout=0.2,
    batch_users=500, max_epochs=100, look_epochs=10, patience=2,
)  # fmt: skip
NEXT: Final = replace(
    PLAIN, dim=64, layers=2, dropout=0.3, content_dim=200, history_length=200, modality_dropout=0.2, id_dropout=0.2,
    batch_users=64, look_epochs=3, patience=5, max_epochs=60,
)  # fmt: skip
NEXT_IDS: Final = replace(
    NEXT, dim=256, heads=4, dropout=0.5, history_length=50, label_smoothing=0.1, batch_users=256, learning_rate=1.5e-3,
    full_softmax=4_000, look_epochs=2, patience=5, max_epochs=14,
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What a model is told of items, and what it is called."""

    what: str
    content: Content
    tags: Tags = ()


@dataclass(frozen=True)
class Trained:
    """One seed's final model, how it was chosen, and what it cost."""

    fitted: Fitted
    mix: Mix | None
    validation: float
    minutes: float

    @property
    def settings(self) -> dict[str, Any]:
        """What a table tells of it."""
        return {
            "epochs": self.fitted.epochs,
            "validation": round(self.validation, 4),
            "minutes": round(self.minutes, 1),
            "prior": self.mix.to_dict() if self.mix else None,
        }


def _fit(
    ts: TrainingSet, split: Split, config: RankerConfig, seed: int, tell: Tell, epochs: int | None = None
) -> Fitted:
    def show(p: Progress) -> None:
        tell(f"epoch {p.epoch}, validation {p.ndcg:.4f}, {p.elapsed_seconds:.0f} s")

    with torch.random.fork_rng(devices=[]):
        return fit(ts, split, config, seed, show, epochs=epochs)


def choose(
    ts: TrainingSet, split: Split, configs: Sequence[RankerConfig], seed: int, tell: Tell, *, mixed: bool = True
) -> tuple[RankerConfig, Trained]:
    """The settings with the best NDCG on validation once the prior is mixed in (where it shall be), and the model that they gave."""
    tried = []
    for config in configs:
        started = worked_seconds()
        fitted = _fit(ts, split, config, seed, tell)
        alone = max(look.ndcg for look in fitted.looks)
        mix = mix_prior(fitted, tell) if mixed else None
        value = mix.mixed if mix else alone
        tried.append(Trained(fitted, mix, value, (worked_seconds() - started) / 60))
    at = int(np.argmax([one.validation for one in tried]))
    return configs[at], tried[at]


# ---- sets ------------------------------------------------------------------------------------------------------------


def names_of(split: Interactions) -> list[str]:
    """Items' names: their numbers."""
    return [str(item) for item in range(split.train.shape[1])]


def tags_of(split: Interactions) -> Tags:
    """Items' tags, as names, of the matrix of tags where there is one."""
    matrix = split.content.get("tags")
    return [[f"tag:{t}" for t in np.flatnonzero(row)] for row in matrix] if matrix is not None else ()


def spaces_of_set(split: Interactions, *, without: Sequence[str] = ()) -> Content:
    """Vectors by modality; sound and speech are one, laid side by side at unit length each."""
    found = {name: values for name, values in split.content.items() if name != "tags"}
    heard = [_unit(found.pop(name)) for name in ("sound", "speech") if name in found]
    found |= {"audio": np.concatenate(heard, axis=1)} if heard else {}
    return {name: values for name, values in found.items() if name not in without}


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9), np.float32)


def train_set(
    split: Interactions,
    known: Known,
    configs: Sequence[RankerConfig],
    seed: int,
    tell: Tell,
    *,
    mixed: bool = True,
) -> tuple[RankerConfig, Trained, Labels]:
    """Choose on validation, and train again on all of training where that is more; the test's labels come with it."""
    started, names = worked_seconds(), names_of(split)
    ts, (validation, test) = of_sets(names, known.content, known.tags, split.fitted, [split.validation, split.test])
    config, chosen = choose(ts, set_split(ts, validation, test), configs, seed, tell, mixed=mixed)
    if split.train is split.fitted:
        return config, chosen, test
    ts, (test,) = of_sets(names, known.content, known.tags, split.train, [split.test])
    fitted = _fit_again(ts, test, config, seed, tell, chosen)
    return config, replace(chosen, fitted=fitted, minutes=(worked_seconds() - started) / 60), test


def _fit_again(ts: TrainingSet, test: Labels, config: RankerConfig, seed: int, tell: Tell, chosen: Trained) -> Fitted:
    """Trained on all of `ts`, without validation, for as long and with the prior that validation chose."""
    nothing = test.take(np.zeros(0, np.int64))
    fitted = _fit(ts, set_split(ts, nothing, test), config, seed, tell, chosen.fitted.epochs)
    if chosen.mix:
        set_prior(fitted, chosen.mix, float(chosen.fitted.model.prior.scale))
    return fitted


def places_of_sets(trained: Trained, labels: Labels, items: NDArray[np.int64] | None = None) -> Places:
    """Places of all test items, among all items that the user has not met, or among `items` alone."""
    scoring = Scoring.of(trained.fitted.run, labels)
    assert isinstance(scoring, SetScoring)  # noqa: S101 - these models read sets
    sets = scoring.sets
    at = np.arange(len(trained.fitted.run.ts.items)) if items is None else items
    met: Matrix = sets.met if items is None else scipy.sparse.csr_matrix(sets.met.shape, dtype=np.float32)
    return full_ranking.joined(
        [
            full_ranking.places(
                scores[:, at].cpu().numpy(), sets.relevant[users][:, at], met[users][:, at], int(users[0])
            )
            for users, scores in scoring.scores()
        ]
    )


# ---- cold items ------------------------------------------------------------------------------------------------------


def train_cold(
    everything: Matrix,
    held: NDArray[np.int64],
    known: Known,
    config: RankerConfig,
    seed: int,
    tell: Tell,
) -> tuple[Trained, Labels]:
    """Epochs and the prior by a sixth of the warm items, held out in turn; then trained on all warm items."""
    started, items = worked_seconds(), everything.shape[1]
    names = [str(item) for item in range(items)]
    warm = np.setdiff1d(np.arange(items), held)
    chosen_from = np.sort(np.random.default_rng(seed).choice(warm, len(warm) // 6, replace=False))
    parts = [columns(everything, kept) for kept in (np.setdiff1d(warm, chosen_from), chosen_from, held, warm)]
    check_cold(parts[0], parts[1], parts[2])
    ts, (validation, test) = of_sets(names, known.content, known.tags, parts[0], parts[1:3])
    _, chosen = choose(ts, replace(set_split(ts, validation, test), candidates=chosen_from), [config], seed, tell)
    ts, (test,) = of_sets(names, known.content, known.tags, parts[3], [parts[2]])
    fitted = _fit_again(ts, test, config, seed, tell, chosen)
    return replace(chosen, fitted=fitted, minutes=(worked_seconds() - started) / 60), test


def check_cold(train: Matrix, validation: Matrix, test: Matrix) -> None:
    """No item of the test or of validation is in training; raises `LeakageError`."""
    roles = np.repeat([Role.TRAIN, Role.VALIDATION, Role.TEST], [part.nnz for part in (train, validation, test)])
    user, item = np.concatenate([np.stack(part.nonzero()) for part in (train, validation, test)], axis=1)
    check_split("cold_items", roles.astype(np.int8), user, item, np.zeros(len(item), np.int64))


def columns(matrix: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """The matrix with the columns `kept`, and zeros elsewhere."""
    mask = np.zeros(matrix.shape[1], np.float32)
    mask[kept] = 1.0
    found = (matrix @ scipy.sparse.diags(mask)).tocsr()
    found.eliminate_zeros()
    return found


# ---- what comes next -------------------------------------------------------------------------------------------------


def train_next(
    split: LeaveOneOut,
    known: Known,
    configs: Sequence[RankerConfig],
    seed: int,
    tell: Tell,
    *,
    mixed: bool = True,
) -> tuple[RankerConfig, Trained]:
    """Choose on validation; the test is then read with validation's event as the newest of each history."""
    ts = of_sequences(split.sequences, known.content, known.tags)
    return choose(ts, leave_one_out(ts, split), configs, seed, tell, mixed=mixed)


def gains_of_next(trained: Trained) -> Mapping[str, Values]:
    """HR@10 and NDCG@10 of the test by user, in the order of users."""
    run = trained.fitted.run
    scoring = Scoring.of(run, run.split.test)
    assert isinstance(scoring, LabelScoring)  # noqa: S101 - these models read an order
    examples = scoring.examples
    found = {name: np.zeros(len(scoring)) for name in ("hr_10", "ndcg_10")}
    for at, scores in scoring.scores():
        above, ties = label_places(run, examples, at, scores)
        found["hr_10"][at] = metrics.recall_at_k(above, ties, 10)
        found["ndcg_10"][at] = metrics.ndcg_at_k(above, ties, 10)
    order = np.argsort([int(user[1:]) for user in examples.labels.users], kind="stable")
    return {name: values[order] for name, values in found.items()}


def described(config: RankerConfig) -> str:
    """The settings that differ from `PLAIN`, as a table tells them."""
    plain = asdict(PLAIN)
    return str({name: value for name, value in asdict(config).items() if plain[name] != value})
