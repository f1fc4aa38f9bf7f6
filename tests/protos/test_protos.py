import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos import generate
from protos.triptych.v1 import admin_pb2, common_pb2, embedding_pb2, feedback_pb2, ranking_pb2

SERVICES = {
    embedding_pb2: {"EmbeddingService": {"Embed", "ListSpaces"}},
    ranking_pb2: {"RankingService": {"Rank", "Retrieve", "ListModels"}},
    feedback_pb2: {"FeedbackService": {"RecordEvents"}},
    admin_pb2: {"AdminService": {"LoadModel", "PromoteModel", "RefreshVectors"}},
}


def test_stubs_are_what_the_sources_generate():
    """Nobody has edited a stub, or a source without `make protos`."""
    assert generate.stale_stubs() == []


def test_the_api_passes_the_linter():
    """`buf lint` has nothing to say; the rules that are left out are named with their reason."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    assert buf is not None, "buf-bin of the dev extra is not installed"
    run = subprocess.run([buf, "lint"], cwd=generate.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("module", SERVICES, ids=lambda module: module.__name__.rsplit(".", 1)[1])
def test_services_have_their_methods_and_every_call_a_request_id(module):
    """Methods are those of the contract, and each request and reply carries `request_id` as field 1."""
    found = {}
    for name, service in module.DESCRIPTOR.services_by_name.items():
        found[name] = {method.name for method in service.methods}
        for method in service.methods:
            for message in (method.input_type, method.output_type):
                assert message.fields_by_name["request_id"].number == 1, message.name
    assert found == SERVICES[module]


def test_fields_reserved_from_the_start_are_there():
    """What logged replies need to be replayed and learned from later has its place in the first version."""
    event, rank, reply = common_pb2.Event, ranking_pb2.RankRequest, ranking_pb2.RankResponse
    assert {"event_id", "impression_id", "request_id", "propensity"} <= set(event.DESCRIPTOR.fields_by_name)
    assert {"impression_id", "expected_space_id", "session_events"} <= set(rank.DESCRIPTOR.fields_by_name)
    assert {"impression_id", "propensities", "shares", "degraded"} <= set(reply.DESCRIPTOR.fields_by_name)
    assert "expected_space_id" in embedding_pb2.EmbedRequest.DESCRIPTOR.fields_by_name


def test_every_field_and_method_is_explained_somewhere():
    """Each message, enum and rpc of the sources has a comment of its own or in its file."""
    for source in (generate.ROOT / generate.PACKAGE).glob("*.proto"):
        text = source.read_text()
        assert text.startswith("// "), source.name
        for match in re.finditer(r"^( *)rpc (\w+)", text, re.MULTILINE):
            before = text[: match.start()].rstrip().splitlines()[-1]
            assert before.strip().startswith("//"), match.group(2)
