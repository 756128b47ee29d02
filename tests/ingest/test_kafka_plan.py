import pytest

from ingest.kafka_plan import METADATA_BYTES_MAX, from_metadata, mark_of, resumed_by, to_metadata
from ingest.log import LogGap, Plan


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(), id="nothing yet"),
        pytest.param(Plan(committed=7), id="nothing outstanding"),
        pytest.param(Plan(committed=7, cuts=(9, 2009, 2010)), id="three outstanding"),
        pytest.param(Plan(committed=7, cuts=(9,), paused="12 of 20 events died", paused_ms=1763719200000), id="paused"),
        pytest.param(Plan(committed=2**62, cuts=(2**62 + 100_000,)), id="a very old partition"),
    ],
)
def test_what_was_written_down_comes_back(plan: Plan) -> None:
    assert from_metadata(plan.committed, to_metadata(plan)) == plan


def test_the_fullest_plan_fits_into_what_the_broker_takes() -> None:
    cuts = tuple(100_000 * (number + 1) for number in range(256))
    plan = Plan(committed=0, cuts=cuts, paused="🜁" * 10_000, paused_ms=2**63)
    assert len(to_metadata(plan).encode()) <= METADATA_BYTES_MAX
    assert from_metadata(0, to_metadata(plan)).cuts == cuts


def test_an_offset_set_by_kafkas_own_tools_is_a_plan_without_cuts() -> None:
    assert from_metadata(42, "") == Plan(committed=42)


@pytest.mark.parametrize("metadata", ["2;;", "x", "1;a;", "1;1"])
def test_metadata_that_is_not_ours_is_refused_not_passed_over(metadata: str) -> None:
    with pytest.raises(LogGap, match="cannot be read"):
        from_metadata(0, metadata)


def test_a_pause_without_its_time_is_read_as_well() -> None:
    assert from_metadata(7, "1;2;why") == Plan(committed=7, cuts=(9,), paused="why")


def test_a_mark_names_one_pause_and_not_the_next() -> None:
    plan = Plan(committed=7, cuts=(9,), paused="why", paused_ms=5)
    assert resumed_by(mark_of(plan)) == 5
    assert mark_of(plan) == mark_of(Plan(committed=9, paused="why", paused_ms=5))
    assert mark_of(plan) != mark_of(Plan(committed=7, cuts=(9,), paused="why", paused_ms=6))


@pytest.mark.parametrize("mark", ["", "1;7;9;why", "2;5"])
def test_a_mark_of_another_form_names_no_pause(mark: str) -> None:
    assert resumed_by(mark) is None
