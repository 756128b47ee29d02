import os
from datetime import UTC, datetime
from uuid import UUID, uuid4

from schemas.ids import new_id, time_of


def test_an_id_is_a_uuid_of_version_7_that_knows_its_time() -> None:
    id_ = UUID(new_id(1_795_000_000_123))
    assert id_.version == 7
    assert id_.variant == "specified in RFC 4122"
    assert time_of(id_) == datetime.fromtimestamp(1_795_000_000.123, UTC)


def test_ids_sort_by_time_and_are_all_different() -> None:
    assert new_id(1000) < new_id(1001)
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_two_processes_never_make_the_same_ids() -> None:
    new_id()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, "".join(new_id(0) for _ in range(50)).encode())
        os._exit(0)
    os.wait()
    theirs = os.read(read, 10_000).decode()
    os.close(read)
    os.close(write)
    assert not {new_id(0) for _ in range(50)} & {theirs[i : i + 36] for i in range(0, len(theirs), 36)}


def test_another_kind_of_uuid_has_no_time() -> None:
    assert time_of(uuid4()) is None


def test_an_id_of_a_year_nobody_lives_in_has_no_time() -> None:
    assert time_of(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")) is None
