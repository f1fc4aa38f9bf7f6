"""Where Milvus is, and a connection to it. `TRIPTYCH_MILVUS_URI` wins; else the address that `triptych up` wrote into the home."""

import json
import os
from typing import TYPE_CHECKING, Final

from feature_store.errors import StoreUnavailable
from feature_store.home import Home

if TYPE_CHECKING:
    from feature_store.milvus_core import MilvusCore

URI_VARIABLE: Final = "TRIPTYCH_MILVUS_URI"
TOKEN_VARIABLE: Final = "TRIPTYCH_MILVUS_TOKEN"  # noqa: S105 - the variable's name, not a secret
DB_VARIABLE: Final = "TRIPTYCH_MILVUS_DB"

EMBEDDED: Final = "embedded"


def milvus_uri(home: Home) -> str:
    """Address of the Milvus to use, as `http://host:port`. Raises `StoreUnavailable` where nobody has named or started one."""
    if uri := os.environ.get(URI_VARIABLE):
        return uri
    try:
        return str(json.loads(home.milvus_json.read_text())["uri"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreUnavailable(
            f"no Milvus is running for {home.root}: run `triptych up`, or point {URI_VARIABLE} at a server"
        ) from error


def store_name() -> str:
    """What names the Milvus in use among those of one home: address and database, or `embedded`, whose port may change."""
    uri = os.environ.get(URI_VARIABLE)
    return f"{uri.rstrip('/')}/{os.environ.get(DB_VARIABLE, '')}" if uri else EMBEDDED


def connect(home: Home, timeout_seconds: float = 30.0) -> "MilvusCore":
    """A core on that Milvus; cheap, and lazy: the first call connects."""
    from feature_store.milvus_core import MilvusCore

    token, db = os.environ.get(TOKEN_VARIABLE, ""), os.environ.get(DB_VARIABLE, "")
    return MilvusCore(milvus_uri(home), token=token, db=db, timeout_seconds=timeout_seconds)
