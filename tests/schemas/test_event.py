import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.generated import event_schema
from schemas.event import Attempt, BadEvent, Body, Event, pack, unpack

_PUBLISHED = Path(__file__).parents[2] / "schemas" / "event.v1.schema.json"
_FIRST = Path(__file__).parent / "event.v1.first.schema.json"


def least() -> Event:
    return Event(
        id="0193a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
        created_ms=1,
        project_id="default",
        provider="openai",
        api="openai.chat",
        method="POST",
        path="/v1/chat/completions",
        outcome="success",
        latency_ms=1.5,
    )


def test_an_event_comes_back_as_it_went() -> None:
    event = least()
    event.request = Body(size=3, head=b"\xff\x00{")
    event.attempts = [Attempt("openai", 1, 1.5, 200)]
    event.properties = {"city": "Zürich"}
    assert unpack(pack(event)) == event


def test_a_field_of_a_later_version_is_passed_over() -> None:
    later = {**msgspec.msgpack.decode(pack(least())), "v": 2, "something_new": {"a": [1]}}
    assert unpack(msgspec.msgpack.encode(later)).id == least().id


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"rubbish", msgspec.msgpack.encode({"v": 1}), msgspec.msgpack.encode([1])]
)
def test_what_is_no_event_says_so(payload: bytes) -> None:
    with pytest.raises(BadEvent):
        unpack(payload)


def test_the_published_schema_is_the_codes() -> None:
    assert _PUBLISHED.read_text() == event_schema(), "run: make format"


def test_a_change_of_the_schema_only_adds() -> None:
    """Everything the first published schema promised still holds: no field gone, none of another type, none newly
    required. `event.v1.first.schema.json` is never edited."""
    first, now = json.loads(_FIRST.read_text()), json.loads(_PUBLISHED.read_text())
    for name, then in first["$defs"].items():
        today: dict[str, Any] = now["$defs"][name]
        for field, shape in then["properties"].items():
            assert _type(today["properties"][field]) == _type(shape), f"{name}.{field} has changed"
        assert set(today.get("required", [])) <= set(then.get("required", [])), f"{name} requires more than it did"


def _type(shape: dict[str, Any]) -> Any:
    return {key: value for key, value in shape.items() if key not in ("description", "default", "title")}
