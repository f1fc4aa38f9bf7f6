"""Calibration: from a model's logits to chances that hold, and the reliability curve that shows whether they do.

Fitted on validation, and on training's events where a caller asks for them: `fit_calibration` refuses those of any other role. Three forms: one temperature, a logistic line (Platt), and a monotone
function (isotonic), each of which can be written into a manifest as plain data. Fitting needs scikit-learn; applying what was fitted needs numpy alone.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ranker.errors import EvaluationError
from ranker.leakage import check_only
from ranker.protocols import Role, Roles

Values = NDArray[np.float64]
Kind = Literal["temperature", "logistic", "isotonic"]
KINDS: Final[tuple[Kind, ...]] = ("temperature", "logistic", "isotonic")
BINS: Final = 10
_FOLDS: Final = 5
_MOST_TEMPERATURE: Final = 100.0


def sigmoid(logits: NDArray[Any]) -> Values:
    """1 / (1 + exp(-logits)) without overflow, exact for very small chances too."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


@dataclass(frozen=True)
class Temperature:
    """sigmoid(logit / temperature): the order stays, only the confidence changes (Guo et al., ICML 2017, section 4.2)."""

    kind: ClassVar[Kind] = "temperature"
    temperature: float

    def __call__(self, logits: NDArray[Any]) -> Values:
        """Chances [n] of logits [n]."""
        return sigmoid(np.asarray(logits, np.float64) / self.temperature)


@dataclass(frozen=True)
class Logistic:
    """sigmoid(slope logit + intercept) (Platt 1999, without his smoothed targets)."""

    kind: ClassVar[Kind] = "logistic"
    slope: float
    intercept: float

    def __call__(self, logits: NDArray[Any]) -> Values:
        """Chances [n] of logits [n]."""
        return sigmoid(self.slope * np.asarray(logits, np.float64) + self.intercept)


@dataclass(frozen=True)
class Isotonic:
    """The monotone function nearest to the labels (Zadrozny and Elkan, KDD 2002), linear between its knots and flat beyond them."""

    kind: ClassVar[Kind] = "isotonic"
    logits: tuple[float, ...]
    chances: tuple[float, ...]

    def __call__(self, logits: NDArray[Any]) -> Values:
        """Chances [n] of logits [n]."""
        return np.asarray(np.interp(np.asarray(logits, np.float64), self.logits, self.chances), np.float64)


Calibration = Temperature | Logistic | Isotonic
_FORMS: Final[dict[str, type[Calibration]]] = {form.kind: form for form in (Temperature, Logistic, Isotonic)}


def fit_calibration(
    kind: Kind, logits: NDArray[Any], labels: NDArray[Any], roles: Roles, *, with_training: bool = False
) -> Calibration:
    """Fit on logits [n] and labels [n] (0 or 1) of validation events.

    Args:
        kind: temperature, logistic or isotonic.
        logits: the model's scores before the sigmoid.
        labels: what happened.
        roles: what each event is for; any but validation's (and training's, if asked for) is refused with `LeakageError`.
        with_training: take training events too. A model that has learned their labels is surer of them than of new ones: let validation say
            whether that helps.

    Raises `EvaluationError` where the arrays do not fit, or labels are all alike: there is nothing to calibrate against.
    """
    labels, logits = checked(labels, logits)
    if len(roles) != len(labels):
        raise EvaluationError(f"there are {len(labels)} labels and {len(roles)} roles: they must be one to one")
    check_only(np.asarray(roles)[~(with_training & (np.asarray(roles) == Role.TRAIN))], Role.VALIDATION, "calibration")
    if len(np.unique(labels)) < 2:
        raise EvaluationError(f"calibration needs labels of both classes: there are {len(labels)}, all alike")
    if kind not in KINDS:
        raise EvaluationError(f"there is no calibration {kind!r}; there are {', '.join(KINDS)}")
    return {"temperature": _temperature, "logistic": _logistic, "isotonic": _isotonic}[kind](logits, labels)


def choose_calibration(logits: NDArray[Any], labels: NDArray[Any], roles: Roles, *, seed: int = 0) -> Calibration:
    """The form with the least log loss by five-fold cross-validation within validation, fitted on all of it. Raises as `fit_calibration`."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    fit_calibration("temperature", logits, labels, roles)  # refuses what cannot be fitted, before it is folded
    fewest = int(np.bincount(np.asarray(labels, np.int64)).min())
    if fewest < _FOLDS:
        raise EvaluationError(
            f"a calibration is chosen in {_FOLDS} folds, and there are only {fewest} labels of one class: fit `temperature` by name"
        )
    folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(logits, labels))

    def loss(kind: Kind) -> float:
        chances = np.empty(len(labels))
        for fitted, held in folds:
            chances[held] = fit_calibration(kind, logits[fitted], labels[fitted], roles[fitted])(logits[held])
        return float(log_loss(labels, chances, labels=[0, 1]))

    return fit_calibration(min(KINDS, key=loss), logits, labels, roles)


def _temperature(logits: Values, labels: Values) -> Calibration:
    from scipy.optimize import minimize_scalar

    signed = np.where(labels > 0, logits, -logits)
    bound = float(np.log(_MOST_TEMPERATURE))
    found = minimize_scalar(
        lambda log_t: np.logaddexp(0.0, -signed * np.exp(-log_t)).mean(), bounds=(-bound, bound), method="bounded"
    )
    return Temperature(float(np.exp(found.x)))


def _logistic(logits: Values, labels: Values) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    # Scaled, so that the solver's tolerance means the same whatever the unit of the logits.
    scale = float(logits.std()) or 1.0
    fitted = LogisticRegression(C=np.inf).fit(logits[:, None] / scale, labels)
    return Logistic(float(fitted.coef_[0, 0]) / scale, float(fitted.intercept_[0]))


def _isotonic(logits: Values, labels: Values) -> Calibration:
    """Chances stay within 1 / (n + 2) of 0 and 1, by the rule of succession: n events cannot show that anything is impossible."""
    from sklearn.isotonic import IsotonicRegression

    least = 1.0 / (len(labels) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1.0 - least).fit(logits, labels)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """As plain data for a manifest: its kind and its numbers."""
    return {"kind": calibration.kind, **asdict(calibration)}


def from_dict(data: dict[str, Any]) -> Calibration:
    """What `to_dict` gave; raises `EvaluationError` for a kind that does not exist."""
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name != "kind"
    }
    try:
        form: Any = _FORMS[data["kind"]]
        return cast("Calibration", form(**values))
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"{data} is no calibration: its kind must be one of {', '.join(KINDS)}, with that kind's numbers"
        ) from error


# ---- reliability -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """How often things happened that were given a chance, by bins of equal width over 0..1; the first holds its lower edge too.

    Attributes:
        predicted: mean chance given in each bin, NaN where it is empty.
        observed: share of its events that happened, NaN where it is empty.
        weight: events in each bin.
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    weight: tuple[float, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over events of |observed - predicted| of their bin (Naeini et al., AAAI 2015; Guo et al. 2017)."""
        weight = np.asarray(self.weight)
        gap = np.abs(np.asarray(self.observed) - np.asarray(self.predicted))
        return float(np.average(gap[weight > 0], weights=weight[weight > 0]))


def reliability(
    labels: NDArray[Any], chances: NDArray[Any], *, bins: int = BINS, weights: Values | None = None
) -> Reliability:
    """The reliability curve of chances [n] for labels [n]; `weights` [n] count events more than once, or not at all."""
    labels, chances = checked(labels, chances)
    if chances.min() < 0 or chances.max() > 1:
        raise EvaluationError(
            f"chances must lie in 0..1; found {chances.min():g} to {chances.max():g}: are these logits?"
        )
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], chances)
    weights = np.ones(len(labels)) if weights is None else weights
    weight, given, happened = (
        np.bincount(bin_of, weights * values, bins) for values in (np.ones(len(labels)), chances, labels)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(
            tuple((given / weight).tolist()), tuple((happened / weight).tolist()), tuple(weight.tolist())
        )


def checked(labels: NDArray[Any], values: NDArray[Any]) -> tuple[Values, Values]:
    """Labels and scores [n] as float64; raises `EvaluationError` where there are none, they do not fit, or one is not what it should be."""
    labels, values = np.asarray(labels, np.float64), np.asarray(values, np.float64)
    if labels.shape != values.shape or labels.ndim != 1 or not len(labels):
        raise EvaluationError(f"labels {labels.shape} and scores {values.shape} must be one to one, and some")
    for name, wrong in (("label", (labels != 0) & (labels != 1)), ("score", ~np.isfinite(values))):
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            value = (labels if name == "label" else values)[at]
            raise EvaluationError(f"{name} {at} is {value:g}: labels are 0 or 1, and scores are finite")
    return labels, values
