"""Checkpoints' manifests as the API shows them."""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from protos.triptych.v1 import ranking_pb2
from serving.models import Models


def model_message(manifest: Mapping[str, Any], models: Models) -> ranking_pb2.Model:
    """One checkpoint for ListModels; a damaged one has nothing but its name."""
    model_id = manifest["model_id"]
    pointer = models.pointer
    message = ranking_pb2.Model(
        model_id=model_id,
        loaded=model_id in models.loaded_ids,
        stable=model_id == pointer.stable,
        previous=model_id == pointer.previous,
        space_ids=list(manifest.get("space_ids", {}).values()),
        fused_space_id=f"fused_{model_id}",
        feature_service=manifest.get("feature_service") or "",
        metrics=dict(flat_metrics(manifest.get("metrics") or {})),
    )
    created = _instant(manifest.get("created"))
    if created is not None:
        message.created.FromDatetime(created)
    return message


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers of nested metrics, by dotted names."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _instant(created: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(created)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
