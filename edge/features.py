"""Headers of features that later versions have: checked now, so that what is refused then is refused already.

They are recorded and do nothing.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from edge.errors import BadHeader, bare_url

_DIGITS_MAX = 18


def boolean(shown: str, text: str) -> bool:
    lowered = text.strip().lower()
    if lowered not in ("true", "false"):
        raise BadHeader(shown, text, "true or false")
    return lowered == "true"


def _whole(low: int, high: int) -> Callable[[str, str], None]:
    def check(shown: str, text: str) -> None:
        digits = text.strip()
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX
        if not is_number or not low <= int(digits) <= high:
            raise BadHeader(shown, text, f"a whole number from {low} to {high}")

    return check


def _number(low: float, high: float) -> Callable[[str, str], None]:
    def check(shown: str, text: str) -> None:
        try:
            inside = low <= float(text) <= high
        except ValueError:
            inside = False
        if not inside:
            raise BadHeader(shown, text, f"a number from {low:.15g} to {high:.15g}")

    return check


def _one_of(*words: str) -> Callable[[str, str], None]:
    def check(shown: str, text: str) -> None:
        if text.strip().lower() not in words:
            raise BadHeader(shown, text, " or ".join(words))

    return check


def _json(kind: type, described: str) -> Callable[[str, str], None]:
    def check(shown: str, text: str) -> None:
        try:
            fits = isinstance(msgspec.json.decode(text), kind)
        except (msgspec.DecodeError, RecursionError):
            fits = False
        if not fits:
            # A fallback's headers may hold a credential, so such a value is never shown.
            raise BadHeader(shown, "(not shown)", described)

    return check


_POLICY_PART = re.compile(r"^(w=\d+(\.\d+)?|u=[a-z]+|s=[^;,=\s]+|fail=(open|closed))$", re.IGNORECASE)


def _policy(shown: str, text: str) -> None:
    for policy in text.split(","):
        parts = [part.strip() for part in policy.split(";")]
        quotas = [part for part in parts if re.fullmatch(r"\d+(\.\d+)?", part)]
        rest = [part for part in parts if part not in quotas]
        if (
            len(quotas) != 1
            or not all(_POLICY_PART.match(p) for p in rest)
            or not any(p[:2] in ("w=", "W=") for p in rest)
        ):
            raise BadHeader(
                shown, text, "quota;w=seconds[;u=request|cents|token|user|org][;s=user|property], comma between several"
            )


def _anything(shown: str, text: str) -> None:
    return None


def _flag(shown: str, text: str) -> None:
    boolean(shown, text)


_YEAR_S = 365 * 86400
FEATURES: dict[str, Callable[[str, str], None]] = {
    "cache-enabled": _flag,
    "cache-save": _flag,
    "cache-read": _flag,
    "cache-bucket-max-size": _whole(1, 10_000),
    "cache-bucket-mode": _one_of("any", "fill"),
    "cache-seed": _anything,
    "cache-ignore-keys": _anything,
    "cache-mode": _one_of("exact", "semantic"),
    "cache-threshold": _number(0.5, 1),
    "cache-tags": _anything,
    "cache-shadow": _flag,
    "ratelimit-policy": _policy,
    "retry-enabled": _flag,
    "retry-num": _whole(0, 10),
    "retry-factor": _number(1, 100),
    "retry-min-timeout": _number(0, _YEAR_S),
    "retry-max-timeout": _number(0, _YEAR_S),
    "fallback": _json(list, "a JSON list of targets"),
    "fallbacks": _json(list, "a JSON list of targets"),
    "balance": _json(list, "a JSON list of keys with weights"),
    "hedge-after": _number(0, _YEAR_S),
    "timeout": _number(0, _YEAR_S),
    "first-byte-timeout": _number(0, _YEAR_S),
    "prompt-id": _anything,
    "prompt-variables": _json(dict, "a JSON object"),
}


def without_credentials(short: str, text: str) -> str:
    """A list of targets may carry a provider's headers and keys: of each only what says where is for the record."""
    if short not in ("fallback", "fallbacks", "balance"):
        return text
    targets = [target for target in msgspec.json.decode(text) if isinstance(target, dict)]
    return msgspec.json.encode([_recorded(target) for target in targets]).decode()


_RECORDED: dict[str, type | tuple[type, ...]] = {"provider": str, "model": str, "weight": (int, float)}


def _recorded(target: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: target[name] for name, kind in _RECORDED.items() if isinstance(target.get(name), kind)
    }
    if isinstance(codes := target.get("onCodes"), list):
        kept["onCodes"] = [code for code in codes if isinstance(code, int)]
    if isinstance(url := target.get("target-url"), str):
        kept["target-url"] = bare_url(url)
    return kept
