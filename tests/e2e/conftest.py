from collections.abc import AsyncIterator, Iterator

import pytest

from infra.local.ports import pick_free
from tests.e2e.house import House, Replay, up
from tests.pricing.conftest import read_exchanges

_REPLAY_PORT = pick_free()


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    providers = sorted({exchange.provider for exchange in read_exchanges()})
    with up(tmp_path_factory.mktemp("house"), _REPLAY_PORT, providers=providers) as running:
        yield running


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    provider = Replay()
    await provider.start(_REPLAY_PORT)
    yield provider
    await provider.stop()
