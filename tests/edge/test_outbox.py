"""The first of a turn goes out at once, the others at its end: in order, bounded, nobody at the cost of another."""

import asyncio

import pytest

from edge.outbox import Outbox

TURN = 0


class Connection:
    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        self.log = log
        self.name = name

    def send(self, data: bytes) -> None:
        self.log.append((self.name, data))


class Broken(Connection):
    def send(self, data: bytes) -> None:
        raise RuntimeError("the handler is closed")


async def test_the_first_goes_out_at_once_and_the_others_after_the_turn_in_the_order_they_came() -> None:
    sent: list[tuple[str, bytes]] = []
    outbox, a, b = Outbox(asyncio.get_running_loop()), Connection(sent, "a"), Connection(sent, "b")

    outbox.post(a, b"1")
    outbox.post(b, b"2")
    outbox.post(a, b"3")
    assert sent == [("a", b"1")]
    await asyncio.sleep(TURN)

    assert sent == [("a", b"1"), ("b", b"2"), ("a", b"3")]


async def test_each_turn_has_a_first() -> None:
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    for data in (b"1", b"2"):
        outbox.post(Connection(sent, "a"), data)
        assert sent[-1] == ("a", data)
        await asyncio.sleep(TURN)

    assert sent == [("a", b"1"), ("a", b"2")]


async def test_what_tasks_write_that_have_been_woken_goes_out_behind_the_last_of_them() -> None:
    loop = asyncio.get_running_loop()
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(loop)

    async def task(name: str, woken: asyncio.Future[None]) -> None:
        await woken
        outbox.post(Connection(sent, name), b"1")

    wakes = [loop.create_future() for _ in range(3)]
    tasks = [asyncio.create_task(task(name, wake)) for name, wake in zip("abc", wakes, strict=True)]
    await asyncio.sleep(TURN)
    for wake in wakes:
        wake.set_result(None)
        outbox.expect()
    await asyncio.sleep(TURN)

    assert sent == [("a", b"1"), ("b", b"1"), ("c", b"1")]
    await asyncio.gather(*tasks)


async def test_more_than_it_may_hold_goes_out_at_once_and_once() -> None:
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    piece = b"x" * 100_000

    for _ in range(4):
        outbox.post(Connection(sent, "a"), piece)

    assert len(sent) == 4
    await asyncio.sleep(TURN)
    assert len(sent) == 4


async def test_one_that_cannot_be_sent_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())

    outbox.post(Connection(sent, "a"), b"1")
    outbox.post(Broken(sent, "broken"), b"2")
    outbox.post(Connection(sent, "a"), b"3")
    await asyncio.sleep(TURN)

    assert sent == [("a", b"1"), ("a", b"3")]
    assert "bytes could not be sent" in caplog.text
