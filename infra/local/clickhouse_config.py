"""The embedded ClickHouse's `config.xml` and `users.xml` as text. Pure: decided here, written elsewhere."""

import hashlib
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from infra.local.ports import LOOPBACK

USER = "heliograph"
READ_ONLY_USER = "heliograph_ro"

# What the child asks of its engine as user `default`. The quota below counts these: no other query of that user runs.
# The first format named becomes the server's default for every client that names none; CSV there breaks some.
START = (
    "SYSTEM START LISTEN TCP",
    "SYSTEM START LISTEN HTTP",
    "SELECT sleepEachRow(3) FROM numbers(100000000) "
    "SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0 FORMAT Null",
)

# Beside everything in its own database. An engine is a right of its own; files, URLs and other servers are not given.
_ENGINES = ("MergeTree", "AggregatingMergeTree", "ReplacingMergeTree", "SummingMergeTree", "Null", "Memory")
_SERVICE_RIGHTS = (
    "SELECT ON system.*",
    "CREATE TEMPORARY TABLE ON *.*",
    *(f"TABLE ENGINE ON {engine}" for engine in _ENGINES),
)

_THREAD_MEMORY = 128 << 20


class Limits(NamedTuple):
    """Sized for a laptop beside other work. What a server of its own would take is far more."""

    memory_mib: int = 1536  # of the whole server; a query beyond it fails, the server stays
    log_mib: int = 10  # per file, three are kept
    fsync: bool = True  # an acknowledged insert survives power loss, as the spool does before it
    read_only_seconds: int = 30  # of one query of the read-only user
    read_only_rows: int = 100_000  # of its answer
    read_only_queries: int = 4  # at a time


def config_xml(*, folder: Path, log: Path, tcp_port: int, http_port: int, limits: Limits) -> str:
    """
    Args:
        folder: absolute; holds `users.xml` beside the data.
    """
    memory = limits.memory_mib << 20
    cache = memory // 16
    fsync = int(limits.fsync)
    return f"""<clickhouse>
  <!-- Written at every start; changes here are lost. -->
  <tcp_port>{tcp_port}</tcp_port>
  <http_port>{http_port}</http_port>
  <listen_host>{LOOPBACK}</listen_host>
  <users_config>{escape(str(folder / "users.xml"))}</users_config>
  <tmp_path>{escape(str(folder / "tmp"))}/</tmp_path>
  <timezone>UTC</timezone>

  <!-- Only this name sets the level (the logger's own is overruled); without it every query is logged whole. -->
  <log-level>information</log-level>
  <logger>
    <log>{escape(str(log))}</log>
    <size>{limits.log_mib}M</size>
    <count>2</count>
    <levels>
      <!-- These write the text of a failed query, and with it what people sent. Its sender gets the error. -->
      {_silent("executeQuery", "TCPHandler", "HTTPHandler", "DynamicQueryHandler", "PredefinedQueryHandler")}
    </levels>
  </logger>
  <send_crash_reports><enabled>false</enabled></send_crash_reports>

  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <mark_cache_size>{cache}</mark_cache_size>
  <index_mark_cache_size>{cache // 4}</index_mark_cache_size>
  <primary_index_cache_size>{cache}</primary_index_cache_size>
  <text_index_tokens_cache_size>{cache // 4}</text_index_tokens_cache_size>
  <text_index_header_cache_size>{cache // 4}</text_index_header_cache_size>
  <text_index_postings_cache_size>{cache // 4}</text_index_postings_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <index_uncompressed_cache_size>0</index_uncompressed_cache_size>
  <vector_similarity_index_cache_size>0</vector_similarity_index_cache_size>
  <compiled_expression_cache_size>{cache // 8}</compiled_expression_cache_size>
  <query_cache><max_size_in_bytes>{cache // 4}</max_size_in_bytes></query_cache>
  <max_concurrent_queries>100</max_concurrent_queries>
  <max_connections>512</max_connections>

  <background_pool_size>4</background_pool_size>
  <!-- 2 by itself, which under inserts puts merges off and says so 70 times a second. -->
  <background_schedule_pool_size>16</background_schedule_pool_size>
  <merge_tree>
    <!-- With a small pool the stock thresholds would leave no slot for big merges and mutations. -->
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>2</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_mutation>2</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>2</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
    <fsync_after_insert>{fsync}</fsync_after_insert>
    <fsync_part_directory>{fsync}</fsync_part_directory>
  </merge_tree>
</clickhouse>
"""


def users_xml(*, password: str, read_only_password: str, database: str, limits: Limits) -> str:
    """Users with what each may do. SQL cannot change them; the file is read at start only."""
    read_only_memory = (limits.memory_mib << 20) // 4
    return f"""<clickhouse>
  <!-- Written at every start; changes here are lost. -->
  <profiles>
    <!-- `default` is the engine's own first session, which can have neither another name nor a password. An address
         does not tell it from other people of this machine, and with its right to stop listening anybody could end
         the service. So: one session, which is taken before the ports open, and as many queries as the start needs. -->
    <default>
      <max_sessions_for_user>1</max_sessions_for_user>
      <max_concurrent_queries_for_user>1</max_concurrent_queries_for_user>
    </default>
    <service>
      <!-- The profile `default` is where every other begins. -->
      <max_sessions_for_user>0</max_sessions_for_user>
      <max_concurrent_queries_for_user>0</max_concurrent_queries_for_user>
      <async_insert>0</async_insert>
      <insert_deduplicate>1</insert_deduplicate>
      <deduplicate_blocks_in_dependent_materialized_views>1</deduplicate_blocks_in_dependent_materialized_views>
      <network_compression_method>LZ4</network_compression_method>
      <log_queries>0</log_queries>
      <!-- The stock gibibyte a thread leaves, of a server as small as this, one core to every query. -->
      <max_threads_min_free_memory_per_thread>{_THREAD_MEMORY}</max_threads_min_free_memory_per_thread>
    </service>
    <read_only>
      <readonly>2</readonly>
      <max_sessions_for_user>0</max_sessions_for_user>
      <network_compression_method>LZ4</network_compression_method>
      <log_queries>0</log_queries>
      <max_execution_time>{limits.read_only_seconds}</max_execution_time>
      <timeout_overflow_mode>throw</timeout_overflow_mode>
      <max_result_rows>{limits.read_only_rows}</max_result_rows>
      <result_overflow_mode>throw</result_overflow_mode>
      <max_memory_usage>{read_only_memory}</max_memory_usage>
      <max_memory_usage_for_user>{2 * read_only_memory}</max_memory_usage_for_user>
      <max_concurrent_queries_for_user>{limits.read_only_queries}</max_concurrent_queries_for_user>
      <max_threads>2</max_threads>
      <max_threads_min_free_memory_per_thread>{_THREAD_MEMORY}</max_threads_min_free_memory_per_thread>
      <constraints>
        <!-- 0 means without limit, so each needs a least value too. -->
        <max_execution_time><min>1</min><max>{limits.read_only_seconds}</max></max_execution_time>
        <max_result_rows><min>1</min><max>{limits.read_only_rows}</max></max_result_rows>
        <max_memory_usage><min>1</min><max>{read_only_memory}</max></max_memory_usage>
        <max_threads><min>1</min><max>2</max></max_threads>
        {_constant("timeout_overflow_mode", "result_overflow_mode", "max_memory_usage_for_user")}
        {_constant("max_concurrent_queries_for_user", "function_sleep_max_microseconds_per_block", "log_queries")}
      </constraints>
    </read_only>
  </profiles>
  <quotas>
    <unlimited/>
    <!-- The longest interval there may be: until 2038. -->
    <default><interval><duration>2147483647</duration><queries>{len(START)}</queries></interval></default>
  </quotas>
  <users>
    <default>
      <no_password/>
      <networks><ip>::1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      {_grants("SYSTEM LISTEN ON *.*", "SELECT ON system.numbers")}
    </default>
    <{USER}>
      <password_sha256_hex>{_hash(password)}</password_sha256_hex>
      <networks><ip>::1</ip></networks>
      <profile>service</profile>
      <quota>unlimited</quota>
      {_grants(f"ALL ON {database}.*", *_SERVICE_RIGHTS)}
    </{USER}>
    <{READ_ONLY_USER}>
      <password_sha256_hex>{_hash(read_only_password)}</password_sha256_hex>
      <networks><ip>::1</ip></networks>
      <profile>read_only</profile>
      <quota>unlimited</quota>
      {_grants(f"SELECT ON {database}.*")}
    </{READ_ONLY_USER}>
  </users>
</clickhouse>
"""


def _grants(*rights: str) -> str:
    return "<grants>" + "".join(f"<query>GRANT {right}</query>" for right in rights) + "</grants>"


def _constant(*settings: str) -> str:
    return "".join(f"<{setting}><const/></{setting}>" for setting in settings)


def _silent(*loggers: str) -> str:
    return "".join(f"<logger><name>{name}</name><level>none</level></logger>" for name in loggers)


def _hash(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
