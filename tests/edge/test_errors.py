import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge import errors
from edge.upstream.protocol import UpstreamError


def said(error: errors.EdgeError, shape: object) -> dict[str, object]:
    decoded: dict[str, object] = json.loads(errors.error_body(error, shape, "id-1"))  # type: ignore[arg-type]
    return decoded


def test_an_openai_caller_gets_openais_shape() -> None:
    error = errors.BadHeader("Helicone-Cache-Enabled", "1", "true or false")
    assert said(error, "openai") == {
        "error": {
            "message": "Header Helicone-Cache-Enabled has the value '1'; accepted: true or false.",
            "type": "invalid_request_error",
            "param": "Helicone-Cache-Enabled",
            "code": "bad_header",
        }
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.BadHeader("a", "b", "c"), "invalid_request_error"),
        (errors.InvalidKey("x"), "authentication_error"),
        (errors.Forbidden("x"), "permission_error"),
        (errors.UnknownProvider("x"), "not_found_error"),
        (errors.BodyTooLarge("x"), "request_too_large"),
        (errors.NotReady("x"), "api_error"),
    ],
)
def test_an_anthropic_caller_gets_anthropics_word_for_the_status_and_our_code(
    error: errors.EdgeError, kind: str
) -> None:
    told = said(error, "anthropic")
    assert told["type"] == "error"
    assert told["request_id"] == "id-1"
    assert told["error"] == {"type": kind, "message": error.message, "code": error.code}


def test_any_other_caller_gets_a_code_and_a_message() -> None:
    assert said(errors.BodyTooLarge("too big"), "gemini") == {"error": {"code": "body_too_large", "message": "too big"}}


def test_an_error_in_a_stream_is_an_event_of_its_own() -> None:
    event = errors.error_event(errors.NotReady("x"), "openai", "id-1")
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"\n\n")


def test_a_long_value_is_not_repeated_whole() -> None:
    assert len(errors.BadHeader("X", "v" * 5000, "short").message) < 200


def test_the_page_of_errors_names_every_code_with_its_status() -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    told = {
        (int(cells[1]), code)
        for line in page.splitlines()
        if (cells := line.split("|"))[1:] and cells[1].strip().isdigit()
        for code in re.findall(r"`(\w+)`", cells[2])
    }
    raised = {(kind.status, kind.code) for kind in [*_kinds(errors.EdgeError), *_kinds(UpstreamError)]}
    assert told == raised


def _kinds(base: Any) -> list[Any]:
    return [kind for below in base.__subclasses__() for kind in (below, *_kinds(below))]
