import asyncio

from edge.deadlines import NEVER, Deadlines


class Late:
    """A client whose time was up before it began."""

    deadline = 0.0
    paused = False
    lates = 0

    def look(self) -> None:
        raise AssertionError("it is not paused")

    def late(self) -> None:
        self.lates += 1
        self.deadline = NEVER


class Failing(Late):
    def late(self) -> None:
        super().late()
        raise RuntimeError("nobody foresaw this")


async def test_one_client_that_fails_costs_the_others_no_deadline() -> None:
    failing, other = Failing(), Late()
    deadlines = Deadlines([failing, other])
    deadlines.start()
    await asyncio.sleep(0.6)
    other.deadline = 0.0
    await asyncio.sleep(0.5)
    await deadlines.close()
    assert (failing.lates, other.lates) == (1, 2)
