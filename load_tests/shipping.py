"""How fast one shipper takes a full spool to Kafka, and what an event costs it.

    python -m load_tests.shipping [--events 100000]

A spool filled as an edge fills it, a real broker on the same machine, one shipper in this process.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ingest.objects import Objects
from ingest.shipper import Shipper
from ingest.spool_plan import read_plan
from ingest.topics import migrate_topics
from load_tests.enrichment import fill_spool
from load_tests.processes import ChildFailed
from schemas.settings import ObjectSettings, ShipperSettings
from tests.servers import running_kafka


class Shipping(NamedTuple):
    events: int
    clock_s: float
    cpu_s: float


def measure_shipping(*, events: int) -> Shipping:
    """
    Raises:
        ChildFailed: the shipper left some of them.
    """
    with TemporaryDirectory(prefix="heliograph-load-") as scratch, running_kafka(Path(scratch) / "kafka") as broker:
        root = Path(scratch) / "spool"
        asyncio.run(migrate_topics(broker.settings))
        asyncio.run(fill_spool(root, events))
        (folder,) = root.glob("edge-*")
        settings = ShipperSettings(drain_s=300)
        shipper = Shipper(folder, broker.settings, settings, Objects(ObjectSettings(), Path(scratch)))
        shipper.stop()  # it ends when the spool is empty
        cpu, began = time.process_time(), time.perf_counter()
        shipper.run()
        cpu_s, clock_s = time.process_time() - cpu, time.perf_counter() - began
        shipped = read_plan(folder).committed
        if shipped != events:
            raise ChildFailed(f"{shipped} of {events} events were shipped")
    return Shipping(events, clock_s, cpu_s)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.shipping", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000, help="in the spool (100,000)")
    options = parser.parse_args()
    seen = measure_shipping(events=options.events)
    print(f"{seen.events / seen.cpu_s:,.0f} events/s on one core, {seen.events / seen.clock_s:,.0f} by the clock")
    return 0


if __name__ == "__main__":
    sys.exit(main())
