"""The one root folder of an installation, and what lies where in it.

Finding it creates nothing; `Home.create` does.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feature_store.errors import HomeError

HOME_VARIABLE: Final = "TRIPTYCH_HOME"
FEAST_YAML_VARIABLE: Final = "FEAST_FS_YAML_FILE_PATH"
FOLDER_NAME: Final = ".triptych"


@dataclass(frozen=True)
class Home:
    """Paths under one root; none of them needs to exist."""

    root: Path

    @property
    def tables(self) -> Path:
        """Offline Parquet tables."""
        return self.root / "tables"

    @property
    def registry(self) -> Path:
        """Feast's SQL registry (SQLite)."""
        return self.root / "registry.db"

    @property
    def leases(self) -> Path:
        """Writers' leases and materialisation watermarks (SQLite)."""
        return self.root / "leases.db"

    @property
    def events(self) -> Path:
        """The durable event log (SQLite)."""
        return self.root / "events.db"

    @property
    def spaces(self) -> Path:
        """The embedding spaces in use (YAML)."""
        return self.root / "spaces.yaml"

    @property
    def feature_store_yaml(self) -> Path:
        """Feast's configuration with this root's absolute paths."""
        return self.root / "feature_store.yaml"

    @property
    def milvus_data(self) -> Path:
        """Data folder of the embedded Milvus."""
        return self.root / "milvus"

    @property
    def milvus_json(self) -> Path:
        """Address and process id of the running embedded Milvus."""
        return self.root / "milvus.json"

    @property
    def models(self) -> Path:
        """Ranker checkpoints, one folder each."""
        return self.root / "models"

    @property
    def training(self) -> Path:
        """Point-in-time training sets."""
        return self.root / "training"

    @property
    def quarantine(self) -> Path:
        """Reports of what ingestion refused, one file per run."""
        return self.root / "quarantine"

    @property
    def logs(self) -> Path:
        """Logs of the processes we start."""
        return self.root / "logs"

    def create(self) -> "Home":
        """Make the root and its folders; keep what is there. Raises `HomeError` where that cannot be done."""
        try:
            for folder in (self.root, self.tables, self.models, self.training, self.quarantine, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"the root folder {self.root} cannot be made ({error.strerror}); set {HOME_VARIABLE} to another"
            ) from error
        return self


def find_home(start: Path | None = None) -> Home:
    """Locate the root without creating it.

    `TRIPTYCH_HOME` wins; then the folder of `FEAST_FS_YAML_FILE_PATH` (what `triptych up` prints for a root that is not
    the default); then the nearest `.triptych` in `start` (default: the working folder) or above it; else a new one beside
    `feature_repo/`, else in `start`.
    """
    if chosen := os.environ.get(HOME_VARIABLE):
        return Home(Path(chosen).expanduser().resolve())
    if yaml_path := os.environ.get(FEAST_YAML_VARIABLE):
        folder = Path(yaml_path).expanduser().resolve().parent
        if (folder / "spaces.yaml").exists():
            return Home(folder)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FOLDER_NAME).is_dir():
            return Home(folder / FOLDER_NAME)
    for folder in (here, *here.parents):
        if (folder / "feature_repo").is_dir():
            return Home(folder / FOLDER_NAME)
    return Home(here / FOLDER_NAME)
