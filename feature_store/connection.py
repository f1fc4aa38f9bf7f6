"""Where Milvus is, and a connection to it. `TRIPTYCH_MILVUS_URI` wins; else the address that `triptych up` wrote into the home."""

import json
import os
import re
from typing import TYPE_CHECKING, Any, Final

from feature_store.errors import StoreUnavailable
from feature_store.home import Home

if TYPE_CHECKING:
    from feature_store.milvus_core import MilvusCore

URI_VARIABLE: Final = "TRIPTYCH_MILVUS_URI"
TOKEN_VARIABLE: Final = "TRIPTYCH_MILVUS_TOKEN"  # noqa: S105 - the variable's name, not a secret
DB_VARIABLE: Final = "TRIPTYCH_MILVUS_DB"
CA_VARIABLE: Final = "TRIPTYCH_MILVUS_CA_FILE"

EMBEDDED: Final = "embedded"


def milvus_uri(home: Home, configured: str = "") -> str:
    """Address of the Milvus to use, as `http://host:port`: the variable's, else the configured one, else the embedded server's.

    Raises `StoreUnavailable` where nobody has named or started one.
    """
    if uri := os.environ.get(URI_VARIABLE) or configured:
        return uri
    try:
        return str(json.loads(home.milvus_json.read_text())["uri"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreUnavailable(
            f"no Milvus is running for {home.root}: run `triptych up`, or point {URI_VARIABLE} at a server"
        ) from error


def store_name(uri: str = "", db: str = "") -> str:
    """What names the Milvus in use among those of one home: address and database, or `embedded`, whose port may change."""
    chosen = re.sub(r"^(\w+://)?[^/]*@", r"\1", os.environ.get(URI_VARIABLE) or uri)  # without a password
    return f"{chosen.rstrip('/')}/{os.environ.get(DB_VARIABLE) or db}" if chosen else EMBEDDED


def connect(home: Home, timeout_seconds: float = 30.0, *, uri: str = "", **settings: Any) -> "MilvusCore":
    """A core on that Milvus; cheap, and lazy: the first call connects.

    `settings` are those of `MilvusChannel`; the variables for token, database and CA file win over them.
    """
    from feature_store.milvus_core import MilvusCore

    chosen = {"token": TOKEN_VARIABLE, "db": DB_VARIABLE, "ca_file": CA_VARIABLE}
    settings |= {name: os.environ[variable] for name, variable in chosen.items() if os.environ.get(variable)}
    return MilvusCore(milvus_uri(home, uri), timeout_seconds=timeout_seconds, **settings)
