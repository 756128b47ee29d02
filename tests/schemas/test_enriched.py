import json
from pathlib import Path
from typing import Any

from cli.generated import enriched_schema
from tests.schemas.test_event import _type

_PUBLISHED = Path(__file__).parents[2] / "schemas" / "requests.enriched.v1.schema.json"
_FIRST = Path(__file__).parent / "requests.enriched.v1.first.schema.json"


def test_the_published_schema_is_the_codes() -> None:
    assert _PUBLISHED.read_text() == enriched_schema(), "run: make format"


def test_a_change_of_the_schema_only_adds() -> None:
    """Everything the first published schema promised still holds, and what has been published before is still valid.
    `requests.enriched.v1.first.schema.json` is never edited."""
    first, now = json.loads(_FIRST.read_text()), json.loads(_PUBLISHED.read_text())
    for name, then in first["$defs"].items():
        today: dict[str, Any] = now["$defs"][name]
        for field, shape in then["properties"].items():
            assert _type(today["properties"][field]) == _type(shape), f"{name}.{field} has changed"
        assert today["required"] == then["required"], f"{name} requires other fields than it did"


def test_a_field_that_is_not_known_yet_is_no_error_to_a_consumer() -> None:
    schemas = json.loads(_PUBLISHED.read_text())["$defs"].values()
    assert not any(schema.get("additionalProperties") is False for schema in schemas)
