"""What one query, one body and one filter may cost at most."""

from pydantic import Field

from schemas.settings import GIB, KIB, MIB, Group, Seconds


class ControlBounds(Group):
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
