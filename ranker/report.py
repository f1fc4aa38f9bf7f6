"""An evaluation as plain data, written as `report.json` and as one self-contained page, `report.html`.

Measures nothing and knows no model: whoever evaluates fills in a `Report`. A part that is not given is in neither file. The page is `report_page`'s.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from feature_store.files import write_whole
from ranker.bootstrap import Difference, Estimate
from ranker.calibration import Reliability
from ranker.errors import EvaluationError
from ranker.slices import SliceResult

SCHEMA_VERSION: Final = 1
JSON_NAME: Final = "report.json"
PAGE_NAME: Final = "report.html"


@dataclass(frozen=True)
class Peer:
    """A method that the model is compared with.

    Attributes:
        name: the scorer's name in `Report.metrics`.
        what: the method in a few words, with its source.
        settings: those that it was judged with.
        chosen: how these were chosen: among what, on what, within what time.
        minutes: training time, NaN where there is none.
    """

    name: str
    what: str
    settings: str = ""
    chosen: str = ""
    minutes: float = math.nan


@dataclass(frozen=True)
class Calibrated:
    """What calibration did to the chances of the test: how it was fitted, in words, and the curves before and after."""

    method: str
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Curve:
    """One line of training: `values` at `steps` (epochs or steps, as `axis` says); curves of one `panel` share a plot."""

    panel: str
    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    axis: str = "epoch"


@dataclass(frozen=True)
class Gates:
    """Mean weight that the item token's attention gives to each modality, over the items of a category that have it; they need not sum to 1."""

    category: str
    items: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Attended:
    """An event of a user's history, and how much of the candidate's score is due to it."""

    item_id: str
    weight: float
    title: str = ""
    when: str = ""


@dataclass(frozen=True)
class Attention:
    """What of one user's history one candidate's score is due to, oldest event first: `by` its attention, or the neighbours of its prior."""

    user_id: str
    candidate_id: str
    history: tuple[Attended, ...]
    title: str = ""
    by: str = "attention"


@dataclass(frozen=True)
class Report:
    """One model, judged against its peers on one protocol. Everything is plain data; what is empty or None is left out.

    Attributes:
        model_id: the model.
        scorer: the model's name among `metrics`.
        protocol: how the events were split, in words (`protocols.STATED`).
        masks: which items were candidates and which were masked, in words.
        main_metric: the metric of `differences` and `slices`, by its name in `metrics`.
        metrics: scorer -> metric -> estimate; bounds are NaN where a metric has no interval (coverage, Gini).
        users: users that were judged.
        labels: labels (relevant items) that were judged.
        facts: further facts in words, such as data set, seeds, how ties were treated.
        differences: the model's main metric less that of each other scorer, paired by user.
        slices: the main metric by slice.
        calibration: reliability before and after calibration.
        training: curves of the training.
        gates: mean modality gates by category.
        attention: one user's history as a candidate sees it.
        peers: what the other scorers are.
        notes: what a reader must know: what was left out, and where the model loses.
    """

    model_id: str
    scorer: str
    protocol: str
    masks: str
    main_metric: str
    metrics: Mapping[str, Mapping[str, Estimate]]
    users: int
    labels: int
    facts: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    slices: Sequence[SliceResult] = ()
    calibration: Calibrated | None = None
    training: Sequence[Curve] = ()
    gates: Sequence[Gates] = ()
    attention: Attention | None = None
    peers: Sequence[Peer] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise `EvaluationError` where a part names a scorer or metric that was not judged, or states nothing."""
        for name in ("model_id", "protocol", "masks"):
            if not getattr(self, name).strip():
                raise EvaluationError(f"a report must state its {name}: it is empty")
        if self.main_metric not in self.metrics.get(self.scorer, {}):
            raise EvaluationError(
                f"the model's own {self.main_metric} is not in metrics: {self.scorer!r} was not judged by it"
            )
        named = {*self.differences, *(peer.name for peer in self.peers)}
        named |= {scorer for one in self.slices for scorer in one.estimates}
        if unknown := sorted(named - set(self.metrics)):
            raise EvaluationError(
                f"{', '.join(unknown)} is compared, but not in metrics, which has {', '.join(self.metrics)}"
            )
        for curve in self.training:
            if len(curve.steps) != len(curve.values):
                raise EvaluationError(
                    f"curve {curve.name!r} has {len(curve.steps)} steps and {len(curve.values)} values"
                )


def to_dict(report: Report) -> dict[str, Any]:
    """The report as JSON's own types: NaN and infinities are None, and what is absent is not there."""
    plain = {name: value for name, value in asdict(report).items() if value not in (None, {}, [], ())}
    return {"schema_version": SCHEMA_VERSION, **_finite(plain)}


def write_report(folder: Path, report: Report) -> Path:
    """Write `report.json` and `report.html` into `folder`, which is made where it is not there; return the page.

    Both are made before either is written, and each is replaced whole. The page needs matplotlib (extra `report`).
    """
    from ranker.report_page import render

    page = render(report)
    text = json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / JSON_NAME, text)
    write_whole(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
