"""Settings, read once at start and passed down. Each is an environment variable; `docs/settings.md` lists them all.

Groups end in two underscores: `EDGE_UPSTREAM__CONNECT_TIMEOUT_S`. Read by `schemas/variables.py`.
"""

import json
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from schemas.batch import DEAD_TOPIC, ENRICHED_TOPIC, REQUESTS_TOPIC

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class SettingsError(ValueError):
    """A setting has a value it may not have, or a name that none has. The message names it and what would be right."""


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL with a host")
    return value.rstrip("/")


def _listed(value: Any) -> Any:
    """A list as people write one, `a, b`, or as JSON."""
    if not isinstance(value, str):
        return value
    try:
        items = json.loads(value)
    except ValueError:
        items = [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(items, list) or not all(isinstance(item, str) and '"' not in item for item in items):
        raise ValueError('must be a list, like a, b or ["a", "b"]')
    return items


def _networks(value: Any) -> Any:
    try:
        return [ip_network(item) for item in _listed(value)]
    except ValueError:
        raise ValueError("must be networks, like 10.1.0.0/16, fd00::/8") from None


Names = Annotated[list[str], NoDecode, BeforeValidator(_listed)]
Networks = Annotated[list[IPv4Network | IPv6Network], NoDecode, BeforeValidator(_networks)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
_TOPIC = r"^[A-Za-z0-9._-]{1,200}$"


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(Group):
    url: SecretStr | None = Field(
        None, description="redis:// or rediss:// address with password; left out: the embedded Valkey"
    )


class ClickHouseSettings(Group):
    host: str | None = Field(None, description="native-protocol host; left out: the embedded ClickHouse")
    port: Port = Field(9000, description="native-protocol port")
    user: str = Field("heliograph", description="user with all rights on the database")
    password: SecretStr = Field(SecretStr(""), description="its password")
    database: str = Field("heliograph", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="database of all our tables")
    secure: bool = Field(False, description="speak TLS")
    connect_timeout_s: Seconds = Field(3, description="longest wait for a connection, s")
    query_timeout_s: Seconds = Field(30, description="longest wait for an answer, s")
    replicated: bool = Field(
        False, description="make Replicated… tables (needs a keeper); without, a kill can cost a batch"
    )


class DatabaseSettings(Group):
    connections: int = Field(10, ge=1, le=1000, description="open connections to control data, per process")
    connect_timeout_s: Seconds = Field(3, le=300, description="longest wait for a connection to PostgreSQL, s")
    statement_timeout_s: Seconds = Field(
        5, le=300, description="longest statement, with its wait for what another has locked, s"
    )
    migration_timeout_s: Seconds = Field(
        60, le=3600, description="longest migration, with its wait for another process's, s"
    )


class RetentionSettings(Group):
    requests_days: int = Field(90, ge=1, le=3650, description="days a request's row is kept; whole partitions go")
    bodies_days: int = Field(30, ge=1, le=3650, description="days its bodies are kept")
    rollup_days: int = Field(
        730, ge=1, le=3650, validate_default=True, description="days the rollups are kept; no less than requests_days"
    )
    dead_letter_days: int = Field(30, ge=1, le=3650, description="days a dead letter is kept")
    ledger_days: int = Field(
        90,
        ge=7,
        le=3650,
        description="days a batch is kept in the ledger, its sums for good; longer where dead letters or Kafka's events are",
    )

    @field_validator("rollup_days")
    @classmethod
    def _no_less_than_requests(cls, days: int, info: ValidationInfo) -> int:
        # Sums and lists by value would not see requests that are still kept.
        least = info.data.get("requests_days", 0)
        if days < least:
            raise ValueError(f"must be at least requests_days, which is {least}")
        return days


class SpoolSettings(Group):
    linger_ms: float = Field(10, gt=0, le=1000, description="longest time an event waits for its group write, ms")
    queue_bytes_max: int = Field(
        32 * MIB,
        ge=MIB,
        description="events waiting for the disk, bytes; beyond it the end of a call waits for the next group",
    )
    segment_bytes: int = Field(
        16 * MIB, ge=64 * KIB, description="size at which a spool file is closed and the next begun, bytes"
    )
    bytes_max: int = Field(
        10 * GIB,
        ge=16 * MIB,
        description="spool on disk, bytes; from nine tenths on without bodies, beyond it events are dropped",
    )
    fsync: Literal["group", "never"] = Field(
        "group",
        description="group: each group is synced to the disk right after it is written; never: whenever the system does",
    )


class KafkaSaslSettings(Group):
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"] = Field(
        "PLAIN", description="how to sign in, where the security protocol says SASL_…"
    )
    username: str | None = Field(None, description="user, for PLAIN and SCRAM")
    password: SecretStr | None = Field(None, description="its password")
    kerberos_service_name: str = Field("kafka", description="the brokers' service, for GSSAPI (package gssapi)")
    kerberos_domain_name: str | None = Field(None, description="the brokers' domain, for GSSAPI; left out: their host")
    oauth_token_file: Path | None = Field(
        None, description="for OAUTHBEARER: a file that holds the token, read anew for each connection"
    )
    oauth_token_url: HttpUrl | None = Field(
        None, description="for OAUTHBEARER: where a token is asked for with client id and secret"
    )
    oauth_client_id: str | None = Field(None, description="client id for that")
    oauth_client_secret: SecretStr | None = Field(None, description="client secret for that")
    oauth_scope: str | None = Field(None, description="scope to ask for")
    oauth_timeout_s: Seconds = Field(10, description="longest wait for a token, s")


class KafkaTlsSettings(Group):
    ca_file: Path | None = Field(None, description="certificates to trust (PEM); left out: the system's")
    cert_file: Path | None = Field(None, description="our own certificate (PEM), where brokers ask for one")
    key_file: Path | None = Field(None, description="its key (PEM); left out: in the certificate's file")
    key_password: SecretStr | None = Field(None, description="password of the key")
    check_hostname: bool = Field(True, description="refuse a broker whose certificate is for another host")


class KafkaSettings(Group):
    bootstrap_servers: str | None = Field(
        None,
        pattern=r"^[^\s,]+(,[^\s,]+)*$",
        description="brokers to ask first, as host:port,host:port; left out: the spool itself is the log",
    )
    client_id: str = Field("heliograph", description="name of our connections in the brokers' logs and quotas")
    requests_topic: str = Field(REQUESTS_TOPIC, pattern=_TOPIC, description="topic of events as the edge packs them")
    enriched_topic: str = Field(ENRICHED_TOPIC, pattern=_TOPIC, description="topic of enriched events, as JSON")
    dead_topic: str = Field(DEAD_TOPIC, pattern=_TOPIC, description="topic of events that could not be enriched")
    publish_enriched: bool = Field(True, description="workers publish each stored request in the enriched topic")
    publish_dead_letters: bool = Field(True, description="workers publish each dead letter in the dead topic")
    group_prefix: str = Field("heliograph", pattern=_TOPIC, description="our consumer groups' names begin so")
    partitions: int = Field(
        12, ge=1, le=1024, description="partitions of a topic that `heliograph migrate` makes; it never takes any away"
    )
    replication_factor: int = Field(3, ge=1, le=16, description="copies of each partition")
    min_insync_replicas: int = Field(2, ge=1, le=16, description="copies that must have a record before it counts")
    retention_hours: int = Field(168, ge=1, le=87_600, description="how long events stay in Kafka, h")
    enriched_retention_hours: int = Field(168, ge=1, le=87_600, description="how long enriched events stay, h")
    dead_retention_hours: int = Field(720, ge=1, le=87_600, description="how long dead letters stay, h")
    record_bytes_max: int = Field(
        2 * MIB,
        ge=MIB,
        le=64 * MIB,
        description="largest batch of records a topic takes (its max.message.bytes), bytes",
    )
    fetch_bytes: int = Field(
        MIB, ge=16 * KIB, le=64 * MIB, description="most bytes of one answer to a worker that reads a batch"
    )
    transaction_timeout_s: float = Field(
        5, ge=1, le=900, description="after this the broker ends a transaction whose shipper is gone, s"
    )
    session_timeout_s: float = Field(
        10, ge=1, le=1800, description="after this a planner that says nothing loses its partitions, s"
    )
    heartbeat_s: float = Field(1, gt=0, le=600, description="how often a planner says that it lives, s")
    request_timeout_s: Seconds = Field(10, le=300, description="longest wait for a broker's answer, s")
    call_timeout_s: Seconds = Field(30, le=600, description="longest wait for a whole call, tries included, s")
    retry_backoff_ms: int = Field(100, ge=1, le=60_000, description="pause between two tries of the client, ms")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how brokers are spoken to"
    )
    sasl: KafkaSaslSettings = KafkaSaslSettings()
    tls: KafkaTlsSettings = KafkaTlsSettings()


class ObjectSettings(Group):
    url: str | None = Field(
        None,
        description="where large bodies go: file:///folder, s3://bucket/prefix, gs://…, az://…; "
        "left out: a folder in the data folder",
    )
    options: dict[str, str] = Field(
        {}, description="options of that store by obstore's names, as …__OPTIONS__AWS_REGION=eu-west-1"
    )
    timeout_s: Seconds = Field(10, le=300, description="longest wait for one object, tries included, s")
    read_at_once: int = Field(16, ge=1, le=256, description="large bodies that a worker or a replay reads at a time")
    read_bytes: int = Field(
        64 * MIB, ge=MIB, description="large bodies that it holds at a time, bytes; one event's alone may be more"
    )
    expire_every_s: Seconds = Field(
        3600, le=86_400, description="how often shippers delete what is older than the retention of bodies, s"
    )
    expire_at_once: int = Field(
        10_000, ge=1, le=10_000_000, description="most objects that one such turn of a shipper deletes"
    )


class SharedSettings(BaseSettings):
    """What more than one service needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="HELIOGRAPH_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
    )

    data_dir: Path = Field(Path(".heliograph"), description="folder of everything kept on this machine")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="form of a log line")
    database_url: SecretStr | None = Field(
        None,
        description="control data: postgresql://user:password@host:5432/database (package heliograph[postgres]); "
        "left out: SQLite in the data folder",
    )
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    retention: RetentionSettings = RetentionSettings()
    spool: SpoolSettings = SpoolSettings()
    kafka: KafkaSettings = KafkaSettings()
    objects: ObjectSettings = ObjectSettings()


class ProviderSettings(Group):
    base_url: HttpUrl | None = Field(
        None,
        description="where this provider is, in place of the catalogue's; private addresses are allowed here",
    )
    shape: Literal["openai", "anthropic", "gemini", "bedrock", "cohere"] | None = Field(
        None, description="API a provider of your own speaks (left out: the catalogue's, or openai)"
    )
    stands_for: str | None = Field(
        None, description="a provider of the catalogue whose name, shape and prices its calls have (a relay of it)"
    )
    parts: dict[str, str] = Field({}, description="fills the catalogue's template, as …__PARTS__RESOURCE=my-resource")


class BoundSettings(Group):
    body_bytes: int = Field(20 * MIB, ge=KIB, description="largest JSON request body, bytes")
    streamed_body_bytes: int = Field(
        GIB, ge=KIB, description="largest request body that is not JSON (files, audio), bytes"
    )
    headers: int = Field(200, ge=10, description="most headers of a request")
    header_bytes: int = Field(64 * KIB, ge=KIB, description="largest request head, bytes")
    path_bytes: int = Field(8 * KIB, ge=256, description="longest path with query, bytes")
    properties: int = Field(64, ge=0, description="most custom properties of a call")
    property_bytes: int = Field(KIB, ge=16, description="longest value of a property, id or name, bytes")
    calls: int = Field(4096, ge=1, description="calls in flight in one process; more are refused with 503")
    connections: int = Field(16_384, ge=1, description="clients' connections to one process; more are closed at once")
    keep_alive_s: Seconds = Field(75, description="time a client's connection may rest, s")
    head_timeout_s: Seconds = Field(30, le=60, description="time a client has to send a whole head, s")
    body_timeout_s: Seconds = Field(60, description="longest silence while a client sends its body, s")
    send_timeout_s: Seconds = Field(300, description="longest wait for a client that does not read its answer, s")


class CaptureSettings(Group):
    head_bytes: int = Field(MIB, ge=0, description="bytes kept of a body's beginning, per body")
    tail_bytes: int = Field(64 * KIB, ge=0, description="bytes kept of a longer body's end")
    decoded_bytes_max: int = Field(
        64 * MIB, ge=MIB, description="most bytes a compressed body is unpacked to for the record"
    )


class UpstreamSettings(Group):
    client: Literal["pool", "httpx"] = Field("pool", description="our own connection pool, or stock httpx")
    proxy_url: SecretStr | None = Field(None, description="outbound HTTP proxy; calls then go through httpx")
    ca_file: Path | None = Field(None, description="certificates to trust beside the public ones (PEM)")
    connect_timeout_s: Seconds = Field(5, description="longest wait for a connection and its TLS, s")
    first_byte_timeout_s: Seconds = Field(600, description="longest wait for an answer's head, s")
    idle_timeout_s: Seconds = Field(300, description="longest silence inside an answer or while sending, s")
    total_timeout_s: Seconds = Field(1800, description="longest call, s")
    connections_per_host: int = Field(1024, ge=1, description="open connections to one host, per process")
    connections: int = Field(4096, ge=1, description="open connections in all, per process")
    waiting: int = Field(4096, ge=0, description="calls that may wait for a connection; more are refused with 503")
    keep_alive_s: Seconds = Field(30, description="how long an idle connection is kept, s")
    head_bytes: int = Field(256 * KIB, ge=KIB, description="largest answer head, bytes")
    buffer_bytes: int = Field(
        256 * KIB, ge=16 * KIB, description="bytes held for a slow client before the provider is paused"
    )


class EdgeSettings(BaseSettings):
    """The hot path."""

    model_config = SettingsConfigDict(
        env_prefix="EDGE_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="address the proxy listens on")
    port: Port = Field(8787, description="port the proxy listens on")
    workers: int = Field(1, ge=1, le=64, description="processes; each has a spool of its own")
    stop_timeout_s: int = Field(12, ge=1, le=600, description="time calls under way have to end at a stop, s")
    auth: Literal["required", "optional"] = Field(
        "required", description="optional: a call without a key belongs to the default project"
    )
    snapshot_poll_s: Seconds = Field(5, description="how often keys are compared with Redis besides its messages, s")
    allowed_targets: Names = Field(
        [],
        description="hosts beside the catalogue's that Helicone-Target-Url may name, private ones too: "
        "llm.example.com, 10.1.2.3:8080",
    )
    allowed_networks: Networks = Field(
        [], description="private networks a catalogue provider's name may lead to: 10.1.0.0/16, fd00::/8"
    )
    providers: dict[str, ProviderSettings] = Field({}, description="<ID> is the provider's id, hyphens as underscores")
    bounds: BoundSettings = BoundSettings()
    capture: CaptureSettings = CaptureSettings()
    upstream: UpstreamSettings = UpstreamSettings()


class PlannerSettings(BaseSettings):
    """Cuts the log into batches and sees each of them into the ledger."""

    model_config = SettingsConfigDict(
        env_prefix="PLANNER_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    linger_ms: float = Field(
        250, gt=0, le=60_000, description="longest time an event waits for its batch to be cut, ms"
    )
    linger_busy_ms: float = Field(
        2000,
        gt=0,
        le=60_000,
        description="the same when the workers are behind: linger_ms times the batches they have, up to this, ms",
    )
    poll_ms: float = Field(50, gt=0, le=10_000, description="how often the log and the ledger are looked at, ms")
    batch_events: int = Field(2000, ge=1, le=100_000, description="most events of a batch")
    batch_bytes: int = Field(32 * MIB, ge=MIB, description="most bytes of a batch, where the log can tell them")
    outstanding: int = Field(
        64, ge=1, le=256, description="batches handed out and not yet in the ledger, per partition"
    )
    overdue_s: Seconds = Field(25, description="after this a batch not in the ledger is handed out again, s")
    dead_ratio_max: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of dead letters at which planning pauses until `heliograph plan resume`",
    )
    dead_window: int = Field(200, ge=1, description="events over which that share is taken, at least")


class ShipperSettings(BaseSettings):
    """Brings the spool's events to Kafka, where Kafka is the log."""

    model_config = SettingsConfigDict(
        env_prefix="SHIPPER_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    linger_ms: float = Field(50, gt=0, le=60_000, description="least time between two transactions, ms")
    poll_ms: float = Field(20, gt=0, le=10_000, description="how often an idle spool is looked at, ms")
    transaction_events: int = Field(10_000, ge=1, le=1_000_000, description="most events of a transaction")
    transaction_bytes: int = Field(16 * MIB, ge=MIB, le=GIB, description="most bytes of a transaction, uncompressed")
    batch_bytes: int = Field(
        512 * KIB, ge=16 * KIB, le=64 * MIB, description="bytes of one batch of records, which goes to one partition"
    )
    compression: Literal["zstd", "lz4", "snappy", "gzip", "none"] = Field("zstd", description="of a batch of records")
    large_body_bytes: int = Field(
        256 * KIB, ge=KIB, description="a body that keeps more bytes than this goes to the object store"
    )
    objects_at_once: int = Field(8, ge=1, le=256, description="large bodies sent to the object store at a time")
    retry_s: Seconds = Field(1, le=300, description="pause after Kafka or the object store failed, s")
    drain_s: Seconds = Field(5, le=300, description="how long a stop waits for what is still in the spool, s")


class WorkerSettings(BaseSettings):
    """Celery workers: batches into rows."""

    model_config = SettingsConfigDict(
        env_prefix="WORKER_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    processes: int = Field(2, ge=1, le=64, description="worker processes")
    visibility_timeout_s: int = Field(
        60, ge=10, description="after this Redis gives an unacknowledged task to another worker, s"
    )
    time_limit_s: int = Field(50, ge=5, description="a task that runs longer is ended, s; below the visibility timeout")
    tasks_per_process: int = Field(20_000, ge=1, description="tasks after which a worker process is replaced")
    replay_events: int = Field(
        1000, ge=1, le=100_000, description="events that `heliograph replay` holds and stores at a time"
    )
    replay_patience_s: Seconds = Field(
        60, le=3600, description="how long a replay waits for ClickHouse or Kafka before it breaks off, s"
    )
    price_overrides: Path | None = Field(None, description="file of prices of your own (docs/pricing.md)")


class ControlBounds(Group):
    """What one query, one body and one filter may cost at most."""

    queries: int = Field(8, ge=1, le=256, description="queries that run at once; each holds a thread and a connection")
    queries_waiting: int = Field(64, ge=0, description="queries that may wait for one of them; more are refused, 503")
    query_memory_bytes: int = Field(2 * GIB, ge=64 * MIB, description="memory of one query in ClickHouse, bytes")
    query_read_rows: int = Field(2_000_000_000, ge=1000, description="rows one query may read")
    query_read_bytes: int = Field(64 * GIB, ge=MIB, description="bytes one query may read, unpacked")
    answer_bytes: int = Field(16 * MIB, ge=64 * KIB, description="bodies in one answer of several requests, bytes")
    body_bytes: int = Field(256 * KIB, ge=4 * KIB, description="largest body of a call to this API, bytes")
    filter_nodes: int = Field(200, ge=1, description="most nodes of a filter tree")
    filter_depth: int = Field(40, ge=1, le=200, description="deepest filter tree")
    filter_values: int = Field(100, ge=1, description="most values of one filter")
    value_bytes: int = Field(4 * KIB, ge=16, description="longest value of a filter, bytes")
    database_timeout_s: Seconds = Field(5, description="longest wait for projects and keys, s")
    redis_timeout_s: Seconds = Field(2, description="longest wait for Redis, s")
    reconcile_s: Seconds = Field(3, description="how often the keys in Redis are compared with the database, s")
    ready_timeout_s: Seconds = Field(3, description="longest wait for one part of /readyz, s")
    property_bytes: int = Field(KIB, ge=16, description="longest value of a property said of a request later, bytes")
    object_bytes: int = Field(16 * MIB, ge=KIB, description="largest moved body that one request's answer shows, bytes")
    object_timeout_s: Seconds = Field(5, le=300, description="longest wait for a moved body, s")
    objects_at_once: int = Field(8, ge=1, le=256, description="moved bodies read at a time")


class ControlSettings(BaseSettings):
    """The API that people and dashboards read."""

    model_config = SettingsConfigDict(
        env_prefix="CONTROL_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="address the API listens on")
    port: Port = Field(8585, description="port the API listens on")
    auth: Literal["required", "local"] = Field(
        "required",
        description="local: a caller on this machine's loopback may read the default project without a key",
    )
    query_timeout_s: Seconds = Field(10, description="longest query, s")
    query_rows_max: int = Field(1000, ge=1, le=100_000, description="most rows of one page")
    default_range_days: int = Field(30, ge=1, description="time range of a query that names none, days")
    bounds: ControlBounds = ControlBounds()
    freshness_ready_s: Seconds = Field(
        60, description="/readyz says not ready when the oldest unstored event is older, s"
    )


class MetricsSettings(BaseSettings):
    """The Prometheus page of this machine."""

    model_config = SettingsConfigDict(
        env_prefix="METRICS_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="address the page listens on")
    port: Port = Field(9464, description="port the page listens on")


ALL: tuple[type[BaseSettings], ...] = (
    SharedSettings,
    EdgeSettings,
    PlannerSettings,
    ShipperSettings,
    WorkerSettings,
    ControlSettings,
    MetricsSettings,
)
