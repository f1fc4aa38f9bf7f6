import pytest

from feature_store.errors import HomeError
from feature_store.home import Home, find_home


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("TRIPTYCH_HOME", raising=False)
    monkeypatch.delenv("FEAST_FS_YAML_FILE_PATH", raising=False)


def test_the_variable_wins(tmp_path, monkeypatch):
    """`TRIPTYCH_HOME` is taken before any folder, and finding it makes nothing."""
    (tmp_path / ".triptych").mkdir()
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "chosen"))
    assert find_home(tmp_path).root == tmp_path / "chosen"
    assert not (tmp_path / "chosen").exists()


def test_the_nearest_root_is_found_from_below(tmp_path):
    """Without variables the nearest `.triptych` in the working folder or above it is taken."""
    (tmp_path / ".triptych").mkdir()
    (tmp_path / "a" / ".triptych").mkdir(parents=True)
    (tmp_path / "a" / "b").mkdir()
    assert find_home(tmp_path / "a" / "b").root == tmp_path / "a" / ".triptych"
    assert find_home(tmp_path).root == tmp_path / ".triptych"


def test_a_new_root_lies_beside_the_definitions_or_here(tmp_path):
    """With no root yet: beside `feature_repo/`, also from inside it, else in the working folder."""
    (tmp_path / "project" / "feature_repo").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    assert find_home(tmp_path / "project" / "feature_repo").root == tmp_path / "project" / ".triptych"
    assert find_home(tmp_path / "else").root == tmp_path / "else" / ".triptych"


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    """A file in the root's place is an error with its path and the remedy."""
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="TRIPTYCH_HOME"):
        Home(tmp_path / "file").create()
