"""A client that knows nothing but an address: it learns the API by reflection, and whether to call by the health service.

Prints one JSON document: what it was answered. Takes the address, and files of a picture and of a sound.
"""

import json
import sys
from pathlib import Path

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Reflected:
    """A server's services, called with plain dictionaries."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def call(self, service: str, method: str, **fields):
        """The reply message of one call."""
        descriptor = self.pool.FindServiceByName(service).methods_by_name[method]
        request_class = message_factory.GetMessageClass(descriptor.input_type)
        reply_class = message_factory.GetMessageClass(descriptor.output_type)
        unary = self.channel.unary_unary(
            f"/{service}/{method}", request_class.SerializeToString, reply_class.FromString
        )
        return unary(request_class(**fields), timeout=20)


def ranking(reply) -> dict:
    """What a caller reads off a Rank reply."""
    enum = reply.DESCRIPTOR.fields_by_name["degraded"].message_type.fields_by_name["reason"].enum_type
    return {
        "item_ids": list(reply.item_ids),
        "scores": list(reply.scores),
        "model_id": reply.model_id,
        "degraded": [enum.values_by_number[one.reason].name for one in reply.degraded],
        "shares_bytes": len(reply.shares),
        "share_groups": list(reply.share_groups),
    }


def main(address: str, picture: str, sound: str) -> None:
    """Embed three inputs and rank for two users."""
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        server = Reflected(channel)
        services = sorted(name for name in server.database.get_services() if name.startswith("triptych."))
        statuses = {
            name: health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status for name in services
        }
        inputs = [{"text": "a red bicycle"}, {"image": Path(picture).read_bytes()}, {"audio": Path(sound).read_bytes()}]
        embedded = server.call("triptych.v1.EmbeddingService", "Embed", inputs=inputs)
        known, unknown = (
            ranking(server.call("triptych.v1.RankingService", "Rank", user_id=user, top_n=5))
            for user in ("ann", "nobody")
        )
    vectors = [
        {"code": one.status.code, "space_id": one.vector.space_id, "dim": one.vector.dim, "bytes": len(one.vector.data)}
        for one in embedded.results
    ]
    json.dump({"statuses": statuses, "vectors": vectors, "known": known, "unknown": unknown}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
