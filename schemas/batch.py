"""Where events stand in a log, and the closed ranges of them that are worked on as one."""

from typing import NamedTuple

import msgspec

REQUESTS_TOPIC = "requests.v1"
ENRICHED_TOPIC = "requests.enriched.v1"
DEAD_TOPIC = "requests.dead.v1"
ENRICH_TASK = "heliograph.enrich"
"""Name of the Celery task that turns one batch into rows."""


class Partition(NamedTuple):
    """One ordered stream of records: a Kafka partition, or one edge's spool (topic `spool/<id>`, number 0)."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.number}"


class Batch(msgspec.Struct, frozen=True):
    """A closed range of offsets, `first` to `last`, both in. Its boundaries never change once written down."""

    topic: str
    partition: int
    first: int
    last: int

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.last

    @property
    def next_offset(self) -> int:
        """What is committed when this batch and all before it are done."""
        return self.last + 1

    @property
    def where(self) -> Partition:
        return Partition(self.topic, self.partition)

    @property
    def token(self) -> str:
        """What ClickHouse knows the batch by (`insert_deduplication_token`)."""
        return f"{self.topic}:{self.partition}:{self.first}:{self.last}"


class Confirmation(msgspec.Struct, frozen=True):
    """A batch's row in the ledger: it is stored, with this many events."""

    batch: Batch
    events: int
    rows: int
    dead_lettered: int
