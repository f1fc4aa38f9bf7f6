"""A writer in a process of its own, for tests that kill or pause it. Its orders are one JSON object; it tells on stdout how far it is.

Lines: `ready`, `batch N` (N batches were handed over), `paused`, `done JSON`, `failed TYPE: message`.
"""

import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from fault_rows import fault_schema, make_load

from feature_store import writing
from feature_store.errors import FeatureStoreError
from feature_store.lease import Lease, Leases
from feature_store.milvus_channel import MilvusChannel
from feature_store.milvus_core import MilvusCore

BATCH_ROWS = 1_000
# Where a writer can be paused: before a call of this method, and of this request.
PAUSES = {
    "check": (Lease, "check", None),
    "send": (MilvusChannel, "start_upsert", None),
    "swap": (MilvusChannel, "call", "RenameCollection"),
    "confirm": (Lease, "confirm", None),
}


def tell(line):
    print(line, flush=True)


def before(owner, name, at, act, applies=lambda _: True):
    """Do something before the `at`-th call of a method."""
    original, left = getattr(owner, name), [at]

    def watched(*args, **settings):
        if applies(args[1] if len(args) > 1 else None):
            left[0] -= 1
            if left[0] == 0:
                act()
        return original(*args, **settings)

    setattr(owner, name, watched)


def pause():
    """Stop this process until it is resumed."""
    tell("paused")
    # To this thread, which then stops before its next step; sent to the process, another thread may be the first to stop.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def die():
    """End this process as a loss of power would."""
    os.kill(os.getpid(), signal.SIGKILL)


def load(order):
    """Write the order's part of a load into a view, under one lease or (`turns`) one for each batch."""
    rows = make_load(*order["load"]).later(order["round"])
    rows = rows.take(slice(*order.get("part", [None])))
    leases = Leases(Path(order["leases"]), order["lease_seconds"])
    turns, written = order.get("turns", False), writing.Written(0, 0)
    tell("ready")
    with MilvusCore(order["uri"], timeout_seconds=order.get("timeout_seconds", 30.0)) as core:
        one = leases.hold(order["view"], 60.0) if not turns else nullcontext()
        with one as lease:
            for number, first in enumerate(range(0, len(rows), BATCH_ROWS), 1):
                again = leases.hold(order["view"], 60.0) if turns else nullcontext(lease)
                table = rows.take(slice(first, first + BATCH_ROWS)).table()
                with again as held, writing.ViewWriter(core, order["view"], held) as writer:
                    writer.write(table)
                written += writer.written
                tell(f"batch {number}")
    return {"stored": written.stored, "stale": written.stale}


def rebuild_view(order):
    """Rebuild a view with one feature more."""
    import pyarrow as pa

    from feature_store.rebuilding import rebuild

    target = fault_schema(order["view"], fields={"version": pa.int64(), "more": pa.string()})
    with (
        MilvusCore(order["uri"], timeout_seconds=order.get("timeout_seconds", 30.0)) as core,
        Leases(Path(order["leases"]), order["lease_seconds"]).hold(order["view"], 60.0) as lease,
    ):
        tell("ready")
        return {"rows": rebuild(core, target, lease, lambda done, _: tell(f"batch {done}"))}


def feast(order):
    """Materialize a home with Feast's engine, once it is told to on stdin: importing Feast takes long."""
    import warnings

    warnings.simplefilter("ignore")
    from feature_store import feast_cli, feast_engine, feast_online
    from feature_store.home import Home

    def leases_of(config):
        return Leases(feast_online.home_of(config.online_store).leases, order["lease_seconds"])

    feast_online.leases_of = feast_engine.leases_of = leases_of
    home = Home(Path(order["home"]))
    if order.get("apply"):
        feast_cli.apply(home)
    tell("ready")
    sys.stdin.readline()
    batches = iter(range(1, 1_000_000))
    done = feast_cli.materialize(home, views=[order["view"]], progress=lambda *_: tell(f"batch {next(batches)}"))
    return vars(done[order["view"]])


def main(order):
    writing.RETRY_SECONDS = order.get("retry_seconds", writing.RETRY_SECONDS)
    if "pause" in order:
        point, at = order["pause"]
        owner, name, request = PAUSES[point]
        before(owner, name, at, pause, lambda asked: request in {None, asked})
    if "die_before_confirm" in order:
        before(Lease, "confirm", order["die_before_confirm"], die)
    if "die_before_call" in order:
        reads = {"Query", "DescribeCollection", "ShowCollections", "GetLoadState", "GetFlushState"}
        before(MilvusChannel, "call", order["die_before_call"], die, lambda asked: asked not in reads)
    try:
        done = {"load": load, "rebuild": rebuild_view, "feast": feast}[order["what"]](order)
    except FeatureStoreError as error:
        tell(f"failed {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    tell(f"done {json.dumps(done)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1])))
