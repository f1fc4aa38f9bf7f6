import pytest

from feature_store.files import locked, replace_folder, whole, write_whole


def die_half_way(path):
    """Write a part of a file and fail."""
    with whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    """An error half-way leaves the old content and no temporary file."""
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(RuntimeError):
        die_half_way(path)
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_and_is_there_where_that_fails(tmp_path):
    """The new folder comes before the old one goes; without a new one the old stays; what a kill left beside goes next time."""
    path, new, left = tmp_path / "out", tmp_path / "new", tmp_path / ".out.old"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(new, path)
    assert [file.name for file in path.iterdir()] == ["old"]
    new.mkdir()
    left.mkdir()
    replace_folder(new, path)
    assert list(path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_keeps_others_out(tmp_path):
    """While one is inside, another one cannot take the same lock; afterwards it can."""
    import fcntl

    lock = tmp_path / "lock"
    with lock.open("w") as other:
        with locked(lock), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
