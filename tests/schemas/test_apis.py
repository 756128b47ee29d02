import pytest

from schemas.apis import api_of, is_of_stored, model_in_path
from schemas.providers import ALIASES, catalogue
from tests.exchanges import recorded


def test_every_recorded_call_is_known_by_its_path() -> None:
    wrong = set()
    for raw in recorded():
        provider = catalogue().get(raw["provider"])
        api = api_of(provider.shape if provider else "openai", raw["path"].split("?")[0])
        if api != raw["api"]:
            wrong.add((raw["path"].split("?")[0], api, raw["api"]))
    assert wrong == {
        # Counting is no generation: it uses no tokens, and its answer is no usage.
        ("/v1/messages/count_tokens", "other", "anthropic.messages"),
    }


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.0-flash:generateContent", "gemini-2.0-flash"),
        ("/model/anthropic.claude-3-haiku-20240307-v1%3A0/invoke", "anthropic.claude-3-haiku-20240307-v1:0"),
        ("/openai/deployments/my-gpt/chat/completions", "my-gpt"),
        ("/v1/chat/completions", None),
    ],
)
def test_a_model_may_stand_in_the_path(path: str, model: str | None) -> None:
    assert model_in_path(path) == model


@pytest.mark.parametrize(("publisher", "api"), [("anthropic", "anthropic.messages"), ("mistralai", "other")])
@pytest.mark.parametrize("method", ["rawPredict", "streamRawPredict"])
def test_a_partners_model_on_vertex_speaks_its_own_api(publisher: str, api: str, method: str) -> None:
    assert api_of("gemini", f"/v1/projects/p/locations/l/publishers/{publisher}/models/m:{method}") == api


def test_every_alias_leads_to_a_provider() -> None:
    assert {ALIASES[name] for name in ALIASES} <= set(catalogue())


def test_the_catalogue_has_every_provider_of_the_snapshot() -> None:
    assert len(catalogue()) == 152


@pytest.mark.parametrize(
    ("method", "path", "of_stored"),
    [
        ("GET", "/v1/responses/resp_1", True),
        ("DELETE", "/v1/chat/completions/chatcmpl-1", True),
        ("POST", "/v1/responses/resp_1/cancel", True),
        ("POST", "/v1/chat/completions/chatcmpl-1", True),
        ("POST", "/v1/projects/p/locations/l/batchPredictionJobs/7:cancel", True),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/responses/compact", False),
        ("POST", "/v1/chat/completions", False),
        ("POST", "/openai/deployments/cancel/chat/completions", False),
    ],
)
def test_a_call_of_a_stored_answer_is_known_by_its_method_and_path(method: str, path: str, of_stored: bool) -> None:
    assert is_of_stored(method, path) is of_stored
