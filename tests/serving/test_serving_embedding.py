import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from protos.triptych.v1 import embedding_pb2, embedding_pb2_grpc
from tests.serving.world import png, wav
from triptych.client import ClientError


def raw_embed(server, **fields):
    """The error of a call, with its details."""
    with grpc.insecure_channel(server.address) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embed(embedding_pb2.EmbedRequest(**fields), timeout=20)
    return caught.value, rpc_status.from_call(caught.value)


def test_every_modality_has_unit_vectors_of_its_own_space(client, world):
    """Texts, pictures and sounds of one call come back in order, of unit norm, each in its modality's space."""
    results = client.embed(texts=["a bird", "a car"], images=[png()], audio=[wav()])
    assert [r.space_id for r in results] == [world.spaces[m].space_id for m in ("text", "text", "image", "audio")]
    for result in results:
        assert np.linalg.norm(result.vector) == pytest.approx(1.0, abs=1e-3)


def test_vectors_do_not_depend_on_their_neighbours(client):
    """A text embedded alone and in a batch gives the same vector."""
    [alone] = client.embed(texts=["a loud bird"])
    batch = client.embed(texts=["x", "a loud bird", "a much longer text about nothing in particular, at some length"])
    assert float(alone.vector @ batch[1].vector) == pytest.approx(1.0, abs=1e-4)


def test_a_broken_picture_does_not_spoil_its_neighbours(client):
    """An item that cannot be decoded has a status with a reason; the others have their vectors."""
    good, bad, sound, empty = client.embed(images=[png(), b"not a picture"], audio=[wav(), b""])
    assert good.vector is not None
    assert sound.vector is not None
    assert bad.vector is None
    assert bad.reason in {"undecodable", "unsupported_format"}
    assert bad.message
    assert empty.vector is None
    assert empty.reason


def test_a_text_query_goes_into_the_image_space(client, world):
    """With the image space as target a text gets a vector of that space, by the encoder's text tower."""
    image_space = world.spaces["image"].space_id
    [result] = client.embed(texts=["a red square"], space=image_space, expected_space=image_space)
    assert result.space_id == image_space
    assert result.vector.shape == (world.spaces["image"].dim,)


def test_an_unexpected_space_fails_the_precondition(server, world):
    """Who expects another space than the server's gets FAILED_PRECONDITION with both names, and no vectors."""
    error, status = raw_embed(server, inputs=[{"text": "a"}], expected_space_id="text_other_00000000")
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "SPACE_MISMATCH"
    assert info.metadata["space_id"] == world.spaces["text"].space_id


def test_an_unknown_target_space_fails_the_precondition(client):
    """A space that this server has no encoder for is FAILED_PRECONDITION and names those that it has."""
    with pytest.raises(ClientError, match=r"FAILED_PRECONDITION: .*text_") as caught:
        client.embed(texts=["a"], space="text_other_00000000")
    assert caught.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "inputs"),
        ({"inputs": [{"text": "a"}, {}]}, "inputs[1].content"),
        ({"inputs": [{"text": "a"}], "request_id": "x" * 129}, "request_id"),
        ({"inputs": [{"text": "a"}] * 257}, "inputs"),
    ],
)
def test_invalid_requests_name_the_field(server, fields, field):
    """INVALID_ARGUMENT carries google.rpc.BadRequest with the path of every wrong field."""
    error, status = raw_embed(server, **fields)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(violations)
    assert field in [one.field for one in violations.field_violations]


def test_a_sound_cannot_go_into_the_text_space(server, world):
    """A space that takes no such input names the inputs that do not fit."""
    error, _ = raw_embed(server, inputs=[{"audio": wav()}], space_id=world.spaces["text"].space_id)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs[0]" in error.details()


def test_spaces_say_what_they_are_and_what_is_loaded(client, world):
    """ListSpaces has every registered space with its kind, and how many item vectors of it are in memory."""
    spaces = {space.space_id: space for space in client.list_spaces()}
    text, image = (spaces[world.spaces[m].space_id] for m in ("text", "image"))
    assert text.kind == "encoder"
    assert text.embeddable
    assert text.items_loaded == 40
    assert image.kind == "encoder"
    assert image.query_modality == "text"
