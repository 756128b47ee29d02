"""Apache Kafka on one machine: the real broker in KRaft mode, for tests and for trying the Kafka path. Needs Java.

`prepare` writes the configuration, `python -m infra.local.kafka` (see `command`) becomes the broker in the foreground,
`wait_ready` waits until it answers. Its jars: `kafka_jars`.

Clients sign in with a password. The controller's listener, which the broker itself uses, is on loopback without one, so
this is no broker for a machine shared with people one does not trust.
"""

import argparse
import base64
import logging
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local import child, kafka_jars, ports, secrets
from infra.local.errors import CannotStart, LocalError, NotReady
from infra.local.lock import hold
from infra.local.waiting import ask, until_ready

USER = "heliograph"
MEMORY_MIB = 384
PORTS = ("kafka", "kafka_controller")
"""Their names in the data folder. Nobody but the broker listens there, and it runs apart from `heliograph up`."""

_POLL_S = 0.05
_PREDECESSOR_S = 10.0
_ANSWER_S = 3.0
_FORMAT_S = 60.0
_LOG_MIB = 5


@dataclass(frozen=True)
class KafkaServer:
    """Where it listens and how to get in. The address stays the same over restarts."""

    host: str
    port: int
    controller_port: int
    user: str
    password: str = field(repr=False)
    cluster_id: str
    data_dir: Path
    memory_mib: int

    @property
    def bootstrap_servers(self) -> str:
        return f"{self.host}:{self.port}"


def prepare(data_dir: Path, port: int | None = None, *, memory_mib: int = MEMORY_MIB) -> KafkaServer:
    """Make password, cluster id and configuration in `<data_dir>/kafka/`, or use those made before. Starts nothing.

    Args:
        port: left out, a free one is picked once and remembered.
        memory_mib: of the broker's heap.
    """
    data_dir = data_dir.absolute()
    folder = data_dir / "kafka"
    for made in (data_dir, folder, data_dir / "logs"):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = KafkaServer(
        host=ports.LOOPBACK,
        port=ports.internal(data_dir, "kafka", port),
        controller_port=ports.internal(data_dir, "kafka_controller"),
        user=USER,
        password=secrets.make_once(data_dir / "secrets" / "kafka"),
        cluster_id=_cluster_id(folder / "cluster_id"),
        data_dir=data_dir,
        memory_mib=memory_mib,
    )
    secrets.write_private(folder / "server.properties", config(server))
    secrets.write_private(folder / "log4j.properties", _log_config(server))
    return server


def find(data_dir: Path) -> KafkaServer | None:
    """What was prepared in this data folder, for a command that talks to a broker already running; else None."""
    data_dir = data_dir.absolute()
    try:
        port, controller_port = (ports.remembered(data_dir)[name] for name in PORTS)
        password = secrets.read(data_dir / "secrets" / "kafka")
        cluster_id = (data_dir / "kafka" / "cluster_id").read_text().strip()
    except (KeyError, FileNotFoundError):
        return None
    return KafkaServer(ports.LOOPBACK, port, controller_port, USER, password, cluster_id, data_dir, MEMORY_MIB)


def config(server: KafkaServer) -> str:
    jaas = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{server.user}" password="{server.password}" user_{server.user}="{server.password}";'
    )
    return f"""# Written at every start; changes here are lost.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{server.host}:{server.controller_port}
listeners=CLIENT://{server.host}:{server.port},CONTROLLER://{server.host}:{server.controller_port}
advertised.listeners=CLIENT://{server.host}:{server.port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config={jaas}
# Below the folder it is started in: a list, so a path with a comma would be two.
log.dirs=data
auto.create.topics.enable=false
# One broker.
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
# A member that is there need not wait for others; one that was killed is known as gone soon.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# After kill -9 the broker's own registration has to expire first: 12 s otherwise.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Small: it shares the machine.
num.network.threads=2
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=16777216
log.segment.bytes=134217728
"""


def _log_config(server: KafkaServer) -> str:
    # Backslashes are the format's own escape.
    log = str(_log(server)).replace("\\", "\\\\")
    return f"""log4j.rootLogger=WARN, file
log4j.logger.kafka.server.KafkaRaftServer=INFO
log4j.logger.kafka.coordinator=INFO
log4j.appender.file=org.apache.log4j.RollingFileAppender
log4j.appender.file.File={log}
log4j.appender.file.MaxFileSize={_LOG_MIB}MB
log4j.appender.file.MaxBackupIndex=2
log4j.appender.file.layout=org.apache.log4j.PatternLayout
log4j.appender.file.layout.ConversionPattern=%d{{ISO8601}} %p %c{{1}}: %m%n
"""


def command(server: KafkaServer) -> list[str]:
    """The child's command line. Start it from a thread that lives as long as the broker shall (`child`)."""
    arguments = {
        "data": server.data_dir,
        "port": server.port,
        "memory-mib": server.memory_mib,
        "parent-pid": os.getpid(),
    }
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "infra.local.kafka", *flags]


def wait_ready(server: KafkaServer, timeout_s: float, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until this very broker answers with its own cluster id, and leads something to write to.

    Args:
        alive: whether the child still runs; without it a child that failed is waited for until the end.

    Raises:
        NotReady: it has ended, another server answers there, or time is over.
    """
    until_ready("Kafka", lambda: _problem(server), timeout_s=timeout_s, alive=alive, log=_log(server), poll_s=_POLL_S)


def _problem(server: KafkaServer) -> str | None:
    try:
        # The client logs each refusal of a broker that is only just starting, so look first.
        socket.create_connection((server.host, server.port), timeout=_ANSWER_S).close()
    except OSError as error:
        return type(error).__name__
    try:
        answer = ask(_describe(server), within_s=_ANSWER_S)
    except Exception as error:  # whatever it is, the broker is not ready
        if "SaslAuthentication" in type(error).__name__:
            raise NotReady(f"another Kafka answers at {server.host}:{server.port}") from error
        return type(error).__name__
    if answer["cluster_id"] != server.cluster_id:
        raise NotReady(f"another Kafka answers at {server.host}:{server.port}")
    return None if answer["brokers"] else "no broker is registered yet"


async def _describe(server: KafkaServer) -> dict[str, Any]:
    from aiokafka.admin import AIOKafkaAdminClient  # the child needs no client

    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # that a password goes over loopback is known

    client = AIOKafkaAdminClient(
        bootstrap_servers=server.bootstrap_servers,
        request_timeout_ms=int(_ANSWER_S * 1000),
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username=server.user,
        sasl_plain_password=server.password,
    )
    try:
        await client.start()
        described: dict[str, Any] = await client.describe_cluster()
        return described
    finally:
        await client.close()


def _log(server: KafkaServer) -> Path:
    return server.data_dir / "logs" / "kafka-server.log"  # kafka.log is what supervisor writes


def _cluster_id(path: Path) -> str:
    if not path.exists():
        # 16 bytes as Kafka writes them; one that begins with a hyphen would be taken for an option.
        made = ""
        while not made or made.startswith("-"):
            made = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        secrets.write_private(path, made)
    return path.read_text().strip()


def main() -> None:
    """Become the broker."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.kafka", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--port", type=int, help="default: picked once, remembered")
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB, help="heap of the broker")
    parser.add_argument("--parent-pid", type=int, help="end when this parent ends (default: the one at start)")
    asked = parser.parse_args()
    java, jars = kafka_jars.java(), kafka_jars.jars()
    child.begin(asked.parent_pid)
    lock = hold(asked.data / "kafka", wait_s=_PREDECESSOR_S)
    server = prepare(asked.data, asked.port, memory_mib=asked.memory_mib)
    ports.require_free(server.port, purpose="Kafka")
    ports.require_free(server.controller_port, purpose="Kafka's controller")
    folder = server.data_dir / "kafka"
    os.chdir(folder)
    # No JVM tool's remarks and no crash file outside the folder; a broker without memory ends rather than half lives.
    virtual_machine = [
        java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError", "-Xshare:auto",
        "-Djava.awt.headless=true", "-Dlog4j.configuration=file:log4j.properties", "-cp", f"{jars}/*",
    ]  # fmt: skip
    if not (folder / "data" / "meta.properties").exists():
        _format(virtual_machine, server)
    lock.keep_over_exec()
    heap = ["-Xms64m", f"-Xmx{server.memory_mib}m"]
    os.execv(java, [*virtual_machine[:1], *heap, *virtual_machine[1:], "kafka.Kafka", "server.properties"])  # noqa: S606


def _format(virtual_machine: list[str], server: KafkaServer) -> None:
    tool = ["kafka.tools.StorageTool", "format", "--cluster-id", server.cluster_id, "--config", "server.properties"]
    done = subprocess.run(  # noqa: S603 - java, found on the PATH
        [*virtual_machine, *tool], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FORMAT_S
    )
    if done.returncode != 0:
        # Its remarks may hold the configuration and with it the password: the exception's line alone.
        told = [line for line in done.stderr.splitlines() if "Exception" in line][:1]
        raise CannotStart(f"Kafka's storage in {server.data_dir / 'kafka'} could not be formatted: {told}")


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        sys.exit(f"{error}")
