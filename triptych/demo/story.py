"""What the demo has to tell once it has run: plain data that the terminal table and the HTML report both read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from triptych.demo.catalogue import Catalogue, Item
from triptych.demo.truth import World
from triptych.demo.vocabulary import SOUNDS, STYLES, TOPICS

MODALITIES: Final = ("text", "image", "audio")
SHOWN_HISTORY: Final = 12
METRICS: Final = (
    "ndcg_at_10",
    "ndcg_at_10_popularity",
    "ndcg_at_10_oracle",
    "ndcg_at_10_shuffled_content",
    "auc",
    "recall_at_20",
)


@dataclass(frozen=True)
class Result:
    """One place of a ranking: the item, its score, the part of each group in it, and the history items behind it."""

    item: Item
    score: float
    shares: Mapping[str, float]
    because: Sequence[tuple[Item, float]]
    matches: Sequence[str]  # the modalities in which the item meets the user's planted favourite
    true_place: int  # the place that the planted probability gives it among all the items new to the user, from 1


@dataclass(frozen=True)
class Person:
    """One user of the report: planted taste, words, history (newest first), ranking, and what the reply said of itself."""

    user_id: str
    favourites: Mapping[str, str]  # modality -> planted favourite
    weights: Mapping[str, float]  # modality -> planted weight
    words: str
    history: Sequence[Item]
    history_length: int
    results: Sequence[Result]
    degraded: Sequence[str]
    milliseconds: float
    model_id: str


@dataclass(frozen=True)
class Story:
    """Everything the report shows."""

    people: Sequence[Person]
    metrics: Mapping[str, float]  # the keys of METRICS, perhaps with `..._unseen` variants
    quarantined: Sequence[tuple[str, str]]  # file, reason
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    media: Path  # folder that the items' paths are relative to
    home: Path
    corrupt: Sequence[str] = field(default=())

    @property
    def lift(self) -> float:
        """(ranker - popularity) / (oracle - popularity) of NDCG@10: the part of what can be known that was learned."""
        return lift(self.metrics, "ndcg_at_10")

    @property
    def shuffled_lift(self) -> float:
        """The same for a ranker trained on shuffled content."""
        return lift(self.metrics, "ndcg_at_10_shuffled_content")


def lift(metrics: Mapping[str, float], key: str) -> float:
    """How far `metrics[key]` is on the way from popularity (0) to the oracle (1)."""
    floor, top = metrics["ndcg_at_10_popularity"], metrics["ndcg_at_10_oracle"]
    return (metrics[key] - floor) / (top - floor)


def choose_people(world: World) -> list[str]:
    """A reader, a looker and a listener: for each modality the user with a good history whom it moves most."""
    lengths = dict.fromkeys(world.truth.user_ids, 0)
    for event in world.events:
        lengths[event.user_id] += 1
    chosen: list[str] = []
    for m in range(len(MODALITIES)):
        order = np.argsort(-world.tastes.weights[:, m], kind="stable")
        names = [world.truth.user_ids[int(u)] for u in order]
        chosen.append(next(u for u in names if 15 <= lengths[u] <= 30 and u not in chosen))
    return chosen


def tell_person(catalogue: Catalogue, world: World, user_id: str, reply: Mapping[str, Any]) -> Person:
    """Join one Rank reply (as `triptych client rank --json` prints it) with the catalogue and the planted truth."""
    user = world.truth.user_ids.index(user_id)
    item_of = {item.item_id: item for item in catalogue.items}
    loved = [int(liking[user].argmax()) for liking in world.tastes.likings]
    names = (TOPICS[loved[0]].name, STYLES[loved[1]], SOUNDS[loved[2]])
    events = [event for event in world.events if event.user_id == user_id]
    places = _true_places(catalogue, world, user_id, {event.item_id for event in events})
    results = [
        Result(
            item=item_of[item_id],
            score=float(reply["scores"][i]),
            shares=dict(zip(reply["share_groups"], reply["shares"][i], strict=True)),
            because=[(item_of[one], float(weight)) for one, weight in reply["influences"][i] if one in item_of],
            matches=_matches(item_of[item_id], loved),
            true_place=places.get(item_id, len(places) + 1),
        )
        for i, item_id in enumerate(reply["item_ids"])
    ]
    return Person(
        user_id=user_id,
        favourites=dict(zip(MODALITIES, names, strict=True)),
        weights=dict(zip(MODALITIES, world.tastes.weights[user].tolist(), strict=True)),
        words=world.profiles.get(user_id, ""),
        history=[item_of[event.item_id] for event in reversed(events)][:SHOWN_HISTORY],
        history_length=len(events),
        results=results,
        degraded=[f"{reason['reason']}: {reason['detail']}" for reason in reply["degraded"]],
        milliseconds=float(reply["timings_ms"].get("total", 0.0)),
        model_id=str(reply["model_id"]),
    )


def _matches(item: Item, loved: Sequence[int]) -> list[str]:
    met = (
        item.topic == loved[0],
        bool(item.image) and item.style == loved[1],
        bool(item.audio) and item.sound == loved[2],
    )
    return [modality for modality, meets in zip(MODALITIES, met, strict=True) if meets]


def _true_places(catalogue: Catalogue, world: World, user_id: str, taken: set[str]) -> dict[str, int]:
    new = [item_id for item_id in world.truth.item_ids if item_id not in taken]
    p = world.truth.probabilities(user_id, round(catalogue.end.timestamp() * 1e6), new)
    return {new[int(row)]: place for place, row in enumerate(np.argsort(-p, kind="stable"), 1)}
