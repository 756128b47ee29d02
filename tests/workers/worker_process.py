"""A real worker for `test_app.py`: reads a spool, and hangs once before a named insert so that it can be killed there.

python -m tests.workers.worker_process <settings.json>
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ingest.spool_log import SpoolReader
from schemas.settings import ClickHouseSettings, RedisSettings, SharedSettings, WorkerSettings
from workers.app import Opened, create_app, run
from workers.store import Row, Store, Table


class Setup(msgspec.Struct):
    clickhouse: dict[str, str | int]
    redis_url: str
    spool: str
    hang_at: str | None = None
    """Table before whose insert the first task hangs."""
    hung: str = ""
    """File that the hanging process writes its pid to; while it exists nothing hangs again."""
    time_limit_s: int = 20
    processes: int = 1


def main() -> None:
    setup = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Setup)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    insert_block = Store.insert_block

    def hanging(self: Store, table: Table, rows: Sequence[Row], token: str) -> None:
        hung = Path(setup.hung)
        if table.name == setup.hang_at and not hung.exists():
            fresh = hung.with_suffix(".new")
            fresh.write_text(str(os.getpid()))
            fresh.rename(hung)
            time.sleep(600)
        insert_block(self, table, rows, token)

    Store.insert_block = hanging  # type: ignore[method-assign]
    shared = SharedSettings(
        clickhouse=ClickHouseSettings.model_validate(setup.clickhouse),
        redis=RedisSettings.model_validate({"url": setup.redis_url}),
    )
    settings = WorkerSettings(processes=setup.processes, time_limit_s=setup.time_limit_s, visibility_timeout_s=60)
    run(create_app(shared, settings, lambda: Opened(SpoolReader(Path(setup.spool)))))


if __name__ == "__main__":
    main()
