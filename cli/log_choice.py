"""Which log a data folder runs on, its own spools or a Kafka: chosen by `heliograph up`, kept in the folder, known to
every command in another terminal.

An event counts once as long as one log sees it to its end. So a folder changes its log only when nothing is left that
was handed out from the old one and is not stored. And a folder whose rows came out of one cluster takes no other: there
offsets begin anew, and the ledger would take new batches for old ones.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from infra.local.errors import CannotStart
from infra.local.secrets import write_private
from ingest.log import LogError, LogUnavailable, Plan
from schemas.settings import KafkaSettings, SharedSettings
from schemas.variables import load

NONE = "none"
"""In place of an address: back to the spools."""

_FILE = "kafka.json"
_PREFIX = "HELIOGRAPH_KAFKA__"
_BOOTSTRAP = f"{_PREFIX}BOOTSTRAP_SERVERS"
_COPIES_MAX, _IN_SYNC_MAX = 3, 2
_LOCAL_HOSTS = ("127.0.0.1", "localhost")


class Cluster(msgspec.Struct, frozen=True):
    """The Kafka of a data folder, as it was met the first time."""

    bootstrap_servers: str
    id: str
    brokers: int
    in_use: bool = True
    """False: the folder has gone back to its spools."""


def remembered(folder: Path) -> Cluster | None:
    """
    Raises:
        CannotStart: the file is there and cannot be understood.
    """
    path = folder / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Cluster)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotStart(f"{path} cannot be read: {error}") from error


def fill_in(folder: Path) -> None:
    """Put what reaches the folder's Kafka into the environment, where it runs on one and nothing else is set."""
    kept = remembered(folder)
    if kept is not None and kept.in_use and os.environ.get(_BOOTSTRAP, "") in ("", kept.bootstrap_servers):
        _put(_variables(folder, kept))


def choose(folder: Path, wanted: str) -> None:
    """Settle on which log the folder runs from now on. Only for who holds the folder's lock and has started nothing yet.

    Args:
        wanted: an address, `NONE`, or empty: the one in the settings, else the one it ran on.

    Raises:
        CannotStart: the log cannot be changed now, or that Kafka cannot be used. The message says what to do.
        SettingsError.
    """
    kept = remembered(folder)
    given = os.environ.get(_BOOTSTRAP, "")
    if wanted == NONE:
        if given:
            raise CannotStart(f"--kafka {NONE}: {_BOOTSTRAP} is set ({given}); take it out of the environment or .env")
        if kept is not None and kept.in_use:
            _require_empty(folder, kept)
            _write(folder, msgspec.structs.replace(kept, in_use=False))
        return
    address = wanted or given or (kept.bootstrap_servers if kept is not None and kept.in_use else "")
    if not address:
        return
    _require_stored(folder)
    os.environ[_BOOTSTRAP] = address
    _put(_sign_in(folder, address))
    met = _meet(load(SharedSettings).kafka)
    if kept is not None and kept.id != met.id:
        raise CannotStart(
            f"the rows of {folder} came out of the Kafka cluster {kept.id} ({kept.bootstrap_servers}), and the one at "
            f"{address} is {met.id}: its offsets would be taken for old ones. Use that one again, or another data folder "
            "(HELIOGRAPH_DATA_DIR)"
        )
    # How many copies topics have is settled once: a broker that is away today must not make them fewer.
    chosen = met if kept is None else msgspec.structs.replace(met, brokers=kept.brokers)
    _write(folder, chosen)
    _put(_variables(folder, chosen))


def _require_stored(folder: Path) -> None:
    """Nothing that the spools' own planner has handed out may be under way: the shipper would send it once more."""
    for spool, plan in _plans(folder):
        if plan.cuts and not plan.shipped:
            raise CannotStart(
                f"{plan.planned - plan.committed} events of {spool} were handed out to the workers before and are not "
                "stored yet; out of Kafka they would count a second time. Run 'heliograph up' without --kafka (and without "
                f'{_BOOTSTRAP}) until /v1/pipeline says "outstanding": 0, stop it, then start with Kafka'
            )


def _require_empty(folder: Path, kept: Cluster) -> None:
    """Nothing may be left in Kafka, or on its way there, that is not stored: nobody would see to it."""
    again = f"Run 'heliograph up' until /v1/pipeline says \"lag_events\": 0, stop it, then try --kafka {NONE} again"
    for spool, plan in _plans(folder):
        if plan.cuts and plan.shipped:
            raise CannotStart(f"{spool} was left in the middle of a transaction with {kept.bootstrap_servers}. {again}")
    with _lent(_variables(folder, kept)):
        settings = load(SharedSettings).kafka
        try:
            waiting = asyncio.run(_waiting(settings, folder))
        except LogError as error:
            raise CannotStart(
                f"whether {kept.bootstrap_servers} holds events that are not stored yet cannot be told: {error}. Start it "
                f"(make kafka), or delete {folder / _FILE} to leave it with what it holds"
            ) from error
    if waiting:
        raise CannotStart(f"{kept.bootstrap_servers} holds events that are not stored yet ({waiting} offsets). {again}")


async def _waiting(settings: KafkaSettings, folder: Path) -> int:
    from cli.kafka_view import KafkaView

    view = KafkaView(settings, folder / "spool")
    try:
        return sum(max(0, one.end - one.plan.committed) for one in await view.partitions())
    finally:
        await view.close()


def _meet(settings: KafkaSettings) -> Cluster:
    from ingest.kafka_client import admin, unavailable_as_ours

    address = settings.bootstrap_servers
    assert address is not None

    async def ask() -> Cluster:
        async with admin(settings) as client, unavailable_as_ours("describing itself", settings.call_timeout_s):
            described = await client.describe_cluster()
        if not described["brokers"]:
            raise LogUnavailable("no broker is registered yet")
        return Cluster(address, described["cluster_id"], len(described["brokers"]))

    try:
        return asyncio.run(ask())
    except LogError as error:
        raise CannotStart(
            f"no Kafka can be reached at {address} ({error}). Start one on this machine, in another terminal: make kafka"
        ) from error


def _plans(folder: Path) -> Iterator[tuple[Path, Plan]]:
    from ingest.spool_log import spools
    from ingest.spool_plan import read_plan

    for spool in spools(folder / "spool").values():
        try:
            yield spool, read_plan(spool)
        except LogError as error:
            raise CannotStart(str(error)) from error


def _variables(folder: Path, cluster: Cluster) -> dict[str, str]:
    """What a command has to have in its environment for this cluster.

    A partition for each broker: on one machine every further one would be a batch more to store in the same time.
    """
    return {
        _BOOTSTRAP: cluster.bootstrap_servers,
        f"{_PREFIX}PARTITIONS": str(cluster.brokers),
        f"{_PREFIX}REPLICATION_FACTOR": str(min(cluster.brokers, _COPIES_MAX)),
        f"{_PREFIX}MIN_INSYNC_REPLICAS": str(min(cluster.brokers, _IN_SYNC_MAX)),
        **_sign_in(folder, cluster.bootstrap_servers),
    }


def _sign_in(folder: Path, address: str) -> dict[str, str]:
    """For the broker of `make kafka` its password, which is in the same folder."""
    from infra.local import kafka

    server = kafka.find(folder)
    if server is None or address not in (f"{host}:{server.port}" for host in _LOCAL_HOSTS):
        return {}
    return {
        f"{_PREFIX}SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        f"{_PREFIX}SASL__USERNAME": server.user,
        f"{_PREFIX}SASL__PASSWORD": server.password,
    }


def _put(variables: Mapping[str, str]) -> list[str]:
    """Set what is not set; gives the names of what it has set."""
    missing = [name for name in variables if not os.environ.get(name)]
    os.environ.update({name: variables[name] for name in missing})
    return missing


@contextmanager
def _lent(variables: Mapping[str, str]) -> Iterator[None]:
    names = _put(variables)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def _write(folder: Path, cluster: Cluster) -> None:
    write_private(folder / _FILE, msgspec.json.encode(cluster).decode())
