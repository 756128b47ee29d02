"""One form of log line for every service. What stands beside the message is in `extra` fields, never a body."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _Lines(logging.Formatter):
    def __init__(self, service: str, form: str) -> None:
        super().__init__()
        self._service = service
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        trouble = self.formatException(record.exc_info) if record.exc_info else None
        if self._form == "json":
            line = {"at": at, "level": record.levelname.lower(), "service": self._service}
            line |= {"logger": record.name, "message": record.getMessage(), **extra}
            if trouble:
                line["exception"] = trouble
            return json.dumps(line, default=str)
        details = "".join(f"  {key}={value}" for key, value in extra.items())
        text = f"{at} {record.levelname.lower():<7} {self._service:<8} {record.getMessage()}{details}"
        return f"{text}\n{trouble}" if trouble else text


def set_up(service: str, *, level: str, form: Literal["text", "json"]) -> None:
    """Send every log line of this process to standard error in our form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(service, form))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "clickhouse_driver", "asyncio", "aiosqlite", "alembic", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It logs each refused connection at each try; who uses it says once what is the matter.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # It logs a traceback for each refused connection; ours say the same in a line.
    logging.getLogger("clickhouse_driver.connection").setLevel(logging.CRITICAL)
