"""The feature store's benchmark: its data, its arithmetic and its wire, without a server of Milvus."""

import json
import subprocess
import sys
from concurrent import futures

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from benchmarks import feature_store as benchmark
from benchmarks.common import Options, Record, read_options
from benchmarks.store import sizing
from benchmarks.store.catalogue import Catalogue, ids
from benchmarks.store.loads import SIDES
from benchmarks.store.plot import plot_sizes
from benchmarks.store.repositories import settings
from benchmarks.store.wire import Bare, Recorder, into
from benchmarks.store_sizing import per_item


def cost(seconds, cpu):
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": 1_000_000}


def values(record):
    return {claim.name: claim.value for claim in record.claims}


def test_loads_are_compared_within_a_round():
    """A round in which everything was slow counts like the others: ratios are taken inside it, and the median counts."""
    fast = {"bare": cost(10, 1), "triptych": cost(12, 2), "stock": cost(30, 40)}
    slow = {"bare": cost(100, 1), "triptych": cost(110, 2), "stock": cost(330, 40)}
    odd = {"bare": cost(10, 1), "triptych": cost(30, 2), "stock": cost(30, 40)}
    record = Record()
    benchmark.claim_materialize([fast, slow, odd], 1_000, record)
    assert values(record) == {
        "materialize_wall_over_bare_upsert": 1.2,
        "materialize_wall_stock_over_ours": 2.5,
        "materialize_cpu_per_row_stock_over_ours": 20.0,
    }
    assert record.details["materialize_triptych"]["cpu_us_per_row"] == 2_000.0
    assert set(SIDES) == {"bare", "triptych", "stock"}


def test_peak_memory_is_claimed_for_the_sizes_that_the_claim_names():
    """Other sizes give a number without a claim."""
    record = Record()
    benchmark.claim_memory({100_000: 200, 1_000_000: 250}, record)
    benchmark.claim_memory({10: 200, 20: 250}, record)
    assert values(record) == {"materialize_peak_memory_1e6_over_1e5": 1.25}
    assert record.details["materialize_peak_memory_20_over_10"] == 1.25


def test_reads_and_searches_are_compared_by_medians():
    """One slow call moves nothing; the recall stands beside the latency."""
    calls = {
        "triptych": [cost(0.011, 0.002), cost(0.011, 0.002), cost(9, 9)],
        "bare": [cost(0.010, 0.001)] * 3,
        "stock": [cost(0.05, 0.04)] * 3,
    }
    record = Record()
    benchmark.claim_read(calls, record)
    benchmark.claim_search({**calls, "recall": 0.97, "ef": 200}, record)
    assert values(record) == {
        "read500_cpu_stock_over_ours": 20.0,
        "read500_wall_over_bare_query": 1.1,
        "search100_wall_over_bare_search": 1.1,
        "search100_recall": 0.97,
    }
    assert (record.details["search100"]["recall"], record.details["search100"]["ef"]) == (0.97, 200)


def test_recall_is_the_share_of_the_exact_nearest():
    """Over all queries together."""
    assert benchmark.recall([["a", "b"], ["c", "x"]], [{"a", "b"}, {"c", "d"}]) == 0.75


def test_calls_take_turns_in_bursts():
    """Every side has every input as often, no side is always first, and the first burst of each is not counted."""
    seen = []
    jobs = {
        name: lambda numbers, name=name: seen.append((name, numbers)) or [{"n": n} for n in numbers] for name in "ab"
    }
    made = benchmark.in_turn(jobs, 12, 4)
    assert [n["n"] for n in made["a"]] == [n["n"] for n in made["b"]] == [n % 4 for n in range(12)]
    assert [name for name, _ in seen] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_smaller_catalogue_is_the_beginning_of_a_larger_one(tmp_path):
    """So sizes differ in size alone; vectors have norm 1 and ids are unique."""
    (_, small), large = next(Catalogue(50, 16).blocks()), dict(Catalogue(10_050, 16).blocks())
    np.testing.assert_array_equal(small, large[0][:50])
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, rtol=1e-5)
    Catalogue(10_050, 16).write(tmp_path)
    written = pq.read_table(tmp_path)
    assert len(set(written["item_id"].to_pylist())) == written.num_rows == 10_050
    vectors = np.concatenate(list(large.values()))
    np.testing.assert_array_equal(np.stack(written["vector"].to_numpy()), vectors)


def test_exact_neighbours_are_those_of_all_items():
    """Found block by block, they are what one comparison with everything finds."""
    catalogue = Catalogue(20_050, 16)
    queries = catalogue.queries(3)
    vectors = np.concatenate([block for _, block in catalogue.blocks()])
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert catalogue.nearest(queries, 10) == [set(ids(rows)) for rows in best]


def test_the_peak_of_memory_is_above_what_was_there():
    """An array made and dropped within counts, one made before does not; in a process where nothing freed can be used again."""
    code = (
        "import numpy as np\n"
        "from benchmarks.store.usage import used\n"
        "before = np.ones(30_000_000, np.uint8)\n"
        "with used() as usage:\n"
        "    np.ones(80_000_000, np.uint8)\n"
        "print(usage.peak_bytes, usage.cpu_seconds)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 75e6 < int(printed[0]) < 200e6
    assert float(printed[1]) > 0


class Echo(milvus_pb2_grpc.MilvusServiceServicer):
    """Takes upserts and keeps them."""

    def __init__(self):
        self.got = []

    def Upsert(self, request, context):  # noqa: ARG002, N802 - gRPC's signature and Milvus's name
        """Called by gRPC."""
        self.got.append(request)
        return milvus_pb2.MutationResult()


@pytest.fixture
def echo():
    """A gRPC server with Milvus's interface, and its address."""
    server, service = grpc.server(futures.ThreadPoolExecutor(2)), Echo()
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_bare_upsert_sends_what_was_recorded(echo):
    """The requests of a client, byte for byte but for the collection, with as many under way."""
    service, uri = echo
    with Recorder("Upsert").on() as recorder, grpc.insecure_channel(uri.removeprefix("http://")) as channel:
        stub = milvus_pb2_grpc.MilvusServiceStub(channel)
        calls = [stub.Upsert.future(milvus_pb2.UpsertRequest(collection_name="a", num_rows=n)) for n in (1, 2)]
        for call in calls:
            call.result()
    assert [method for method, _ in recorder.requests] == ["Upsert", "Upsert"]
    assert 1 <= recorder.peak_in_flight <= 2
    recorded, service.got = service.got, []
    bare = Bare(uri)
    bare.upsert([into("b", request) for _, request in recorder.requests], 2)
    bare.close()
    assert sorted(request.num_rows for request in service.got) == sorted(request.num_rows for request in recorded)
    assert {request.collection_name for request in service.got} == {"b"}


def test_both_repositories_have_the_same_source_and_server(tmp_path):
    """Stock comes as Feast ships it, with the index that ours has; ours is named by its public classes."""
    ours, stock = (settings(side, tmp_path, "http://127.0.0.1:1", 512, 200, 5_000) for side in ("triptych", "stock"))
    assert ours["offline_store"] == stock["offline_store"]
    assert ours["online_store"]["type"] == "feature_store.feast_online.TriptychOnlineStore"
    assert ours["batch_engine"]["type"] == "feature_store.feast_engine.TriptychComputeEngine"
    online = stock["online_store"]
    assert (online["type"], online["embedding_dim"], online["index_type"]) == ("milvus", 512, "HNSW")
    assert (online["index_params"], online["search_params"]) == ({"M": 16, "efConstruction": 200}, {"ef": 200})


def test_sizes_can_be_chosen():
    """Options of the benchmark's own stand beside the common ones."""
    arguments = ["--only", "read", "--rows", "50", "--sizes", "10", "20", "--json", "x.json"]
    options = read_options(benchmark.PARTS, "", arguments, benchmark.add_options)
    assert isinstance(options, Options)
    assert (options.only, options.values["rows"], options.values["sizes"]) == (("read",), 50, [10, 20])


def test_bytes_are_given_per_item_and_per_byte_of_vector():
    """A view of 10 vectors of 25 values, 1,000 bytes of floats."""
    weighed = sizing.Weighed(
        rows_bytes=1_200,
        index_bytes=800,
        log_bytes=500,
        memory_bytes=1_500,
        peak_bytes=3_000,
        empty_bytes=0,
        load_seconds=1,
        settle_seconds=1,
    )
    row = per_item(weighed, Catalogue(10, 25))
    assert (row["disk_bytes_per_item"], row["memory_over_vector"], row["peak_memory_over_vector"]) == (200, 1.5, 3.0)
    json.dumps(row)


def test_the_plot_is_a_picture(tmp_path):
    """One panel each for loading, reading and searching."""
    names = ("load_us_per_row", "load_cpu_us_per_row", "read500_ms", "read500_bare_ms", "search100_ms")
    costs = dict.fromkeys((*names, "search100_bare_ms", "search100_recall"), 1.0)
    plot_sizes({10: costs, 100: costs}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
