"""`heliograph replay` refuses what it would otherwise pass over in silence."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


def told(*words: str) -> str:
    """What is said, in one line, when the command refuses."""
    done = CliRunner().invoke(app, ["replay", *words])
    assert done.exit_code == 2, done.output
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(("--topic", "requests.v1"), "--topic", id="a topic"),
        pytest.param(("--reason", "too_old"), "--reason", id="a reason"),
        pytest.param(("--from", "2026-11-01", "--to", "2026-11-02"), "--from, --to", id="times"),
    ],
)
def test_an_option_before_kafka_is_refused_by_its_name(offline: Path, words: tuple[str, ...], names: str) -> None:
    assert told(*words, "kafka", "--all").startswith(f"{names} before 'kafka'")


@pytest.mark.parametrize(
    ("words", "both"),
    [
        pytest.param(
            ("--from", "2026-11-20", "--to", "2026-11-10"),
            "--from 2026-11-20T00:00:00 is not before --to 2026-11-10T00:00:00",
            id="letters, backwards",
        ),
        pytest.param(
            ("--from", "2026-11-20T10:00:00", "--to", "2026-11-20T10:00:00"),
            "--from 2026-11-20T10:00:00 is not before --to 2026-11-20T10:00:00",
            id="letters, the same moment",
        ),
        pytest.param(
            ("kafka", "--since", "2026-11-20", "--until", "2026-11-10"),
            "--since 2026-11-20T00:00:00 is not before --until 2026-11-10T00:00:00",
            id="Kafka, backwards",
        ),
    ],
)
def test_a_range_that_ends_before_it_begins_is_refused_with_both_its_ends(
    offline: Path, words: tuple[str, ...], both: str
) -> None:
    assert both in told(*words)


def test_kafka_with_options_of_its_own_alone_goes_on(offline: Path) -> None:
    assert "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS is not set" in told("kafka", "--all")
