"""`tests/workers/test_killed_store.py` has the same with ClickHouse itself."""

from pathlib import Path

import pytest

from infra.local.clickhouse_tokens import forget_unwritten


class Table:
    """A table's folder as ClickHouse leaves it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.folder = data / "store" / "1b2" / "1b2c"
        (self.folder / "deduplication_logs").mkdir(parents=True)
        (self.folder / "detached").mkdir()

    def parts(self, *names: str) -> "Table":
        for name in names:
            (self.folder / name).mkdir()
        return self

    def log(self, *records: str, number: int = 1, tail: str = "") -> "Table":
        lines = [record.replace(" ", "\t") + "\n" for record in records]
        self.file(number).write_text("".join(lines) + tail)
        return self

    def file(self, number: int = 1) -> Path:
        return self.folder / "deduplication_logs" / f"deduplication_log_{number}.txt"

    def forgotten(self) -> list[str]:
        return [part.name for part in forget_unwritten(self.data)]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def test_a_token_whose_part_is_missing_is_dropped_as_clickhouse_drops_one(table: Table) -> None:
    table.parts("20261116_1_1_0").log("1 20261116_1_1_0 20261116_7_8", "1 20261116_2_2_0 20261116_9_9")

    assert table.forgotten() == ["20261116_2_2_0"]
    assert table.file().read_text().splitlines()[2:] == ["2\t20261116_2_2_0\t20261116_9_9"]
    assert table.forgotten() == []


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["20261116_5_5_0"], id="by its own name"),
        pytest.param(["20261116_5_5_1_9"], id="mutated"),
        pytest.param(["20261116_2_8_3"], id="merged"),
    ],
)
def test_a_part_that_is_there_keeps_its_token(table: Table, parts: list[str]) -> None:
    table.parts(*parts).log("1 20261116_5_5_0 20261116_7_8")

    assert table.forgotten() == []


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["20261123_1_9_2"], id="another partition"),
        pytest.param(["20261116_6_8_1"], id="other blocks"),
        pytest.param(["tmp_insert_20261116_5_5_0", "tmp_merge_20261116_1_5_1"], id="not finished"),
    ],
)
def test_another_part_does_not_stand_for_it(table: Table, parts: list[str]) -> None:
    table.parts(*parts).log("1 20261116_5_5_0 20261116_7_8")

    assert table.forgotten() == ["20261116_5_5_0"]


def test_a_token_dropped_with_its_partition_is_left_alone(table: Table) -> None:
    table.log("1 20261116_5_5_0 20261116_7_8", "2 20261116_5_5_0 20261116_7_8")

    assert table.forgotten() == []


def test_a_record_cut_off_by_the_kill_does_not_swallow_the_next(table: Table) -> None:
    table.parts("20261116_1_1_0").log("1 20261116_1_1_0 20261116_7_8", tail="1\t2026111")

    assert table.forgotten() == []
    assert table.file().read_text() == "1\t20261116_1_1_0\t20261116_7_8\n"


def test_the_last_record_of_a_log_that_was_full_is_looked_at_too(table: Table) -> None:
    table.parts("20261116_1_1_0", "20261116_3_3_0")
    table.log("1 20261116_1_1_0 20261116_7_8", "1 20261116_2_2_0 20261116_9_9", number=9)
    table.log("1 20261116_3_3_0 20261116_1_1", number=10)

    assert table.forgotten() == ["20261116_2_2_0"]
    assert table.file(10).read_text().splitlines()[1:] == ["2\t20261116_2_2_0\t20261116_9_9"]


@pytest.mark.parametrize(
    "text", [b"", b"nonsense\n", b"1\tsoon_another_form\t20261116_7_8\n", b"\n\n", b"1\t\xff\xfe\t\x00\n", bytes(9)]
)
def test_what_is_not_known_is_left_alone(table: Table, text: bytes) -> None:
    table.file().write_bytes(text)

    assert table.forgotten() == []


def test_a_new_folder_has_nothing_to_forget(tmp_path: Path) -> None:
    assert forget_unwritten(tmp_path / "data") == []
