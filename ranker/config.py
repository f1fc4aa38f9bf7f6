"""Settings of the fusion ranker: its size, how it is trained, and what counts as liking something.

A frozen dataclass that goes into the checkpoint's manifest, so that a model can be rebuilt and its training repeated.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

from ranker.errors import RankerError

KINDS: Final = ("fusion", "ease", "svd")
HISTORIES: Final = ("order", "set")
FUSIONS: Final = ("gate", "sum", "concat", "late")
PRIORS: Final = ("", "ease", "svd")
PRECISIONS: Final = ("auto", "float32", "bfloat16")
GROUPS_BESIDE_MODALITIES: Final = ("id", "other")


@dataclass(frozen=True)
class RankerConfig:
    """Everything that training depends on beside the data and the seed.

    Attributes:
        dim: width of item tokens and of the Transformer.
        space_dim: directions kept of each embedding space (principal axes of the training items).
        whitening: 0 keeps the spread of the principal axes, 1 makes all of them equally wide.
        prototypes, taste_steps: kinds of content told apart in each space; gradient steps that fit a user's taste for them.
        content_dim, content_dropout: hidden width of what reads each space and the tags, and the chance that one of its inputs is lost.
        fusion: how the parts of an item become its token: `gate`, or `sum` or `concat` to compare with; `late` gives each
            modality an expert that knows ids and all else but no other modality, and adds the experts' scores (sets only).
        ids, time_gaps: whether tokens know their id, and histories how long ago things were; without, to compare with.
        collaborative: factors of who met what that are a part of the token (0: none), in training those of other users alone.
        history: `order` reads events oldest first by a causal Transformer, `set` their tokens' sum by two layers of width `set_dim`, for
            data that have no times.
        layers, heads, dropout: of the causal Transformer over the history; `dropout` is the set reader's too.
        history_length: newest events that are read.
        gap_buckets: logarithmic buckets of event age, from a minute up.
        modality_dropout, id_dropout: chance that an item loses a modality, or its id and popularity, in a training step (never an id that is all that is
            known of an item).
        cold_share: share of steps in which no candidate has its id, as if all were new (next-item and set losses).
        max_candidates: items that a label is compared with in one step; a larger catalogue is sampled.
        batch_size, max_epochs, patience: labels per step, 0 for none (then `batch_users` has to be more); epochs at most; looks without a better validation NDCG@10.
        batch_users: users per step of the loss over all places of their histories; 0 trains on single labels only. An epoch goes
            once over whatever the steps are made of: users, else labels.
        popularity: whether popularity before the label enters a score; without, the biases of ids and content stand for it.
        look_epochs: epochs between looks at validation.
        attention: whether candidates attend to single events, where single labels train that; without, only the tower and the prior score.
        prior: what is mixed in after training: `ease` (linear item-to-item regression), `svd` (matrix factors), or nothing.
        network: whether there is a trained network at all; without, the prior is the model.
        label_smoothing: of the next-item loss.
        hidden_share: least and most of a set that is hidden in a step, and has to be found again.
        kl_weight: weight of the set reader's divergence from a standard normal; 0 makes it deterministic.
        learning_rate, gate_learning_rate: of the network, and of the few gates that weigh content similarity.
        mean_keeps: what a running mean of the weights keeps of itself in a step; the mean is what is looked at and left at the end. 0: the
            newest weights are.
        weight_decay: AdamW's, on matrices; `id_decay` on what is known of single ids.
        full_softmax: items up to which losses over histories compare with all of them; of more, a sample with logQ correction.
        tower_weight, rating_weight: weights of the retrieval loss and of the rating loss beside the ranking loss.
        align_weight: weight of the contrastive loss that draws an item's id and its content together.
        precision: `auto` trains in bfloat16 on a GPU that has it, else in `float32`; `bfloat16` does so anywhere.
        exposure_weight: weight of the loss over what replies showed (liked or not, with a bias by position); 0 for none. It comes with
            the loss of single labels.
        min_positive_rating: a `rating` below it is no positive label.
        negative_events: event types that are no positive label.
        threads: of torch while training, 0 for as many as it has; more than one only wait for each other on small batches.
        query_weight: how strongly an optional query vector pulls (per unit of cosine).
    """

    dim: int = 32
    space_dim: int = 32
    whitening: float = 0.25
    prototypes: int = 16
    taste_steps: int = 6
    content_dim: int = 64
    content_dropout: float = 0.1
    fusion: str = "gate"
    ids: bool = True
    time_gaps: bool = True
    collaborative: int = 0
    history: str = "order"
    set_dim: int = 400
    layers: int = 1
    heads: int = 2
    dropout: float = 0.2
    history_length: int = 32
    gap_buckets: int = 12
    modality_dropout: float = 0.1
    id_dropout: float = 0.5
    cold_share: float = 0.0
    max_candidates: int = 512
    batch_size: int = 128
    batch_users: int = 0
    look_epochs: int = 1
    attention: bool = True
    popularity: bool = True
    prior: str = ""
    network: bool = True
    label_smoothing: float = 0.0
    hidden_share: tuple[float, float] = (0.5, 0.5)
    kl_weight: float = 0.0
    max_epochs: int = 4
    patience: int = 2
    learning_rate: float = 2e-3
    gate_learning_rate: float = 2e-2
    mean_keeps: float = 0.0
    weight_decay: float = 0.05
    id_decay: float = 1.0
    full_softmax: int = 50_000
    tower_weight: float = 0.5
    rating_weight: float = 0.1
    align_weight: float = 0.0
    precision: str = "auto"
    exposure_weight: float = 0.0
    min_positive_rating: float = 3.5
    negative_events: tuple[str, ...] = ("impression", "skip", "dislike", "hide")
    query_weight: float = 4.0
    threads: int = 1

    def __post_init__(self) -> None:
        """Raises `RankerError` for settings under which nothing could be trained."""
        for name, known in (("history", HISTORIES), ("fusion", FUSIONS), ("prior", PRIORS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise RankerError(f"{name} is {getattr(self, name)!r}: set it to one of {', '.join(map(repr, known))}")
        if self.network and self.batch_users < 1 and (self.history == "set" or self.batch_size < 1):
            raise RankerError(
                f"no loss is left with history={self.history!r}, batch_size={self.batch_size} and batch_users={self.batch_users}: set batch_users"
            )
        if not (self.network or self.prior):
            raise RankerError(
                "without a network there is nothing but a prior, and prior is '': set it to 'ease' or 'svd'"
            )
        for name in ("dim", "heads", "prototypes", "max_epochs", "look_epochs", "patience", "history_length"):
            if getattr(self, name) < 1:
                raise RankerError(f"{name} is {getattr(self, name)}: set it to 1 or more")
        if self.history == "order" and self.dim % self.heads:
            raise RankerError(f"dim {self.dim} is not a multiple of heads {self.heads}: set one of them so that it is")
        if self.fusion == "late" and self.history != "set":
            raise RankerError(f"fusion='late' reads sets, and history is {self.history!r}: set history to 'set'")
        if not 0 <= self.mean_keeps < 1:
            raise RankerError(f"mean_keeps is {self.mean_keeps}: a running mean keeps a share from 0 up to, but not, 1")

    @property
    def similar(self) -> bool:
        """Whether cosines and tastes are a part of scores: only the loss of single labels trains them."""
        return self.network and self.history == "order" and self.batch_size > 0

    @property
    def attends(self) -> bool:
        """Whether candidates attend to single events: what that loss trains, too."""
        return self.attention and self.similar

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as the manifest stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; a field that this version does not know is an error."""
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise RankerError(f"ranker config has unknown fields {sorted(unknown)}: it was written by another version")
        tuples = {name: tuple(data[name]) for name in ("negative_events", "hidden_share") if name in data}
        return cls(**{**data, **tuples})


_SMALL: Final = RankerConfig(
    dim=64,
    space_dim=128,
    prototypes=1,
    taste_steps=0,
    content_dim=128,
    content_dropout=0.3,
    layers=2,
    dropout=0.3,
    history_length=100,
    modality_dropout=0.2,
    id_dropout=0.2,
    batch_size=0,
    batch_users=64,
    look_epochs=2,
    attention=False,
    popularity=False,
    prior="ease",
    max_epochs=40,
    patience=5,
    learning_rate=1e-3,
    id_decay=0.05,
    threads=0,
)
PRESETS: Final[Mapping[str, RankerConfig]] = {
    "tiny": RankerConfig(),
    "small": _SMALL,
    "base": replace(_SMALL, dim=128, heads=4, space_dim=256, content_dim=256, history_length=200, max_epochs=60),
}


def preset(name: str) -> RankerConfig:
    """The settings called `name`.

    `tiny` learns from single labels, tells kinds of content apart, and attends to single events: for catalogues of hundreds of items. `small` and
    `base` learn the next item at all places of histories and mix in the prior: better and faster where there are thousands of labels. They attend to no
    single events: reasons by history item come from the prior.
    """
    if name not in PRESETS:
        raise RankerError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def of_kind(kind: str, size: str) -> RankerConfig:
    """Settings of a `fusion` ranker of a preset's size, or of a baseline: `ease` or `svd`, without a network."""
    if kind not in KINDS:
        raise RankerError(f"there is no kind of ranker {kind!r}; choose one of {', '.join(KINDS)}")
    config = preset(size)
    return config if kind == "fusion" else replace(config, network=False, prior=kind, attention=False, popularity=False)
