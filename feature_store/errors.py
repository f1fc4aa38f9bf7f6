"""What can go wrong in the feature store.

FeatureStoreError
├── HomeError             the root folder cannot be made
├── SpaceRegistryError    spaces.yaml is unreadable, or a space contradicts the one registered under its id
│   └── SpaceInUseError   a space cannot be retired, since models pin it
├── TableError            rows that an offline table refuses, or a part that cannot be read
├── PointInTimeError      labels, or features asked for, that cannot be joined
├── StoreUnavailable      Milvus does not answer, or nobody has started it
├── StoreRequestError     Milvus answered, and refused the request
├── ViewNotFoundError     no such view in Milvus: nothing is created on read
├── SchemaDriftError      a view in Milvus is not what its definition says
├── RefusedRowsError      rows that the online store refuses: null key, NaN, wrong norm, wrong dim
├── IndexReportError      a view whose index cannot be measured: it has no vector, or too few rows
├── LedgerError           the SQL database of leases and watermarks cannot be used
└── LeaseError            another writer holds the view, or took it over
    └── LateWriteError    rows were written after the lease was lost: the view must be materialized again in full
"""


class FeatureStoreError(Exception):
    """Base of all errors of this room."""


class HomeError(FeatureStoreError):
    """The root folder cannot be made where it was asked for."""


class SpaceRegistryError(FeatureStoreError):
    """The list of embedding spaces cannot be used as it is."""


class SpaceInUseError(SpaceRegistryError):
    """Models pin the space.

    Attributes:
        models: their names.
    """

    def __init__(self, message: str, models: list[str]) -> None:
        super().__init__(message)
        self.models = models


class TableError(FeatureStoreError):
    """An offline table refuses the rows, or cannot be read."""


class PointInTimeError(FeatureStoreError):
    """Labels and features cannot be joined as asked; nothing was written."""


class StoreUnavailable(FeatureStoreError):  # noqa: N818 - named for the state a caller degrades on, as gRPC names it
    """Milvus cannot be reached; the message says how to start it."""


class StoreRequestError(FeatureStoreError):
    """Milvus refused a request.

    Attributes:
        code: Milvus's own error code, 0 where there was none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ViewNotFoundError(FeatureStoreError):
    """The view has no collection in Milvus."""


class SchemaDriftError(FeatureStoreError):
    """Fields, dim, metric or index of a view in Milvus differ from its definition."""


class RefusedRowsError(FeatureStoreError):
    """Rows that must not be stored; nothing of their batch was written.

    Attributes:
        keys: entity ids of the refused rows, the first of them named in the message.
    """

    def __init__(self, message: str, keys: list[str]) -> None:
        super().__init__(message)
        self.keys = keys


class IndexReportError(FeatureStoreError):
    """A view's index cannot be measured as asked."""


class LedgerError(FeatureStoreError):
    """The SQL database of leases and watermarks cannot be reached, or is of another kind."""


class LeaseError(FeatureStoreError):
    """The view is being written by somebody else."""


class LateWriteError(LeaseError):
    """Rows may have been stored after another writer had taken the view over."""
