"""Vectors made elsewhere become a space with the valid times of the catalogue."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.profiles import Encoders
from feature_store.home import Home
from feature_store.schemas import timestamps
from feature_store.space_check import covered
from feature_store.spaces import read_entries
from feature_store.tables import Tables
from ingest.errors import ManifestError
from ingest.pipeline import ingest_manifest
from ingest.vector_files import VectorFile, import_vectors
from tests.ingest.small import make_models, manifest, rows_of

DIM = 6


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """A home with three items in a text space: one changed its words, one lost them and has others now."""
    folder = tmp_path_factory.mktemp("catalogue")
    home, encoders = Home(folder / "home").create(), Encoders(text=make_models(folder).text())
    home.spaces.write_text("spaces: []\n")
    for day, rows in {
        "2020-01-01": {"a": "red", "b": "blue", "c": "old"},
        "2020-02-01": {"a": "a bird", "b": ""},
        "2020-03-01": {"b": "stone"},
    }.items():
        given = [{"item_id": i, "title": title, "image": "x.png", "available_at": day} for i, title in rows.items()]
        ingest_manifest(home, manifest(folder / "m.csv", *given), encoders)
    return home, encoders.text.space.space_id


@pytest.fixture
def place(catalogue, tmp_path):
    """A copy of the catalogue's home, and the id of its text space."""
    import shutil

    home, space_id = catalogue
    return Home(shutil.copytree(home.root, tmp_path / "home")), space_id


def parquet(folder, ids, vectors, **columns):
    path = folder / "vectors.parquet"
    pq.write_table(pa.table({"item_id": ids, "vector": [list(map(float, v)) for v in vectors], **columns}), path)
    return VectorFile(path)


def test_imported_vectors_are_true_while_their_items_have_content(place, tmp_path, unit_vectors):
    """Old labels join them as they join the modality's other space; the space is of kind `imported` and in use."""
    home, old = place
    vectors = unit_vectors(3, DIM)
    report = import_vectors(home, "elsewhere", parquet(tmp_path, ["a", "b", "c"], vectors), "text")
    space = report.space
    assert (space.kind, space.dim, space.space_id.startswith("text_elsewhere_")) == ("imported", DIM, True)
    assert (report.rows, report.stored, report.quarantined) == (3, 5, 0)
    assert [e.state for e in read_entries(home) if e.space == space] == ["added"]
    times = sorted({t + d for _, t, *_ in rows_of(home, old) for d in (-1, 0, 1)})
    items = np.repeat(["a", "b", "c"], len(times)).tolist()
    joined = [covered(Tables(home).embedding_rows("item", s), items, np.tile(times, 3)) for s in (old, space.space_id)]
    np.testing.assert_array_equal(joined[0], joined[1])
    found = Tables(home).read_embeddings("item", space.space_id)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-7)
    again = import_vectors(home, "elsewhere", parquet(tmp_path, ["a", "b", "c"], vectors), "text")
    assert (again.space, again.stored, again.unchanged) == (space, 0, 5)


def test_a_files_own_times_win(place, tmp_path, unit_vectors):
    """With a column event_timestamp, several rows of one item are its versions."""
    home, _ = place
    at = np.array([10, 20], np.int64) * 1_000_000
    file = parquet(tmp_path, ["a", "a"], unit_vectors(2, DIM), event_timestamp=timestamps(at))
    report = import_vectors(home, "timed", file, "image")
    assert {(row[0], row[1]) for row in rows_of(home, report.space.space_id)} == {("a", 10_000_000), ("a", 20_000_000)}


def test_rows_that_cannot_be_taken_are_quarantined(place, tmp_path, unit_vectors):
    """Unknown and repeated ids, missing, broken and empty vectors each get a reason; the rest is stored."""
    home, _ = place
    vectors = [*map(list, unit_vectors(6, DIM).astype(float))]
    vectors[3], vectors[4] = [float("nan")] * DIM, None
    table = pa.table(
        {"item_id": ["a", "nobody", "a", "b", "c", None], "vector": pa.array(vectors, pa.list_(pa.float32()))}
    )
    pq.write_table(table, tmp_path / "v.parquet")
    report = import_vectors(home, "some", VectorFile(tmp_path / "v.parquet"), "text")
    assert dict(report.refused) == {"unknown_id": 1, "duplicate_id": 1, "bad_vector": 2, "missing_id": 1}
    assert {row[0] for row in rows_of(home, report.space.space_id)} == {"a"}
    assert len(report.quarantine_file.read_text().splitlines()) == 5


def test_norms_are_checked_before_anything_is_stored(place, tmp_path, unit_vectors):
    """Without --normalise vectors of another length are refused together; with it they are scaled, in a space of its own name."""
    home, _ = place
    vectors = unit_vectors(2, DIM)
    file = parquet(tmp_path, ["a", "b"], vectors * 3)
    before = home.spaces.read_text()
    with pytest.raises(ManifestError, match=r"2 vectors are not of unit norm.*'a' has norm 3.*--normalise"):
        import_vectors(home, "long", file, "text")
    assert home.spaces.read_text() == before
    report = import_vectors(home, "long", VectorFile(file.path, normalise=True), "text")
    np.testing.assert_allclose(Tables(home).read_embeddings("item", report.space.space_id).vectors, vectors, atol=1e-6)


def test_a_matrix_with_its_ids_is_read_too(place, tmp_path, unit_vectors):
    """A .npy and a text file of ids give what a Parquet file gives; their digest covers both."""
    home, _ = place
    vectors = unit_vectors(2, DIM)
    np.save(tmp_path / "v.npy", vectors)
    names = []
    for ids in ("a\nb\n", "b\na\n"):
        (tmp_path / "ids.txt").write_text(ids)
        report = import_vectors(home, "matrix", VectorFile(tmp_path / "v.npy", ids_path=tmp_path / "ids.txt"), "image")
        names.append(report.space.space_id)
        found = Tables(home).read_embeddings("item", report.space.space_id, ids.split())
        np.testing.assert_allclose(found.vectors, vectors, atol=1e-7)
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"id": ["a"], "vector": [[1.0]]}, "no column 'item_id'; it has id, vector. Name it with --id-column"),
        ({"item_id": ["a"], "v": [[1.0]]}, "no column 'vector'.*--vector-column"),
        ({"item_id": ["a"], "vector": ["red"]}, "list"),
        ({"item_id": ["a", "b"], "vector": [[1.0, 0.0], [1.0]]}, "the vector of 'b' has 1 numbers, others have 2"),
        ({"item_id": ["a"], "vector": pa.array([None], pa.list_(pa.float32()))}, "there is no vector in it"),
        ({"item_id": ["a"], "vector": [[1.0]], "event_timestamp": ["someday"]}, "someday"),
    ],
)
def test_files_that_hold_no_vectors_are_refused(place, tmp_path, columns, complaint):
    """Each with what is wrong; nothing is registered."""
    home, _ = place
    before = home.spaces.read_text()
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(ManifestError, match=complaint):
        import_vectors(home, "wrong", VectorFile(tmp_path / "v.parquet"), "text")
    assert home.spaces.read_text() == before


def test_files_of_other_kinds_are_refused(tmp_path):
    """Another ending, a missing file, a .npy without ids, pickles, or other than a matrix of floats."""
    np.save(tmp_path / "v.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "p.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "ids.txt").write_text("a\n")
    (tmp_path / "v.csv").write_text("")
    for name, complaint in (("v.csv", "not '.csv'"), ("nowhere.parquet", "no such file"), ("v.npy", "needs --ids")):
        with pytest.raises(ManifestError, match=complaint):
            VectorFile(tmp_path / name)
    for name, complaint in (("v.npy", "must hold floats"), ("p.npy", "cannot be read")):
        with pytest.raises(ManifestError, match=complaint):
            VectorFile(tmp_path / name, ids_path=tmp_path / "ids.txt").count()
