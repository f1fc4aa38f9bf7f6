"""AdminService: load and promote models, read vectors again. Listens on a port of its own."""

from typing import Any

import grpc

from feature_store.errors import FeatureStoreError
from protos.triptych.v1 import admin_pb2, admin_pb2_grpc, ranking_pb2
from serving import convert
from serving.errors import Unavailable
from serving.manifests import model_message
from serving.models import Models
from serving.validation import check_model_id

RpcContext = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Operations on this process's models and vectors."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def LoadModel(  # noqa: N802 - gRPC's name
        self, request: admin_pb2.LoadModelRequest, context: RpcContext
    ) -> admin_pb2.LoadModelResponse:
        """Load a checkpoint beside the others."""
        del context
        check_model_id(request)
        await self._models.load(request.model_id)
        return admin_pb2.LoadModelResponse(model=self._message(request.model_id))

    async def PromoteModel(  # noqa: N802 - gRPC's name
        self, request: admin_pb2.PromoteModelRequest, context: RpcContext
    ) -> admin_pb2.PromoteModelResponse:
        """Load a checkpoint and make it stable."""
        del context
        check_model_id(request)
        previous = await self._models.promote(request.model_id)
        model = self._message(request.model_id)
        return admin_pb2.PromoteModelResponse(model=model, previous_model_id=previous or "")

    async def RefreshVectors(  # noqa: N802 - gRPC's name
        self, request: admin_pb2.RefreshVectorsRequest, context: RpcContext
    ) -> admin_pb2.RefreshVectorsResponse:
        """Read item vectors from the store again."""
        del context
        try:
            catalogue = await self._models.refresh(request.space_ids)
        except FeatureStoreError as error:
            raise Unavailable(str(error)) from error
        spaces = [
            admin_pb2.LoadedSpace(space_id=space_id, items=len(matrix.ids), loaded=convert.timestamp(matrix.loaded_us))
            for space_id, matrix in sorted(catalogue.matrices.items())
            if not request.space_ids or space_id in request.space_ids
        ]
        return admin_pb2.RefreshVectorsResponse(spaces=spaces)

    def _message(self, model_id: str) -> ranking_pb2.Model:
        return model_message(self._models.get(model_id).ranker.manifest, self._models)
