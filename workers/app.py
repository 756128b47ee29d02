"""The Celery app: takes references of batches from Redis and enriches them, in processes that each keep their own
connections.

`create_app` wires it, `run` stays in the foreground. The caller says how a log is read (the spool here, Kafka on a
cluster), and who is told of what is stored, by handing in a function that opens both. Processes are forked, so the
function travels as it is and is called once in each.
"""

import logging
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

from billiard.exceptions import SoftTimeLimitExceeded  # type: ignore[import-untyped]
from celery import Celery, signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from kombu.entity import Queue

from ingest.clickhouse import StoreRefused, StoreUnavailable
from ingest.log import LogGap, LogUnavailable, RangeReader
from ingest.objects import Objects
from pricing.overrides import BadOverrides, parse_overrides
from pricing.prices import PriceBook
from schemas.batch import ENRICH_TASK, Batch
from schemas.settings import SettingsError, SharedSettings, WorkerSettings
from workers import hearing, metrics
from workers.enrich import Services, enrich
from workers.publish import Publisher
from workers.store import Store

log = logging.getLogger("heliograph.worker")

QUEUE = "heliograph"

_SOFT_SHARE = 0.8
"""Of the time limit: then the task is told to end; at the whole of it the process is."""
_PROCESS_START_S = 30.0
_BROKER_CONNECT_S = 3
_BROKER_PAUSE_S = 0.5
_BROKER_PAUSE_MAX_S = 5.0


class BatchFailed(Exception):
    """A batch was not confirmed; the planner hands it out again. Carries only text, so that it survives the way from
    the process that ran the task to the one that reports it."""


class Opened(NamedTuple):
    """The log as one worker process holds it."""

    reader: RangeReader
    publisher: Publisher | None = None


def create_app(shared: SharedSettings, settings: WorkerSettings, open_log: Callable[[], Opened]) -> Celery:
    """The worker's app.

    Args:
        open_log: called once in each worker process, and again after it has failed.

    Raises:
        SettingsError: a time limit that the visibility timeout would overtake, or no broker.
    """
    if settings.time_limit_s >= settings.visibility_timeout_s:
        raise SettingsError(
            f"WORKER_TIME_LIMIT_S = {settings.time_limit_s}: must be below WORKER_VISIBILITY_TIMEOUT_S "
            f"= {settings.visibility_timeout_s}, or Redis gives away what is still being worked on"
        )
    # Prices are read once, before the fork: 0.7 s and 60 MB that the processes then share.
    prices = price_book(settings)
    app = Celery("heliograph", broker=broker_url(shared), set_as_current=False)
    app.conf.update(_conf(settings))
    process = _Process(shared, prices, open_log, time_limit_s=settings.time_limit_s)

    @app.task(name=ENRICH_TASK)  # type: ignore[untyped-decorator]
    def enrich_batch(topic: str, partition: int, first: int, last: int) -> None:
        process.run(Batch(topic, partition, first, last))

    url = broker_url(shared)
    signals.worker_ready.connect(lambda **_: hearing.watch(url, QUEUE), weak=False, dispatch_uid="heliograph.hearing")
    signals.worker_process_init.connect(process.start, weak=False, dispatch_uid="heliograph.start")
    signals.worker_process_shutdown.connect(process.stop, weak=False, dispatch_uid="heliograph.stop")
    # Whoever started this process has said how logs are written; Celery would set up its own.
    signals.setup_logging.connect(_keep_logging, weak=False, dispatch_uid="heliograph.logging")
    return app


def run(app: Celery, *, name: str = "worker") -> None:
    """Work in the foreground until SIGTERM (what is at hand is finished) or SIGQUIT (it is not).

    Args:
        name: tells workers of one broker apart in their logs.
    """
    # Neither says anything to whoever runs us: messages are JSON, so nothing of theirs is ever executed; and a task cut
    # off by a lost broker is given out again by design.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning, module="celery")
    app.worker_main([
        "--quiet", "worker", "--pool=prefork", f"--hostname={name}@%h", f"--queues={QUEUE}",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO",
    ])  # fmt: skip


def broker_url(shared: SharedSettings) -> str:
    """Redis's address with its password.

    Raises:
        SettingsError: there is none; the embedded Valkey's is filled in by whoever starts it.
    """
    if shared.redis.url is None:
        raise SettingsError("HELIOGRAPH_REDIS__URL: not set, and no embedded Valkey has been started")
    return shared.redis.url.get_secret_value()


def price_book(settings: WorkerSettings) -> PriceBook:
    """The packaged prices and the user's own.

    Raises:
        SettingsError: the user's file cannot be read or is wrong; the message names the place.
    """
    path = settings.price_overrides
    if path is None:
        return PriceBook()
    try:
        return PriceBook(parse_overrides(path.read_text()))
    except (OSError, UnicodeDecodeError, BadOverrides) as error:
        raise SettingsError(f"WORKER_PRICE_OVERRIDES = {str(path)!r}: {error}") from error


def _conf(settings: WorkerSettings) -> dict[str, object]:
    return {
        # One queue of our own; messages are JSON and hold a reference to a batch, nothing else.
        "task_queues": [Queue(QUEUE)],  # type: ignore[no-untyped-call]
        "task_default_queue": QUEUE,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        # A task is acknowledged when it has ended. A process that is killed gives its task back at once; one that
        # fails does not, since the planner hands out again what is not in the ledger, at its own pace.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure_or_timeout": True,
        "worker_prefetch_multiplier": 1,
        "task_soft_time_limit": max(1, int(settings.time_limit_s * _SOFT_SHARE)),
        "task_time_limit": settings.time_limit_s,
        "worker_concurrency": settings.processes,
        "worker_max_tasks_per_child": settings.tasks_per_process,
        "worker_proc_alive_timeout": _PROCESS_START_S,
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_throttle": 1,  # looked at every 10 s; the client's own 10 makes that 100
            # Names of our own, so that another Celery on the same Redis is not disturbed.
            "unacked_key": "heliograph:unacked",
            "unacked_index_key": "heliograph:unacked_index",
            "unacked_mutex_key": "heliograph:unacked_mutex",
            "socket_connect_timeout": _BROKER_CONNECT_S,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "interval_start": _BROKER_PAUSE_S,
            "interval_step": _BROKER_PAUSE_S,
            "interval_max": _BROKER_PAUSE_MAX_S,
        },
        "broker_connection_timeout": _BROKER_CONNECT_S,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
    }


class _Process:
    """What one worker process holds. Made before the fork, empty until after it."""

    def __init__(
        self, shared: SharedSettings, prices: PriceBook, open_log: Callable[[], Opened], *, time_limit_s: float
    ) -> None:
        self._shared = shared
        self._prices = prices
        self._open_log = open_log
        self._time_limit_s = time_limit_s
        self._services: Services | None = None

    def start(self, **_: object) -> None:
        """Open everything early. What cannot be opened yet is opened by the first task that needs it."""
        metrics.processes.set(1)
        try:
            self._open()
        except Exception:
            log.exception("a worker process is not ready yet; its first batch tries again")

    def stop(self, **_: object) -> None:
        if self._services is not None:
            self._services.close()
            self._services = None

    def run(self, batch: Batch) -> None:
        """The task.

        Raises:
            BatchFailed: not confirmed. Said here in one line, so nothing else needs to say it.
        """
        started = time.perf_counter()
        try:
            confirmation = enrich(batch, self._open())
        except (Exception, MemoryError) as error:
            outcome, is_expected = _outcome(error)
            metrics.batches.labels(outcome).inc()
            told = f"{type(error).__name__}: {error}" if is_expected else type(error).__name__
            log.log(
                logging.WARNING if is_expected else logging.ERROR,
                "a batch was not stored; it will be handed out again",
                extra={"batch": batch.token, "outcome": outcome, "error": told},
                exc_info=None if is_expected else error,
            )
            raise BatchFailed(f"{batch.token}: {outcome}: {told}") from None
        log.debug(
            "a batch is stored",
            extra={
                "batch": batch.token,
                "events": confirmation.events,
                "dead": confirmation.dead_lettered,
                "ms": round((time.perf_counter() - started) * 1000),
            },
        )

    def _open(self) -> Services:
        if self._services is None:
            opened = self._open_log()
            self._services = Services(
                store=Store(self._shared.clickhouse, look_holds_s=self._time_limit_s),
                reader=opened.reader,
                prices=self._prices,
                keep_days=self._shared.retention.requests_days,
                objects=Objects(self._shared.objects, self._shared.data_dir),
                publisher=opened.publisher,
            )
        return self._services


def _outcome(error: BaseException) -> tuple[str, bool]:
    """A failure as a metric's label, and whether its kind is known: then one line tells all there is to tell."""
    match error:
        case StoreUnavailable() | LogUnavailable():
            return "unavailable", True
        case StoreRefused():
            return "refused", True
        case LogGap():
            return "gap", True
        case SoftTimeLimitExceeded():
            return "timeout", True
        case MemoryError():
            return "failed", True
        case _:
            return "failed", False


def _keep_logging(**_: object) -> None:
    """Leave handlers and levels as they are, and Celery's own lines to what nobody else says."""
    # A line for each task received, succeeded and failed; ours say it once, with the batch.
    for name in ("celery.app.trace", "celery.worker.strategy", "celery.redirected"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A traceback for each refused connection; the batch's line says that ClickHouse was away.
    logging.getLogger("clickhouse_driver.connection").setLevel(logging.ERROR)
    for name in ("celery.worker.request", "celery.worker.consumer.consumer", "celery.worker.consumer.connection"):
        logger = logging.getLogger(name)
        if _one_line not in logger.filters:
            logger.addFilter(_one_line)


def _one_line(record: logging.LogRecord) -> bool:
    """A process that was killed, a broker that is away: one line tells it; the traceback is Celery's own code."""
    record.msg, record.args = " ".join(record.getMessage().split()), None
    record.exc_info = record.exc_text = None
    return True
