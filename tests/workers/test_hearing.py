import threading

import pytest
from redis.exceptions import ConnectionError as RedisAway

from workers import hearing


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "_LOOK_S", 0.01)
    monkeypatch.setattr(hearing, "_DEAF_S", 0.1)


def ended(waiting: list[int], at_hand: list[int]) -> bool:
    """Whether the watch ends a worker that sees these in turn, the last ones for ever."""

    def look(seen: list[int]) -> int:
        value = seen.pop(0) if len(seen) > 1 else seen[0]
        if value < 0:
            raise RedisAway
        return value

    end = threading.Event()
    threading.Thread(
        target=hearing._watch, args=(lambda: look(waiting), lambda: look(at_hand), end.set), daemon=True
    ).start()
    return end.wait(0.6)


def test_a_worker_that_leaves_its_queue_lying_is_ended() -> None:
    assert ended([3], [0])


def test_a_worker_with_nothing_to_do_or_something_at_hand_goes_on() -> None:
    assert not ended([0], [0])
    assert not ended([3], [1])


def test_a_queue_nobody_can_ask_says_nothing_of_the_worker() -> None:
    assert not ended([3, -1], [0])


def test_hearing_again_starts_the_count_anew() -> None:
    assert not ended([3, 3, 3, 0], [0])
