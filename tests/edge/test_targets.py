import pytest

from edge.errors import BadHeader, EdgeError, NotBuilt, TargetRefused, UnknownProvider
from edge.upstream.targets import Target, Targets, TargetUrl
from schemas.settings import EdgeSettings, ProviderSettings

TARGETS = Targets(EdgeSettings())


def find(
    path: str,
    host: str = "127.0.0.1:8787",
    *,
    url: str | None = None,
    anthropic: bool = False,
    targets: Targets = TARGETS,
) -> Target:
    target_url = None if url is None else TargetUrl("Helicone-Target-Url", url)
    return targets.find(path, host, target_url=target_url, speaks_anthropic=anthropic)


def place(target: Target) -> str:
    origin = target.origin
    return f"{target.provider} {origin.scheme}://{origin.host}:{origin.port}{target.path}"


@pytest.mark.parametrize(
    ("path", "host", "expected"),
    [
        ("/v1/chat/completions", "h", "openai https://api.openai.com:443/v1/chat/completions"),
        ("/v1/messages", "h", "anthropic https://api.anthropic.com:443/v1/messages"),
        ("/v1/messages/count_tokens", "h", "anthropic https://api.anthropic.com:443/v1/messages/count_tokens"),
        ("/openai/v1/models", "h", "openai https://api.openai.com:443/v1/models"),
        ("/anthropic/v1/messages", "h", "anthropic https://api.anthropic.com:443/v1/messages"),
        ("/groq/openai/v1/chat/completions", "h", "groq https://api.groq.com:443/openai/v1/chat/completions"),
        ("/together/v1/completions", "h", "together https://api.together.xyz:443/v1/completions"),
        ("/google/v1beta/models/g:generateContent", "h",
         "google https://generativelanguage.googleapis.com:443/v1beta/models/g:generateContent"),
        ("/azure/my-resource/openai/deployments/d/chat/completions", "h",
         "azure https://my-resource.openai.azure.com:443/openai/deployments/d/chat/completions"),
        ("/bedrock/us-east-1/model/m/converse", "h", "bedrock https://bedrock-runtime.us-east-1.amazonaws.com:443/model/m/converse"),
        ("/vertex/global/v1/projects/p", "h", "vertex https://aiplatform.googleapis.com:443/v1/projects/p"),
        ("/v1/gateway/oai/v1/chat/completions", "h", "openai https://api.openai.com:443/v1/chat/completions"),
        ("/v1/gateway/anthropic/v1/messages", "h", "anthropic https://api.anthropic.com:443/v1/messages"),
        ("/v1/chat/completions", "oai.helicone.ai", "openai https://api.openai.com:443/v1/chat/completions"),
        ("/v1/messages", "anthropic.helicone.ai", "anthropic https://api.anthropic.com:443/v1/messages"),
        ("/openai/v1/chat/completions", "groq.gw.example.com:8787", "groq https://api.groq.com:443/openai/v1/chat/completions"),
        ("/v1/chat/completions", "10.0.0.1:8787", "openai https://api.openai.com:443/v1/chat/completions"),
        ("/v1/chat/completions", "llm.example.com", "openai https://api.openai.com:443/v1/chat/completions"),
    ],
)  # fmt: skip
def test_a_base_url_of_the_contract_leads_to_its_provider(path: str, host: str, expected: str) -> None:
    assert place(find(path, host)) == expected


def test_anthropics_own_client_is_known_by_its_header_on_shared_paths() -> None:
    assert find("/v1/files", anthropic=True).provider == "anthropic"
    assert find("/v1/files").provider == "openai"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.together.xyz", "together https://api.together.xyz:443/v1/x"),
        ("https://api.openai.com/v1/ignored", "openai https://api.openai.com:443/v1/x"),
        ("https://my-res.openai.azure.com", "azure https://my-res.openai.azure.com:443/v1/x"),
    ],
)
def test_a_target_url_names_a_provider_of_the_catalogue_by_its_origin(url: str, expected: str) -> None:
    assert place(find("/gateway/v1/x", url=url)) == expected
    assert place(find("/v1/x", host="gateway.helicone.ai", url=url)) == expected


@pytest.mark.parametrize(
    "url",
    ["https://evil.example", "http://api.openai.com", "https://api.openai.com:8443", "http://127.0.0.1:6379",
     "http://169.254.169.254", "http://localhost:11434", "https://api.openai.com.evil.example",
     "https://evil.example/.openai.azure.com", "https://evil.openai.azure.com.example"],
)  # fmt: skip
def test_a_target_url_that_nobody_listed_is_refused(url: str) -> None:
    with pytest.raises(TargetRefused) as refusal:
        find("/gateway/v1/x", url=url)
    assert (refusal.value.status, refusal.value.code) == (403, "target_not_allowed")


@pytest.mark.parametrize(
    "url",
    [None, "", "api.openai.com", "ftp://api.openai.com", "https://", "https://u:secret@api.openai.com",
     "https://u:secret@api.openai.com:99999/", "https://u:sec?secret@x", "https://u:a/secret@x",
     "https://:secret@api.openai.com/", "https://secret@[api.openai.com",
     "api.openai.com/v1?key=secret", "ftp://api.openai.com/#secret", "https://api.openai.com:0"],
)  # fmt: skip
def test_a_target_url_that_is_none_is_named(url: str | None) -> None:
    with pytest.raises(BadHeader, match="Helicone-Target-Url") as refusal:
        find("/gateway/v1/x", url=url)
    assert "secret" not in refusal.value.message


def test_a_target_url_is_refused_by_the_name_of_its_header() -> None:
    for url in ("ftp://x", "https://evil.example"):
        with pytest.raises((BadHeader, TargetRefused), match="Helicone-OpenAI-Api-Base"):
            TARGETS.find("/v1/x", "x", target_url=TargetUrl("Helicone-OpenAI-Api-Base", url), speaks_anthropic=False)


@pytest.mark.parametrize(
    ("path", "provider"),
    [("/v1/messages", "anthropic"), ("/v1/messages/batches", "anthropic"), ("/v1/messagesfoo", "openai"),
     ("/v1/complete", "anthropic"), ("/v1/completions", "openai")],
)  # fmt: skip
def test_anthropics_paths_are_anthropics_and_none_beside_them(path: str, provider: str) -> None:
    assert find(path).provider == provider


def test_the_operators_list_opens_a_host_and_no_other() -> None:
    targets = Targets(EdgeSettings(allowed_targets=["llm.example.com", "127.0.0.1:9999"]))
    target = find("/gateway/v1/x", url="http://127.0.0.1:9999", targets=targets)
    assert place(target) == "127.0.0.1 http://127.0.0.1:9999/v1/x"
    assert target.origin.private_allowed
    assert find("/gateway/v1/x", url="https://llm.example.com", targets=targets).provider == "llm.example.com"
    with pytest.raises(TargetRefused):
        find("/gateway/v1/x", url="http://127.0.0.1:9998", targets=targets)


def test_an_operator_may_put_a_provider_elsewhere() -> None:
    targets = Targets(EdgeSettings(providers={"openai": ProviderSettings(base_url="http://127.0.0.1:9000/v1")}))
    target = find("/v1/chat/completions", targets=targets)
    assert place(target) == "openai http://127.0.0.1:9000/v1/chat/completions"
    assert target.origin.private_allowed


def test_an_operator_may_add_a_provider_or_a_relay_of_one() -> None:
    given = {
        "my_llm": ProviderSettings(base_url="http://127.0.0.1:9000/v1"),
        "relay": ProviderSettings(base_url="http://127.0.0.1:9001", stands_for="anthropic"),
    }
    targets = Targets(EdgeSettings(providers=given))
    assert find("/my-llm/v1/chat/completions", targets=targets).provider == "my-llm"
    relay = find("/relay/v1/messages", targets=targets)
    assert (relay.provider, relay.shape) == ("anthropic", "anthropic")


def test_a_templates_part_may_stand_in_the_settings() -> None:
    targets = Targets(EdgeSettings(providers={"azure": ProviderSettings(parts={"resource": "fixed"})}))
    assert place(find("/azure/openai/x", targets=targets)) == "azure https://fixed.openai.azure.com:443/openai/x"


@pytest.mark.parametrize("part", ["evil.example%2f", "a b", "", "..", "evil@host", "x:1"])
def test_a_part_of_a_host_cannot_lead_elsewhere(part: str) -> None:
    with pytest.raises(UnknownProvider):
        find(f"/azure/{part}/openai/x")


def test_a_model_server_on_this_machine_is_the_operators_to_open() -> None:
    with pytest.raises(TargetRefused, match="EDGE_PROVIDERS__OLLAMA__BASE_URL"):
        find("/ollama/v1/chat/completions")


@pytest.mark.parametrize(("path", "near"), [("/opnai/v1/x", "openai"), ("/anthropc/v1/messages", "anthropic")])
def test_an_unknown_provider_is_answered_with_near_names(path: str, near: str) -> None:
    with pytest.raises(UnknownProvider, match=near) as refusal:
        find(path)
    assert refusal.value.status == 404


@pytest.mark.parametrize("path", ["/", "/nobody-at-all", "//v1/x", "/v1/gateway/nobody/x"])
def test_a_path_that_names_nobody_is_refused(path: str) -> None:
    with pytest.raises(EdgeError):
        find(path)


def test_the_unified_gateway_says_that_it_is_not_there_yet() -> None:
    for path, host in (("/ai/v1/chat/completions", "h"), ("/v1/chat/completions", "ai-gateway.helicone.ai")):
        with pytest.raises(NotBuilt, match="unified gateway"):
            find(path, host)
