"""The provider catalogue as data: where each provider is, which API it speaks, how its prices are filed.

`providers.json` is the project's own file; it began as a snapshot of models.dev (MIT) and the providers' documentation.
"""

import re
from functools import cache
from importlib.resources import files
from urllib.parse import urlsplit

import msgspec

from schemas.apis import Shape


class Provider(msgspec.Struct, frozen=True):
    """One company's API. `base_url` goes up to, not including, `/chat/completions`, `/messages` and the like."""

    id: str
    name: str
    base_url: str
    shape: Shape
    auth: str
    """`bearer`, `x-api-key`, `api-key`, `x-goog-api-key`, `sigv4`, `oauth` or `none`."""
    env: list[str] = []
    doc: str = ""
    openai_base_url: str | None = None
    genai_prices_id: str | None = None
    """The id under which the package genai-prices files its prices; None: their cost is unknown."""
    source: str = ""

    @property
    def host_parts(self) -> list[str]:
        """The parts of the origin that a call or the settings must fill in: `resource` in Azure's."""
        return re.findall(r"\{(\w+)\}", self.origin_template)

    @property
    def origin_template(self) -> str:
        scheme, _, rest = self.base_url.partition("://")
        return f"{scheme}://{rest.split('/', 1)[0]}" if rest else self.base_url.split("/", 1)[0]

    @property
    def prefix(self) -> str:
        """The path of `base_url`: `/openai/v1` in Groq's."""
        return urlsplit(self.base_url).path if "://" in self.base_url else ""


# Names people know a provider by, besides its id: Helicone's host labels and other catalogues' ids.
ALIASES = {
    "oai": "openai",
    "x": "xai",
    "gemini": "google",
    "google-ai-studio": "google",
    "amazon-bedrock": "bedrock",
    "google-vertex": "vertex",
    "togetherai": "together",
    "fireworks-ai": "fireworks",
    "moonshot": "moonshotai",
}


@cache
def catalogue() -> dict[str, Provider]:
    """Every provider of the catalogue by its id."""
    data = (files("schemas") / "providers.json").read_bytes()
    return {provider.id: provider for provider in msgspec.json.decode(data, type=list[Provider])}
