"""Settings as environment variables: read, checked by their names, and listed for docs/settings.md.

A variable under one of our prefixes that names no setting stops start-up: a mistyped bound that silently keeps its default
is worse than no start.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from schemas.settings import ALL, Group, SettingsError

S = TypeVar("S", bound=BaseSettings)


class Setting(BaseModel):
    """One line of docs/settings.md."""

    variable: str
    default: str
    meaning: str


OF_COMMANDS = (
    Setting(
        variable="HELIOGRAPH_KEY",
        default="",
        meaning="Heliograph key that `heliograph tail` reads with and `heliograph demo` calls with; `--key` wins",
    ),
    Setting(
        variable="HELIOGRAPH_CONTROL_URL",
        default="",
        meaning="where `heliograph tail` finds control, http://host:port; left out: CONTROL_PORT of this machine",
    ),
)
"""What a command of a person reads for itself. No service takes any of it, and none minds that it is set."""


def settings_list(group: type[BaseModel], prefix: str) -> Iterator[Setting]:
    """Every setting below a group, in the order of the code. `<ID>` and `<NAME>` stand for names of your own."""
    for name, field in group.model_fields.items():
        variable = prefix + name.upper()
        inner = _group_of(field)
        if inner is not None:
            keyed = get_origin(field.annotation) is dict
            yield from settings_list(inner, f"{variable}__<ID>__" if keyed else f"{variable}__")
        elif get_origin(field.annotation) is dict:
            yield Setting(variable=f"{variable}__<NAME>", default="", meaning=field.description or "")
        else:
            yield Setting(variable=variable, default=_shown(field), meaning=field.description or "")


def _group_of(field: FieldInfo) -> type[Group] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Group)), None)


def _shown(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "" or value == [] or value == {}:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def prefix_of(settings: type[BaseSettings]) -> str:
    return str(settings.model_config["env_prefix"])


def load(settings: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Read one group of settings from the environment.

    Raises:
        SettingsError: names each variable, its value and what would be right.
    """
    check_names(os.environ if environment is None else environment)
    try:
        return settings()
    except ValidationError as error:
        prefix = prefix_of(settings)
        lines = []
        for problem in error.errors(include_url=False):
            variable = prefix + "__".join(str(part) for part in problem["loc"]).upper()
            given = "" if _is_secret(variable) else f" = {problem['input']!r}"
            lines.append(f"{variable}{given}: {problem['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(lines)) from None


def check_names(environment: Mapping[str, str]) -> None:
    """Refuse variables that carry one of our prefixes and name no setting.

    Raises:
        SettingsError: names the variable and the nearest right name.
    """
    prefixes = tuple(prefix_of(settings) for settings in ALL)
    known = [line.variable for settings in ALL for line in settings_list(settings, prefix_of(settings))]
    known += [line.variable for line in OF_COMMANDS]
    patterns = [re.compile(re.sub("<[A-Z]+>", r"[A-Z0-9_]+?", name) + "$") for name in known]
    lines = []
    for variable in environment:
        name = variable.upper()
        if name.startswith(prefixes) and not any(pattern.match(name) for pattern in patterns):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "see docs/settings.md"
            lines.append(f"{variable}: there is no such setting; {hint}")
    if lines:
        raise SettingsError("\n".join(lines))


def _is_secret(variable: str) -> bool:
    return any(word in variable for word in ("PASSWORD", "URL", "KEY", "SECRET"))
