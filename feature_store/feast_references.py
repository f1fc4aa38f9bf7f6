"""What a caller means by "view:feature" references or a FeatureService: Feast's views, the features of each, and the columns they become.

Feast resolves them against its registry, as for `get_historical_features`; its errors are given the names that there are.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, utils
from feast.errors import FeatureServiceNotFoundException, FeatureViewNotFoundException

from feature_store.errors import PointInTimeError


@dataclass(frozen=True)
class Asked:
    """Features asked for.

    Attributes:
        references: "view:feature" in the order asked; of a service, all of its features.
        views: the stored views and what is read of each: what was asked for, and what on-demand views are computed from.
        on_demand: views computed from those.
    """

    references: list[str]
    views: list[tuple[FeatureView, list[str]]]
    on_demand: list[OnDemandFeatureView]

    def columns(self, *, full_feature_names: bool) -> list[str]:
        """The features' column names, in the order asked. Raises `PointInTimeError` where two would be the same."""
        names = [full_name(reference) for reference in self.references]
        if not full_feature_names:
            names = [reference.split(":", 1)[1] for reference in self.references]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            remedy = "ask for each once" if full_feature_names else "use full_feature_names=True"
            raise PointInTimeError(f"several of the features asked for are named {', '.join(twice)}: {remedy}")
        return names


def full_name(reference: str) -> str:
    """`<view>__<feature>`, Feast's own column name for "view:feature" (without the version of "view@v2:feature")."""
    view, feature = reference.split(":", 1)
    return f"{view.split('@')[0]}__{feature}"


def resolve(store: FeatureStore, features: Sequence[str] | FeatureService) -> Asked:
    """Look features up in the registry. Raises `PointInTimeError` naming what is not there, and what is."""
    wanted = features if isinstance(features, FeatureService) else _checked(features)
    try:
        references = list(utils._get_features(store.registry, store.project, wanted, allow_cache=True))  # noqa: SLF001
        views, on_demand = utils._get_feature_views_to_use(store.registry, store.project, wanted)  # noqa: SLF001
        on_demand = [_computed_here(view) for view in on_demand]
        _check_features(references, [*views, *on_demand])
        plain, computed = utils._group_feature_refs(references, views, on_demand)  # noqa: SLF001
    except (FeatureViewNotFoundException, FeatureServiceNotFoundException) as error:
        raise PointInTimeError(f"{error}: there are {_known(store, wanted)}; `feast apply` registers more") from error
    except ValueError as error:  # a malformed reference, a view that is disabled or being materialized
        raise PointInTimeError(f"the features cannot be read: {error}") from error
    return Asked(references, [(view, sorted(names)) for view, names in plain], [view for view, _ in computed])


def _checked(features: Any) -> list[str]:
    if isinstance(features, str) or not features or not all(isinstance(name, str) for name in features):
        raise PointInTimeError(f"features are {features!r}: give a list of 'view:feature', or a FeatureService")
    return list(features)


def _computed_here(view: OnDemandFeatureView) -> OnDemandFeatureView:
    """A copy that Feast does not take for a stored view, since what it stores online has no history."""
    view = copy.deepcopy(view)
    view.write_to_online_store = False
    return view


def _check_features(references: list[str], views: list[Any]) -> None:
    known = {view.projection.name_to_use(): [f.name for f in view.projection.features] for view in views}
    for reference in references:
        view, feature = reference.split(":", 1)
        if view in known and feature not in known[view]:
            raise PointInTimeError(f"view {view} has no feature {feature!r}; it has {', '.join(known[view])}")


def _known(store: FeatureStore, wanted: Any) -> str:
    if isinstance(wanted, FeatureService):
        return "the services " + ", ".join(sorted(service.name for service in store.list_feature_services()))
    return "the views " + ", ".join(sorted(_view_names(store)))


def _view_names(store: FeatureStore) -> Iterator[str]:
    yield from (view.name for view in store.list_feature_views())
    yield from (view.name for view in store.list_on_demand_feature_views())
