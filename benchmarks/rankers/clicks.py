"""Click labels on MovieLens-100K: rating >= 4, each user's own events split 80/10/10 in time; AUC, AUC by user, calibration error.

Every method learns from training, is chosen and stopped on validation, calibrated on it (the click model on training too), and is judged on the test once what is closed-form in it has been
refreshed with validation. The claims are of the frozen regime: nothing after the end of validation is known. In the running regime a label may see
everything strictly before its instant, other users' events too; its peer is given the same.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common import Record
from benchmarks.rankers.rating_peers import fit_biases, fit_factors, running_biases
from benchmarks.rankers.sequences import Sequences, movielens_100k
from benchmarks.rankers.sets import data_folder, tag_matrix, tags_of_film
from ranker import leakage
from ranker.bootstrap import POOLED_RESAMPLES, RESAMPLES, differences, estimates, pooled
from ranker.calibration import fit_calibration
from ranker.click import ClickConfig, ClickLabels, fit_click
from ranker.click_metrics import auc, ece, user_auc
from ranker.click_rows import ClickRows, RowsConfig, frozen_rows, running_rows, training_rows
from ranker.protocols import Role, Roles, ratio
from ranker.rating_prior import RatingPriorConfig, Ratings, content_kernel, fit_rating_prior

NAME: Final = "movielens-100k-click"
LIKED_FROM: Final = 4.0
SECOND_US: Final = 1_000_000
MIDDLE_AND_SPREAD: Final = (3.5, 1.1)  # of five stars, before any rating is known
AUC_BAR, GAUC_BAR, ECE_BAR = 0.805, 0.725, 0.015
# Chosen on validation.
CONTENT: Final = {"tags": 0.15, "genre": 0.08, "text": 0.04, "year": 0.04}
YEARS_ALIKE: Final = 10.0
SHRINKAGES: Final = tuple(product((1.0, 3.0, 10.0), (1.0, 3.0, 10.0)))
RANK: Final = 16
RIDGES: Final = (3.0, 6.0, 12.0, 25.0)
QUICK_STEPS: Final = 2
Values = NDArray[np.float64]
Tell = Callable[[str], Any]


@dataclass(frozen=True)
class ClickSet:
    """Ratings sorted by user and time, which of them are likes, what each is for, and items' content."""

    ratings: Ratings
    clicked: NDArray[np.bool_]
    roles: Roles
    vectors: Mapping[str, NDArray[np.float32]]
    tags: Mapping[str, NDArray[np.float32]]

    @classmethod
    def of(cls, events: Sequences, vectors: Mapping[str, Any], tags: Mapping[str, Any]) -> "ClickSet":
        """Split by each user's own time, and checked."""
        time_us = events.timestamp * SECOND_US
        roles = ratio(events.user, time_us)
        leakage.check_split("ratio", roles, events.user, events.item, time_us)
        times = events.timestamp.astype(np.float64)
        ratings = Ratings(events.user, events.item, events.rating, times, len(events.item_names))
        return cls(ratings, events.rating >= LIKED_FROM, roles, vectors, tags)

    @cached_property
    def train(self) -> NDArray[np.bool_]:
        """Which events are for training."""
        return self.roles == Role.TRAIN

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """Which events are known when the test begins: training's and validation's."""
        return self.roles <= Role.VALIDATION

    def events(self, role: Role) -> NDArray[np.int64]:
        """The numbers of a role's events."""
        return np.flatnonzero(self.roles == role)

    @property
    def shape(self) -> tuple[int, int]:
        """(users, items)."""
        return int(self.ratings.user.max()) + 1, self.ratings.items


def movielens_clicks() -> ClickSet:
    """MovieLens-100K with plots as the bundled text encoder reads them, and tags: all that is known of a film, the set's genres, and its year."""
    from encoders import load_profile

    events = movielens_100k()
    folder = data_folder("movielens-100k")
    lines = (folder / "items.jsonl").read_text().splitlines()
    films = {str(film["item_id"]): film for film in map(json.loads, lines)}
    known = [films.get(name, {}) for name in events.item_names]
    said = [f"{film.get('title') or ''}. {film.get('plot') or ''}" for film in known]
    text = np.asarray(load_profile("bundled").text.encode(said), np.float32)
    table = [line.split("\t") for line in (folder / "ml-100k.item").read_text().splitlines()[1:]]
    years, genres = ({item: row[column] for item, *row in table} for column in (1, 2))
    tags = {
        "tags": tag_matrix([tags_of_film(film) for film in known]),
        "genre": _marks([genres.get(name, "").split() for name in events.item_names]),
        "year": _near([years.get(name, "") for name in events.item_names]),
    }
    return ClickSet.of(events, {"text": text}, tags)


def _marks(tags: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Ones where an item has a tag [I, T]."""
    names = sorted({tag for one in tags for tag in one})
    return np.array([[tag in one for tag in names] for one in tags], np.float32)


def _near(years: Sequence[str]) -> NDArray[np.float32]:
    """A bump about each item's year [I, Y], so that the cosine of two items is `exp(-(years apart / 10)^2 / 2)`; 0 where it has none."""
    known = np.array([float(year) if year.strip().isdigit() else np.nan for year in years])
    every = np.arange(np.nanmin(known) - 4 * YEARS_ALIKE, np.nanmax(known) + 4 * YEARS_ALIKE)
    return np.nan_to_num(np.exp(-(((known[:, None] - every) / YEARS_ALIKE) ** 2))).astype(np.float32)


# ---- what is judged ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A method's scores and calibrated chances of the test's labels, by seed [S, n], and what is told beside its figures."""

    scores: Values
    chances: Values
    facts: Mapping[str, Any]
    setting: Any = None  # that was chosen, where there was a choice


def calibrated(data: ClickSet, held: Values, tested: Values) -> Values:
    """Chances of the test's scores by a logistic line through validation's."""
    at = data.events(Role.VALIDATION)
    return fit_calibration("logistic", held, data.clicked[at].astype(np.int64), data.roles[at])(tested)


def chosen(data: ClickSet, settings: Sequence[Any], score: Callable[[Any, NDArray[np.bool_]], Values]) -> Scored:
    """A peer by the settings with the best AUC on validation; `score(setting, events)` says what a fit on those events expects of all events."""
    at, tested = data.events(Role.VALIDATION), data.events(Role.TEST)
    tried = [score(setting, data.train)[at] for setting in settings]
    best = int(np.argmax([auc(data.clicked[at], one) for one in tried]))
    scores = score(settings[best], data.known)[tested]
    facts = {"settings": str(settings[best]), "validation_auc": round(auc(data.clicked[at], tried[best]), 4)}
    return Scored(scores[None], calibrated(data, tried[best], scores)[None], facts, settings[best])


def biases(data: ClickSet) -> Scored:
    """Mean and biases of users and items."""
    of = data.ratings

    def score(shrinkage: tuple[float, float], events: NDArray[np.bool_]) -> Values:
        mean, users, items = fit_biases(of.user[events], of.item[events], of.value[events], data.shape, shrinkage)
        return mean + users[of.user] + items[of.item]

    return chosen(data, SHRINKAGES, score)


def factors(data: ClickSet, seeds: Sequence[int]) -> Scored:
    """Biased matrix factorisation of rank 16; the ridge is chosen by the first seed."""
    of = data.ratings

    def score(setting: tuple[float, int], events: NDArray[np.bool_]) -> Values:
        ridge, seed = setting
        mean, users, items = fit_factors(
            of.user[events], of.item[events], of.value[events], data.shape, RANK, ridge, seed
        )
        return mean + np.einsum("nr,nr->n", users[of.user], items[of.item])

    first = chosen(data, [(ridge, seeds[0]) for ridge in RIDGES], score)
    ridge = first.setting[0]
    more = [chosen(data, [(ridge, seed)], score) for seed in seeds[1:]]
    parts = [first, *more]
    return Scored(
        np.concatenate([one.scores for one in parts]), np.concatenate([one.chances for one in parts]), first.facts
    )


def passing_biases(data: ClickSet) -> Scored:
    """Biases of everything strictly before each label, of any user: the running regime's peer."""
    of = data.ratings
    run = {
        shrinkage: running_biases(of.user, of.item, of.value, of.time_s, data.shape, shrinkage, MIDDLE_AND_SPREAD[0])
        for shrinkage in SHRINKAGES
    }
    return chosen(data, SHRINKAGES, lambda shrinkage, _: run[shrinkage])


@dataclass(frozen=True)
class Rows:
    """Rows of training, validation and the test, and how long the priors took to fit."""

    train: ClickRows
    validation: ClickRows
    test: ClickRows
    seconds: float


def frozen(data: ClickSet, content: Values | None, prior: RatingPriorConfig, tell: Tell) -> Rows:
    """Rows of the frozen regime: validation is judged by what training knows, the test by what both know."""
    started, config = time.perf_counter(), RowsConfig()
    tell("priors out of fold")
    train = training_rows(data.ratings, data.clicked, data.train, content, prior, config)
    rows = {}
    for role, seen in ((Role.VALIDATION, data.train), (Role.TEST, data.known)):
        tell(f"prior for the {role.name.lower()}")
        fitted = fit_rating_prior(data.ratings, seen, content, prior)
        rows[role] = frozen_rows(fitted, data.ratings, data.clicked, seen, data.roles == role, config)
    return Rows(train, rows[Role.VALIDATION], rows[Role.TEST], time.perf_counter() - started)


def running(data: ClickSet, content: Values | None, prior: RatingPriorConfig, tell: Tell) -> Rows:
    """Rows of the running regime."""
    started = time.perf_counter()
    tell("priors of each window")
    wanted = data.roles <= Role.TEST
    rows = running_rows(data.ratings, data.clicked, wanted, content, prior, unit=MIDDLE_AND_SPREAD)
    rows = rows.take(np.argsort(rows.event))
    parts = (rows.take(np.flatnonzero(data.roles[rows.event] == role)) for role in Role if role <= Role.TEST)
    return Rows(*parts, time.perf_counter() - started)


def prior_alone(data: ClickSet, rows: Rows) -> Scored:
    """What the prior expects, and nothing learned on top of it."""
    held, tested = rows.validation.context[:, 0].astype(float), rows.test.context[:, 0].astype(float)
    return Scored(tested[None], calibrated(data, held, tested)[None], {"prior_minutes": round(rows.seconds / 60, 1)})


def network(
    data: ClickSet, rows: Rows, config: ClickConfig, seeds: Sequence[int], seconds: float, tell: Tell
) -> Scored:
    """The click model, its mean over the seeds."""
    of = data.ratings
    centre, scale = of.value[data.train].mean(), of.value[data.train].std()
    labels = ClickLabels(data.clicked.astype(np.int64), (of.value - centre) / scale, data.roles)
    popularity = np.bincount(of.item[data.train], minlength=of.items)
    fitted = []
    for seed in seeds:
        tell(f"network, seed {seed}")
        fitted.append(fit_click(rows.train, rows.validation, labels, popularity, config, seed=seed, seconds=seconds))
    facts = {
        "minutes": round((rows.seconds + float(np.mean([one.seconds for one in fitted]))) / 60, 1),
        "epochs": [int(np.argmin(one.looks)) + 1 for one in fitted],
        "validation_logloss": round(float(np.mean([min(one.looks) for one in fitted])), 4),
        "validation_auc": round(_mean_auc(data, rows.validation, [one.logits(rows.validation) for one in fitted]), 4),
    }
    return Scored(
        np.stack([one.logits(rows.test) for one in fitted]), np.stack([one.chances(rows.test) for one in fitted]), facts
    )


def _mean_auc(data: ClickSet, rows: ClickRows, scores: Sequence[Values]) -> float:
    return float(np.mean([auc(data.clicked[rows.event], one) for one in scores]))


# ---- figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Figures of the test's labels: means over seeds, intervals by drawing users."""

    label: NDArray[np.int64]
    user: NDArray[np.int64]
    quick: bool = False

    @property
    def draws(self) -> tuple[int, int]:
        """How often users are drawn, for metrics of all events, and for means over users."""
        return (20, 100) if self.quick else (POOLED_RESAMPLES, RESAMPLES)

    def figures(self, found: Scored) -> dict[str, Any]:
        """AUC, GAUC and ECE with their intervals, each seed's, and the method's facts."""
        by_seed = {
            "auc": [auc(self.label, one) for one in found.scores],
            "gauc": [user_auc(self.label, one, self.user).mean for one in found.scores],
            "ece": [ece(self.label, one) for one in found.chances],
        }
        pool = partial(pooled, user=self.user, resamples=self.draws[0])
        intervals = {
            "auc": pool(lambda weight: self._auc(found, weight)),
            "gauc": estimates({"it": self._by_user(found)}, weights=self._events(), resamples=self.draws[1])["it"],
            "ece": pool(lambda weight: float(np.mean([ece(self.label, one, weight) for one in found.chances]))),
        }
        return {
            **{name: round(float(np.mean(values)), 4) for name, values in by_seed.items()},
            **{f"{name}_interval": [round(of.low, 4), round(of.high, 4)] for name, of in intervals.items()},
            **{f"{name}_by_seed": [round(value, 4) for value in values] for name, values in by_seed.items()},
            **found.facts,
        }

    def gain(self, ours: Scored, peer: Scored) -> dict[str, Any]:
        """AUC and GAUC less the peer's on the same users, with intervals: paired by user."""
        area = pooled(
            lambda weight: self._auc(ours, weight) - self._auc(peer, weight), self.user, resamples=self.draws[0]
        )
        values = {"ours": self._by_user(ours), "peer": self._by_user(peer)}
        of = differences(values, "ours", weights=self._events(), resamples=self.draws[1])["peer"]
        return {
            "auc": [round(value, 4) for value in (area.mean, area.low, area.high)],
            "gauc": [round(value, 4) for value in (of.mean, of.low, of.high)],
        }

    def _auc(self, found: Scored, weight: Values) -> float:
        return float(np.mean([auc(self.label, one, weight) for one in found.scores]))

    def _by_user(self, found: Scored) -> Values:
        """Each user's AUC [U], the mean over seeds; NaN for users with one class."""
        return np.mean([user_auc(self.label, one, self.user).auc for one in found.scores], axis=0)

    def _events(self) -> Values:
        return user_auc(self.label, self.label, self.user).events


def measure_clicks(seeds: Sequence[int], minutes: float, record: Record, *, quick: bool = False) -> None:
    """Peers, the click model and what each part of it adds, in one run; `minutes` is for each training of a network at most.

    Raises `FileNotFoundError` where the data set is not there. `quick` fits priors by two steps, and leaves parts and the running regime out.
    """
    console = Console(stderr=True)
    with console.status(f"{NAME}: plots are encoded") as status:
        measure_set(
            movielens_clicks(), seeds, 60 * minutes, record, lambda what: status.update(f"{NAME}: {what}"), quick=quick
        )


def measure_set(
    data: ClickSet, seeds: Sequence[int], seconds: float, record: Record, tell: Tell, *, quick: bool = False
) -> None:
    """As `measure_clicks`, of a set that is there."""
    tested = data.events(Role.TEST)
    judge = Judge(data.clicked[tested].astype(np.int64), data.ratings.user[tested], quick)
    content = content_kernel(data.vectors, data.tags, CONTENT)
    prior = RatingPriorConfig(steps=QUICK_STEPS) if quick else RatingPriorConfig()
    record.note(f"{NAME} settings", {"prior": str(asdict(prior)), "content": str(CONTENT)})
    train = partial(network, data, seeds=seeds, seconds=seconds, tell=tell)
    tell("peers")
    scored = {"biases": biases(data), "factors": factors(data, seeds)}
    rows = frozen(data, content, prior, tell)
    scored |= {"prior alone": prior_alone(data, rows), "click model": train(rows, ClickConfig())}
    if not quick:
        scored["no attention"] = train(rows, ClickConfig(attention=False))
        scored["no context"] = train(rows, ClickConfig(context=False))
        still = RatingPriorConfig(**{**asdict(prior), "drift": 0.0})
        scored["no drift"] = train(frozen(data, content, still, tell), ClickConfig())
        scored["no content"] = train(frozen(data, None, prior, tell), ClickConfig())
    _tell_all(record, "", judge, scored, claims=True)
    if not quick:
        rows = running(data, content, prior, tell)
        ours = {"prior alone": prior_alone(data, rows), "click model": train(rows, ClickConfig())}
        _tell_all(record, "running ", judge, {"biases": passing_biases(data), **ours}, claims=False)


def _tell_all(record: Record, regime: str, judge: Judge, scored: Mapping[str, Scored], *, claims: bool) -> None:
    """Note each method's figures and the click model's gain over it, and claim the model's."""
    ours = scored["click model"]
    for method, found in scored.items():
        figures = judge.figures(found)
        record.note(f"{NAME} {regime}{method}", figures)
        if found is not ours:
            record.note(f"{NAME} {regime}gain over {method}", judge.gain(ours, found))
        elif claims:
            record.claim("ml100k_click_auc", figures["auc"], "AUC", bar=AUC_BAR)
            record.claim("ml100k_click_gauc", figures["gauc"], "AUC by user", bar=GAUC_BAR)
            record.claim("ml100k_click_ece", figures["ece"], "of chances", bar=ECE_BAR, better="lower")
