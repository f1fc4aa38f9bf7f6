import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from feature_store import embedded
from feature_store.connection import connect
from feature_store.event_log import EventLog
from feature_store.watermarks import Watermark, Watermarks
from protos.triptych.v1 import common_pb2, feedback_pb2, feedback_pb2_grpc, ranking_pb2, ranking_pb2_grpc
from ranker import checkpoint
from tests.serving.world import HISTORY, ITEMS, REPOSITORY, SILENT_ITEMS, png, reasons, until, wav, write_vectors
from triptych.client import AdminClient, ClientError, make_event, to_vector


def test_reflection_and_health_are_all_that_a_client_needs(server, world, tmp_path):
    """A process with no stubs of ours embeds a text, a picture and a sound, and ranks for a known and an unknown user."""
    picture, sound = tmp_path / "a.png", tmp_path / "a.wav"
    picture.write_bytes(png())
    sound.write_bytes(wav())
    script = REPOSITORY / "tests" / "serving" / "reflection_client.py"
    command = [sys.executable, str(script), server.address, str(picture), str(sound)]
    answered = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    told = json.loads(answered.stdout)
    assert set(told["statuses"].values()) == {1}  # SERVING
    assert len(told["statuses"]) == 3
    for vector, modality in zip(told["vectors"], ("text", "image", "audio"), strict=True):
        assert vector["code"] == 0
        assert vector["space_id"] == world.spaces[modality].space_id
        assert vector["bytes"] == 4 * vector["dim"] == 4 * world.spaces[modality].dim
    known, unknown = told["known"], told["unknown"]
    assert known["model_id"] == "first"
    assert len(known["item_ids"]) == len(unknown["item_ids"]) == 5
    assert known["shares_bytes"] == 4 * 5 * len(known["share_groups"])
    assert "DEGRADED_REASON_UNKNOWN_USER" in unknown["degraded"]
    assert "DEGRADED_REASON_UNKNOWN_USER" not in known["degraded"]


def test_given_candidates_are_ranked_with_reasons(client):
    """All given candidates come back, best first, with finite shares by group and attention to the history's items."""
    ranking = client.rank("ann", ITEMS[:10])
    assert sorted(ranking.item_ids) == ITEMS[:10]
    assert np.all(np.diff(ranking.scores) <= 0)
    assert ranking.shares.shape == (10, len(ranking.share_groups))
    assert set(ranking.share_groups) >= {"text", "image", "audio", "id"}
    assert np.isfinite(ranking.shares).all()
    assert np.ptp(ranking.shares) > 0
    assert ranking.history_events == len(HISTORY)
    assert {item for item, _ in ranking.influences[0]} <= set(HISTORY)
    assert ranking.candidate_source == "REQUEST"
    assert {"history", "score", "total"} <= set(ranking.timings_ms)


def test_shares_and_the_base_add_up_to_scores(client):
    """A score is the reply's base score plus the item's shares."""
    ranking = client.rank("ann", ITEMS[:6])
    np.testing.assert_allclose(ranking.base_score + ranking.shares.sum(axis=1), ranking.scores, atol=1e-3)


def test_retrieved_candidates_leave_out_what_was_seen(client):
    """Without candidates the vector store is searched, and items of the history come only where they are asked for."""
    ranking = client.rank("ann", top_n=40)
    assert ranking.candidate_source == "VECTOR_STORE"
    assert not set(HISTORY) & set(ranking.item_ids)
    assert ranking.candidates >= len(ITEMS) - len(HISTORY)
    assert set(HISTORY) <= set(client.rank("ann", top_n=40, keep_seen=True).item_ids)


def test_explanations_can_be_skipped(client):
    """The same order without shares and influences."""
    full, bare = client.rank("ann", ITEMS[:8]), client.rank("ann", ITEMS[:8], explain=False)
    assert bare.item_ids == full.item_ids
    assert bare.share_groups == []
    assert bare.influences == []


def test_an_unknown_item_is_ranked_cold_and_said_so(client):
    """An item that nobody knows gets a finite score, and the reply says that nothing is known of it."""
    ranking = client.rank("ann", [ITEMS[0], "never_heard_of"])
    assert set(ranking.item_ids) == {ITEMS[0], "never_heard_of"}
    assert np.isfinite(ranking.scores).all()
    [unknown] = [one for one in ranking.degraded if one.reason == "UNKNOWN_ITEMS"]
    assert unknown.count == 1
    assert "never_heard_of" in unknown.detail


def test_missing_modalities_are_counted(client):
    """Items without a sound are ranked, and the reply says how many and which modality."""
    ranking = client.rank("ann", SILENT_ITEMS[:3])
    [missing] = [one for one in ranking.degraded if one.reason == "MISSING_MODALITY"]
    assert (missing.count, missing.modality) == (3, "audio")


def test_recorded_events_change_the_next_ranking_at_once(client):
    """An event that was acknowledged is history in the very next Rank; recording it again changes nothing."""
    user = f"user_{time.time_ns()}"
    before = client.rank(user, ITEMS[:12])
    event = make_event("item_20", "click", user_id=user)
    assert client.record_events([event]).recorded == 1
    after = client.rank(user, ITEMS[:12])
    assert "UNKNOWN_USER" in reasons(before)
    assert "UNKNOWN_USER" not in reasons(after)
    assert (before.history_events, after.history_events) == (0, 1)
    assert not np.allclose(sorted(before.scores), sorted(after.scores))
    again = client.record_events([event])
    assert (again.recorded, again.duplicates) == (0, 1)
    assert client.rank(user, ITEMS[:12]).history_events == 1


def test_the_device_of_a_request_is_read(client):
    """The same candidates score otherwise on a device that the model knows, and as without one on a device that it does not."""
    none, strange, phone = (client.rank("ann", ITEMS[:8], device=name) for name in ("", "fridge", "phone"))
    scores = [
        [dict(zip(one.item_ids, one.scores, strict=True))[i] for i in ITEMS[:8]] for one in (none, strange, phone)
    ]
    assert scores[0] == scores[1]
    assert not np.allclose(scores[0], scores[2])


def test_how_an_item_was_shown_is_recorded(client, world):
    """Device, position, propensity and impression of an event reach the log as they were told."""
    told = {"device": "phone", "position": 3, "propensity": 0.25, "impression_id": "p1"}
    event = make_event("item_20", "click", user_id=f"user_{time.time_ns()}", **told)
    client.record_events([event])
    with contextlib.closing(EventLog(world.home.events)) as log:
        [stored] = log.for_users([event.user_id])
    assert {name: getattr(stored, name) for name in told} == told


def test_session_events_count_and_are_not_recorded(client):
    """Events of the session change this ranking as recorded ones would, and leave no trace."""
    user = f"user_{time.time_ns()}"
    session = [common_pb2.Event(item_id="item_20", event_type="click")]
    assert client.rank(user, ITEMS[:5], session_events=session).history_events == 1
    assert client.rank(user, ITEMS[:5]).history_events == 0


def test_only_the_past_is_history(client):
    """Ranking for an instant reads only what happened strictly before it."""
    user = f"user_{time.time_ns()}"
    moment = datetime.now(UTC) - timedelta(hours=1)
    client.record_events([make_event("item_20", user_id=user, at=moment)])
    assert client.rank(user, ITEMS[:5], at=moment).history_events == 0
    assert client.rank(user, ITEMS[:5], at=moment + timedelta(microseconds=1)).history_events == 1
    later = [make_event("item_21", at=moment + timedelta(seconds=1))]
    assert client.rank(user, ITEMS[:5], at=moment, session_events=later).history_events == 0


def test_a_profile_that_was_written_later_is_not_read(client, world):
    """Ranking for an instant reads the profile vector only if it was there strictly before it."""
    text = world.spaces["text"]
    with contextlib.closing(connect(world.home)) as core:
        write_vectors(core, f"user_{text.space_id}", ["bea"], np.eye(1, text.dim, 1, np.float32), key="user_id")
    now, items = client.rank("bea", ITEMS[:10]), ITEMS[:10]
    then = datetime.now(UTC) - timedelta(hours=1)  # one instant: the time of day is among what scores depend on
    earlier, nobody = (client.rank(user, items, at=then) for user in ("bea", "nobody"))
    assert "UNKNOWN_USER" not in reasons(now)
    assert "UNKNOWN_USER" in reasons(earlier)
    assert (earlier.item_ids, earlier.scores.tolist()) == (nobody.item_ids, nobody.scores.tolist())


def test_a_session_on_a_fast_clock_counts(client):
    """An event of the session that is dated a little ahead of the server's clock happened just before the request."""
    ahead = [make_event("item_21", at=datetime.now(UTC) + timedelta(seconds=20))]
    assert client.rank(f"user_{time.time_ns()}", ITEMS[:5], session_events=ahead).history_events == 1


def test_a_query_vector_of_the_wrong_length_is_the_callers_mistake(client, world):
    """INVALID_ARGUMENT names the space and its dim, and nobody else is degraded by it."""
    query = common_pb2.Query(vector=to_vector(np.ones(3, np.float32), world.spaces["text"].space_id))
    for call in (lambda: client.rank("ann", ITEMS[:3], query=query), lambda: client.retrieve(query=query)):
        with pytest.raises(ClientError, match=f"{world.spaces['text'].space_id} has 384, not 3") as caught:
            call()
        assert caught.value.code == "INVALID_ARGUMENT"
    assert "STORE_UNAVAILABLE" not in reasons(client.rank("ann", ITEMS[:3]))


def test_a_query_changes_the_ranking(client):
    """A text query goes into the model's text and image spaces and moves the scores."""
    plain, asked = client.rank("ann", ITEMS[:10]), client.rank("ann", ITEMS[:10], query="a red bicycle")
    assert dict(zip(plain.item_ids, plain.scores, strict=True)) != dict(zip(asked.item_ids, asked.scores, strict=True))
    assert "QUERY_IGNORED" not in reasons(asked)


def test_retrieval_finds_what_the_query_says(client, world):
    """An item that is stored under the vector of some words is found first by those words, though no server has loaded it."""
    [bird] = client.embed(texts=["a loud bird"])
    with contextlib.closing(connect(world.home)) as core:
        write_vectors(core, f"item_{bird.space_id}", ["bird"], bird.vector[None])
    found = until(lambda: (f := client.retrieve(query="a loud bird", k=3)).item_ids[:1] == ["bird"] and f)
    assert found.scores[0] == pytest.approx(1.0, abs=1e-3)
    assert found.space_id == bird.space_id
    assert "UNKNOWN_ITEMS" not in reasons(client.rank("ann", ["bird", ITEMS[0]]))


def test_replaced_vectors_are_followed(client, world):
    """A vector that a materialize run replaced under the same id changes the item's score without anybody's call."""
    space, item = world.spaces["text"], ITEMS[30]
    moment = datetime.now(UTC)  # one instant: scores follow the clock too
    [before] = client.rank("ann", [item], at=moment).scores
    vector = np.zeros((1, space.dim), np.float32)
    vector[0, 1] = 1.0
    with contextlib.closing(connect(world.home)) as core:
        write_vectors(core, f"item_{space.space_id}", [item], vector)
    now = time.time_ns() // 1000
    Watermarks(world.home.leases).write("triptych", f"item_{space.space_id}", Watermark(now, now))
    until(lambda: abs(client.rank("ann", [item], at=moment).scores[0] - before) > 1e-4)


def test_pushed_vectors_are_followed(client, world):
    """A vector that was replaced in place, without a materialize run, changes the item's score too."""
    space, item = world.spaces["text"], ITEMS[31]
    moment = datetime.now(UTC)  # one instant: scores follow the clock too
    [before] = client.rank("ann", [item], at=moment).scores
    with contextlib.closing(connect(world.home)) as core:
        write_vectors(core, f"item_{space.space_id}", [item], np.eye(1, space.dim, 2, np.float32))
    until(lambda: abs(client.rank("ann", [item], at=moment).scores[0] - before) > 1e-4)


def test_items_that_came_after_training_are_retrieved(client, world):
    """An item of which the model's own view has no vector is a candidate once it is in memory, and nothing is degraded."""
    space = world.spaces["image"]
    with contextlib.closing(connect(world.home)) as core:
        write_vectors(core, f"item_{space.space_id}", ["fresh"], np.eye(1, space.dim, 3, np.float32))
    ranking = until(lambda: "fresh" in (r := client.rank("ann", top_n=60)).item_ids and r)
    assert ranking.candidate_source == "VECTOR_STORE"
    assert "RETRIEVAL_FALLBACK" not in reasons(ranking)
    assert "fresh" in client.retrieve("ann", k=60).item_ids


def test_retrieval_for_a_user_is_in_the_models_space(client):
    """Without a query the user's own neighbours in the model's fused space come, without what they have seen."""
    found = client.retrieve("ann", k=8, exclude=[ITEMS[0]])
    assert found.space_id == "fused_first"
    assert found.model_id == "first"
    assert len(found.item_ids) == 8
    assert not {*HISTORY, ITEMS[0]} & set(found.item_ids)


def test_a_model_that_is_not_loaded_is_not_found(client):
    """NOT_FOUND names the model and what is loaded."""
    with pytest.raises(ClientError, match="ghost") as caught:
        client.rank("ann", model_id="ghost")
    assert caught.value.code == "NOT_FOUND"


def test_promotion_switches_the_model_and_undo_is_followed(client, server, world):
    """AdminService promotes for everybody at once; a switch made from outside is followed by the watcher."""
    admin = AdminClient(server.admin_address)
    try:
        assert not {m.model_id: m.loaded for m in client.list_models()}["second"]
        assert admin.promote_model("second").stable
        assert client.rank("ann", ITEMS[:3]).model_id == "second"
        assert client.rank("ann", ITEMS[:3], model_id="first").model_id == "first"
        assert {m.model_id for m in client.list_models() if m.previous} == {"first"}
        checkpoint.undo(world.home)
        until(lambda: client.rank("ann", ITEMS[:3]).model_id == "first")
        with pytest.raises(ClientError, match="NOT_FOUND"):
            admin.promote_model("ghost")
    finally:
        admin.close()


def test_administration_is_not_on_the_public_port(server):
    """Who can rank cannot promote."""
    admin = AdminClient(server.address)
    with pytest.raises(ClientError) as caught:
        admin.promote_model("second")
    admin.close()
    assert caught.value.code == "UNIMPLEMENTED"


def test_refreshed_vectors_are_counted(server, world):
    """RefreshVectors answers with the items that are in memory now."""
    admin = AdminClient(server.admin_address)
    counts = admin.refresh_vectors()
    admin.close()
    assert counts[world.spaces["audio"].space_id] == len(ITEMS) - len(SILENT_ITEMS)


RANK, RETRIEVE, RECORD = "Rank", "Retrieve", "RecordEvents"
CLICK = {"user_id": "ann", "item_id": "i", "event_type": "click"}


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        (RANK, {}, "user_id"),
        (RANK, {"user_id": "ä" * 65}, "user_id"),
        (RANK, {"user_id": "ann", "item_ids": ["a", "b", "a"]}, "item_ids[2]"),
        (RANK, {"user_id": "ann", "item_ids": ["a", ""]}, "item_ids[1]"),
        (RANK, {"user_id": "ann", "top_n": 100_000}, "top_n"),
        (RANK, {"user_id": "ann", "session_events": [CLICK, {**CLICK, "user_id": "bob"}]}, "session_events[1].user_id"),
        (RANK, {"user_id": "ann", "query": {}}, "query.content"),
        (RANK, {"user_id": "ann", "query": {"text": " "}}, "query.text"),
        (RETRIEVE, {}, "user_id"),
        (RETRIEVE, {"query": {"vector": {"space_id": "s", "dim": 3, "data": b"1234"}}}, "query.vector.data"),
        (RETRIEVE, {"query": {"vector": {"space_id": "s", "dim": 1, "data": b"1234"}}}, "query.vector.space_id"),
        (RETRIEVE, {"query": {"vector": {"space_id": "fused_first", "dim": 1, "data": b"1234"}}}, "query.vector.dim"),
        (RETRIEVE, {"user_id": "ann", "exclude_item_ids": [f"i{i}" for i in range(5_001)]}, "exclude_item_ids"),
        (RANK, {"user_id": "ann", "session_events": [CLICK] * 501}, "session_events"),
        (RETRIEVE, {"user_id": "ann", "space_id": "text_x_00000000"}, "space_id"),
        (RECORD, {}, "events"),
        (RECORD, {"events": [CLICK, {**CLICK, "item_id": ""}]}, "events[1].item_id"),
        (RECORD, {"events": [{**CLICK, "event_type": ""}]}, "events[0].event_type"),
        (RECORD, {"events": [{**CLICK, "value": float("nan")}]}, "events[0].value"),
        (RECORD, {"events": [{**CLICK, "propensity": 0.0}]}, "events[0].propensity"),
        (RECORD, {"events": [{**CLICK, "device": "x" * 33}]}, "events[0].device"),
        (RECORD, {"events": [{**CLICK, "position": 2**32 - 1}]}, "events[0].position"),
        (RANK, {"user_id": "ann", "context": {"device": "x" * 33}}, "context.device"),
        (RECORD, {"events": [{**CLICK, "event_timestamp": {"seconds": 9_999_999_999}}]}, "events[0].event_timestamp"),
    ],
)
def test_invalid_requests_name_the_field(server, method, fields, field):
    """INVALID_ARGUMENT carries google.rpc.BadRequest with the path of every wrong field."""
    request = {
        RANK: ranking_pb2.RankRequest,
        RETRIEVE: ranking_pb2.RetrieveRequest,
        RECORD: feedback_pb2.RecordEventsRequest,
    }[method](**fields)
    with grpc.insecure_channel(server.address) as channel:
        service = feedback_pb2_grpc.FeedbackServiceStub if method == RECORD else ranking_pb2_grpc.RankingServiceStub
        with pytest.raises(grpc.RpcError) as caught:
            getattr(service(channel), method)(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = error_details_pb2.BadRequest()
    assert rpc_status.from_call(caught.value).details[0].Unpack(violations)
    assert field in [one.field for one in violations.field_violations]


def shell(world, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`triptych client ...` in a process that finds the server through the root folder."""
    environment = {**os.environ, "TRIPTYCH_HOME": str(world.home.root)}
    command = [sys.executable, "-m", "triptych", "client", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_shell_client_ranks_and_records(client, world):
    """`triptych client` finds the running server by itself, prints JSON, and exits with 1 and a hint where nobody answers."""
    ranked = shell(world, "rank", "ann", "-n", "3", "--json")
    assert ranked.returncode == 0, ranked.stderr
    told = json.loads(ranked.stdout)
    assert told["item_ids"] == client.rank("ann", top_n=3).item_ids
    assert len(told["shares"]) == len(told["scores"]) == 3
    recorded = shell(world, "event", "sheller", ITEMS[0], "--type", "like", "--json")
    assert json.loads(recorded.stdout)["recorded"] == 1
    assert client.rank("sheller", ITEMS[:3]).history_events == 1
    table = shell(world, "rank", "ann", ITEMS[0], ITEMS[1])
    assert ITEMS[0] in table.stdout
    nobody = shell(world, "models", "--target", "127.0.0.1:1")
    assert nobody.returncode == 1
    assert "triptych serve" in nobody.stderr


def test_the_shell_client_tells_degraded_replies_by_its_exit_code(client, world):
    """3 for an unknown user; 0 where all that is missing is a modality of some items."""
    assert shell(world, "rank", "ann", SILENT_ITEMS[0]).returncode == 0
    unknown = shell(world, "rank", "nobody", ITEMS[0], "--json")
    assert unknown.returncode == 3
    assert json.loads(unknown.stdout)["degraded"][0]["reason"] == "UNKNOWN_USER"


def test_the_shell_client_prints_ids_as_they_are(client, world):
    """Brackets in ids are data: they are printed, and never read as markup."""
    table = shell(world, "rank", "[i]nobody", "[red]item", "[/]item").stdout
    assert "[red]item" in table
    assert "[/]item" in table
    assert "[i]nobody" in table
    assert "[b]event" in shell(world, "event", "ann_2", ITEMS[0], "--event-id", "[b]event").stdout


def test_ranking_outlives_the_vector_store(client, world):
    """With Milvus killed, Rank answers from memory and says so; once it is back, nothing is degraded any more."""
    client.rank("ann")
    killed = embedded.status(world.home)
    os.kill(killed.pid, signal.SIGKILL)
    lame = until(lambda: "STORE_UNAVAILABLE" in reasons(r := client.rank("ann", top_n=5)) and r)
    assert "RETRIEVAL_FALLBACK" in reasons(lame)
    assert lame.candidate_source == "MEMORY"
    assert lame.history_events == len(HISTORY)  # as this server last saw it
    assert len(lame.item_ids) == 5
    assert not set(HISTORY) & set(lame.item_ids)
    assert client.rank("ann", ITEMS[:5]).item_ids
    user = f"user_{time.time_ns()}"
    client.record_events([make_event("item_20", user_id=user)])
    assert client.rank(user, ITEMS[:5]).history_events == 1
    embedded.start(world.home)
    until(lambda: not {"STORE_UNAVAILABLE", "RETRIEVAL_FALLBACK"} & reasons(client.rank("ann", top_n=5)), 30.0)


def test_the_server_has_not_imported_feast(client, server):
    """After embedding, ranking and recording, the interpreter's own list of imports holds torch, but not feast."""
    client.embed(texts=["a"])
    client.rank("ann")
    client.record_events([make_event("item_20", user_id="importer")])
    lines = [line for line in server.stderr.read_text().splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert {"torch", "grpc", "serving"} <= imported
    assert "feast" not in imported
    assert "feature_repo" not in imported
