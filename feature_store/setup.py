"""Makes a home ready: its list of spaces, empty tables, and Feast's configuration with this root's absolute paths."""

from pathlib import Path
from typing import Any

import yaml

from feature_store.files import write_whole
from feature_store.home import FEAST_YAML_VARIABLE, Home
from feature_store.spaces import DEFAULT_SPACES
from feature_store.tables import Tables

# By path, since it is Feast's folder rather than a package of ours: the committed defaults, which every home starts from, live there.
FEATURE_REPO = Path(__file__).resolve().parent.parent / "feature_repo"


def prepare(home: Home) -> None:
    """Create what is missing in the home and keep what is there; the Feast configuration is always written anew."""
    home.create()
    if not home.spaces.exists() and DEFAULT_SPACES.exists():
        write_whole(home.spaces, DEFAULT_SPACES.read_bytes())
    Tables(home).ensure()
    write_feast_config(home)


def feast_config(home: Home) -> dict[str, Any]:
    """The committed `feature_store.yaml` with the home's absolute paths."""
    config: dict[str, Any] = yaml.safe_load((FEATURE_REPO / "feature_store.yaml").read_text())
    config["registry"]["path"] = f"sqlite:///{home.registry}"
    config["online_store"]["home"] = str(home.root)
    return config


def write_feast_config(home: Home) -> Path:
    """Write the home's `feature_store.yaml`, whole or not at all."""
    header = "# Written by `triptych up` from feature_repo/feature_store.yaml, with this root's paths.\n"
    write_whole(home.feature_store_yaml, header + yaml.safe_dump(feast_config(home), sort_keys=False))
    return home.feature_store_yaml


def is_default(home: Home) -> bool:
    """Whether the committed `feature_store.yaml`, with its relative paths, means this home."""
    return home.root == FEATURE_REPO.parent / ".triptych"


def feast_exports(home: Home) -> dict[str, str]:
    """Environment variables that the stock `feast` command needs for this home; none for the default root."""
    return {} if is_default(home) else {FEAST_YAML_VARIABLE: str(home.feature_store_yaml)}
