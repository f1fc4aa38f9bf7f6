"""The encoders of this process, behind the batching pipeline: contents in, vectors or reasons out."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from encoders.media import MediaLimits
from encoders.profiles import Encoders, load_profile
from encoders.recorded import Record, in_use, load_recorded
from encoders.space import EmbeddingSpace
from encoders.staged import StagedEncoder
from serving import budget
from serving.batching.jobs import Call, Item, Outcome
from serving.batching.pipeline import Pipeline
from serving.batching.queue import Lane
from serving.budget import Stopwatch
from serving.errors import PreconditionFailed, ServingError, Unavailable, Violation, WrongSpace
from serving.metrics import Metrics
from serving.settings import ServeSettings

STAGES: Final = ("decode", "prepare", "queue", "forward")
LOADING_RETRY_SECONDS: Final = 2.0
RESTART_RETRY_SECONDS: Final = 0.5
FAILED_RETRY_SECONDS: Final = 300.0
State = Callable[[bool], None]
log = structlog.get_logger("serving.embedding")


@dataclass(frozen=True)
class LeftOut:
    """What was recorded of a space's encoder when it could not be loaded, and when that was, on the monotonic clock."""

    options: Mapping[str, Any]
    at: float


@dataclass(frozen=True)
class Target:
    """How contents of one modality get into one space; `positions` are those in the request."""

    modality: str
    encoder: StagedEncoder
    query: bool
    positions: Sequence[int]

    @property
    def space(self) -> EmbeddingSpace:
        """Where they get."""
        return self.encoder.space


class Embedder:
    """Starts empty; `load` fills it, and `serve_spaces` adds encoders that models need.

    `on_state` is told, on any thread, when it begins and ceases to serve; `records` tells what is recorded of spaces' encoders.
    """

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        on_state: State = lambda _: None,
        records: Callable[[], Sequence[Record]] = tuple,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._records = records
        self._left_out: dict[str, LeftOut] = {}  # by space
        self._encoders: Encoders | None = None
        self.pipeline = Pipeline(
            self._load,
            metrics,
            cache_bytes=settings.cache_bytes,
            decode_workers=settings.decode_workers,
            prepared_bytes=settings.max_prepared_bytes,
            limits=MediaLimits(max_decode_seconds=settings.decode_seconds),
            on_state=on_state,
        )

    async def load(self) -> None:
        """Load the profile's encoders and run each once; raises what loading raises."""
        await asyncio.wrap_future(self.pipeline.start())

    def _load(self) -> Iterable[StagedEncoder]:
        encoders = load_profile(self._settings.encoders)
        try:  # a retired space's encoder gives way to its successor's
            encoders = in_use(encoders, self._records(), wanted=lambda _: False)
        except Exception as error:  # noqa: BLE001 - what is recorded beside the profile must not keep the server from starting
            log.warning("the profile's encoders are served as they are", error=str(error))
        self._encoders = encoders
        return encoders.all

    async def serve_spaces(self, space_ids: Collection[str]) -> None:
        """Load the recorded encoders of these spaces, where there are such, so that queries can be embedded into them.

        A space without one, and one whose encoder cannot be loaded, are left out and said in the log. What is recorded anew is tried at
        the next call, what is not after `FAILED_RETRY_SECONDS`.
        """
        if self._encoders is not None:
            for space_id in set(space_ids).difference(space.space_id for space in self.spaces):
                await asyncio.to_thread(self._serve_space, space_id)

    def _serve_space(self, space_id: str) -> None:
        options: Mapping[str, Any] = {}
        try:
            record = next((one for one in self._records() if one.space.space_id == space_id and one.encoder), None)
            options = record.encoder if record is not None else {}
            if self._is_left_out(space_id, options):
                return
            if record is None:
                self._leave_out(space_id, options, "no encoder is recorded for it")
                return
            encoder = load_recorded(record.space, options)
            encoder.warm_up()
        except Exception as error:  # noqa: BLE001 - a model is served without queries rather than not at all
            self._leave_out(space_id, options, str(error))
            return
        encoders = self._encoders
        if encoders is None:
            return
        self.pipeline.add(encoder)
        self._encoders = encoders.joined(encoder, options)
        log.info("encoder loaded", space_id=space_id)

    def _is_left_out(self, space_id: str, options: Mapping[str, Any]) -> bool:
        """Whether the same record was tried a short while ago; where nothing is recorded, there is nothing to try again."""
        last = self._left_out.get(space_id)
        if last is None or last.options != options:
            return False
        return not options or time.monotonic() < last.at + FAILED_RETRY_SECONDS

    def _leave_out(self, space_id: str, options: Mapping[str, Any], reason: str) -> None:
        self._left_out[space_id] = LeftOut(options, time.monotonic())
        log.warning("no queries for this space", space_id=space_id, error=reason)

    @property
    def spaces(self) -> list[EmbeddingSpace]:
        """Spaces that this process can embed into; none while it starts."""
        return self._encoders.spaces if self._encoders else []

    def target(self, modality: str, space_id: str, positions: Sequence[int], *, query: bool) -> Target:
        """How contents of `modality` get into `space_id` (empty: the modality's own space).

        Raises `Unavailable` while the encoders are being loaded or replaced, `PreconditionFailed` where this process has no such
        encoder, `WrongSpace` where the space takes no such input.
        """
        encoder: Any = self._encoder(modality, space_id)
        space = encoder.space
        if space.modality == modality:
            return Target(modality, encoder, query and modality == "text", positions)
        if space.query_modality == modality:
            return Target(modality, encoder, query=True, positions=positions)
        takes = " and ".join(filter(None, (space.modality, space.query_modality)))
        fields = [Violation(f"inputs[{i}]", f"is {modality}, but space {space_id} takes {takes}") for i in positions]
        raise WrongSpace(fields)

    def _encoder(self, modality: str, space_id: str) -> Any:
        encoders = self._ready()
        if not space_id:
            encoder: Any = encoders.by_modality(modality)
        else:
            known = any(space.space_id == space_id for space in encoders.spaces)
            encoder = encoders.by_space(space_id) if known else None
        if encoder is None:
            served = ", ".join(space.space_id for space in self.spaces) or "none"
            wanted = f"space {space_id}" if space_id else f"modality {modality}"
            raise PreconditionFailed(
                f"no encoder here for {wanted}; there is: {served}",
                "SPACE_NOT_SERVED",
                {"space_id": space_id, "modality": modality, "served": served},
            )
        return encoder

    def _ready(self) -> Encoders:
        if self._encoders is not None and self.pipeline.forwarders.up:
            return self._encoders
        died = self.pipeline.forwarders.has_served
        self._metrics.rejections.labels("restarting" if died else "starting").inc()
        if died:
            raise Unavailable("the encoding thread is being restarted", RESTART_RETRY_SECONDS)
        raise Unavailable("the encoders are being loaded", LOADING_RETRY_SECONDS)

    async def embed(
        self, contents: Sequence[tuple[Target, Any]], lane: Lane = Lane.INTERACTIVE, clock: Stopwatch | None = None
    ) -> list[Outcome]:
        """An outcome for each content, in their order; `clock` is told where the slowest one's time went.

        An outcome's error is a `MediaError` (its content is to blame) or `ItemFailedError` (we are). Raises `Unavailable` and
        `DeadlineExceeded` for all of them. Who gives up waiting is dropped before the forward pass.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Outcome]] = loop.create_future()

        def tell(outcomes: list[Outcome]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to be told
                loop.call_soon_threadsafe(_resolve, answer, outcomes)

        call = Call(lane, budget.deadline(), len(contents), tell)
        items = [Item(i, to.modality, to.encoder, to.query, content) for i, (to, content) in enumerate(contents)]
        try:
            self.pipeline.submit(call, items)
            outcomes = await answer
        except BaseException:  # cancelled, for the most part: its permit and its bytes are counted as free from now on
            call.abandon()
            self.pipeline.prune()
            raise
        return _checked(outcomes, clock)

    def close(self) -> None:
        """Settle what is under way and end the threads."""
        self.pipeline.close()


def _resolve(answer: "asyncio.Future[list[Outcome]]", outcomes: list[Outcome]) -> None:
    if not answer.done():  # its caller may have gone
        answer.set_result(outcomes)


def _checked(outcomes: list[Outcome], clock: Stopwatch | None) -> list[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome.error, ServingError) and outcome.error.code.name != "INTERNAL":
            raise outcome.error
    if clock is not None:
        for stage in STAGES:
            clock.add(stage, max(getattr(outcome.trace, stage) for outcome in outcomes))
    return outcomes
