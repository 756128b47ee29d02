"""The ledger as the planner reads it: a batch that stands in `batches` is stored, whole and once."""

import threading

from ingest.clickhouse import connect, store_errors
from schemas.batch import Batch, Confirmation, Partition
from schemas.settings import ClickHouseSettings

# The table's sorting key begins (topic, partition, first), so this reads the newest granule of one partition: about 1.5 ms.
# Two workers that confirm one batch at once leave one row, since both carry its token; LIMIT BY is for a ledger whose
# window of tokens had moved on between them.
_CONFIRMED = """
SELECT first, last, events, rows, dead_lettered FROM batches
WHERE topic = %(topic)s AND partition = %(partition)s AND first >= %(since)s
ORDER BY first, last LIMIT 1 BY first, last
"""
# The sums are kept for longer than the batches.
_LAST = """
SELECT max(last) FROM batches_by_partition WHERE topic = %(topic)s AND partition = %(partition)s HAVING count() > 0
"""


class Ledger:
    """Reads over one connection, opened at the first question. Safe to share between threads; one asks at a time."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        # A ledger that is slow to answer must not hold up planning for a whole query's time.
        answer_s = min(settings.query_timeout_s, 5.0)
        self._client = connect(settings.model_copy(update={"query_timeout_s": answer_s}), max_execution_time=answer_s)
        self._asking = threading.Lock()

    def confirmed(self, where: Partition, since: int) -> list[Confirmation]:
        """The batches of a partition in the ledger that begin at `since` or later, in order.

        Raises:
            StoreUnavailable: nothing is known just now; ask again.
            StoreRefused: the ledger cannot be read as it is (no migration has run, no right to).
        """
        asked = {"topic": where.topic, "partition": where.number, "since": since}
        with self._asking, store_errors():
            found = self._client.execute(_CONFIRMED, asked)
        return [
            Confirmation(Batch(where.topic, where.number, first, last), events, rows, dead)
            for first, last, events, rows, dead in found
        ]

    def last(self, where: Partition) -> int | None:
        """The last offset of a partition that was ever stored, or was about to be confirmed; None: none was.

        Raises:
            StoreUnavailable, StoreRefused: as `confirmed`.
        """
        with self._asking, store_errors():
            found = self._client.execute(_LAST, {"topic": where.topic, "partition": where.number})
        return int(found[0][0]) if found else None

    def close(self) -> None:
        with self._asking:
            self._client.disconnect()
