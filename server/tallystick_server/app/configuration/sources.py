"""Reads the settings from the environment, then from a TOML file, and validates all of them at the
start.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

from tallystick_core.access import Role
from tallystick_server.app.configuration.errors import (
    Fields,
    Origins,
    collect_fields,
    describe_errors,
    expected,
    kind_of,
    unknown_setting,
    variable_of,
)
from tallystick_server.app.configuration.network import check_network
from tallystick_server.app.configuration.provider_sources import (
    ProviderSections,
    check_providers,
    find_providers,
    provider_of_variable,
    take_providers,
)
from tallystick_server.app.configuration.settings import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.providers.registry import PROVIDER_TYPES

# the path of the file, the interpreter of scripts/setup, and an operator's own token
_OTHER_VARIABLES = frozenset({"TALLYSTICK_CONFIG", "TALLYSTICK_PYTHON", "TALLYSTICK_TOKEN"})
_SERVICE_LINK = re.compile(
    r"TALLYSTICK_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)",
    re.ASCII,
)
"""The variables that Kubernetes and Docker set for a service called tallystick or tallystick-…"""


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """A setting, for the documentation."""

    path: str
    """In the TOML file, such as payout.destination_cooldown."""
    variable: str
    """In the environment, such as TALLYSTICK_PAYOUT__DESTINATION_COOLDOWN."""
    type: str
    unit: str
    """Empty if it has none."""
    allowed: str
    """The values that are allowed, such as "a number of seconds from 0 to 60"; empty: see type."""
    default: str
    """As it is written in the TOML file; empty: not set."""
    description: str


def describe_settings() -> list[SettingDescription]:
    """All settings, in the order of their sections. The section of a provider that is called as
    its type describes all of the type.
    """
    return [
        SettingDescription(
            path=".".join(path),
            variable=variable_of(path),
            type=kind_of(field).name,
            unit=kind_of(field).unit,
            allowed=expected(field),
            default=_format_default(field),
            description=" ".join((field.description or "").split()),
        )
        for path, field in collect_fields(
            {name: provider_type.settings for name, provider_type in PROVIDER_TYPES.items()}
        ).items()
    ]


def _format_default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: it must be set"
    default = field.default
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        text = f"{default:.10g}"
        return f'"{text}"' if kind_of(field).name == "decimal text" else text
    if isinstance(default, Mapping):
        return "[]" if kind_of(field).name.startswith("list") else "{}"
    return "[]" if isinstance(default, frozenset | tuple) else f'"{default}"'


def load(environment: Mapping[str, str] | None = None, path: str | None = None) -> Settings:
    """Loads the settings of an environment, by default the process's, and of a file, by default the
    one in TALLYSTICK_CONFIG.

    Raises StartupError, which names every invalid setting.
    """
    environment = os.environ if environment is None else environment
    path = path or environment.get("TALLYSTICK_CONFIG") or ""
    table = _read_toml(path) if path else {}
    origins = Origins(environment, path, table)
    providers = find_providers(origins)
    fields = collect_fields(providers.settings)
    variables = {variable_of(name): name for name in fields}
    lines = [*providers.problems, *_unknown_variables(environment, variables, fields, providers)]
    source = EnvSettingsSource(Settings)
    source.env_vars = {
        name.lower(): value for name, value in environment.items() if name in variables
    }
    values = _merge(table, source())
    configured, problems = take_providers(values, providers, origins, fields)
    lines += problems
    try:
        settings = Settings(**values).replace(providers__configured=configured)
        lines += _check_combinations(settings, origins)
        if not (problems or providers.problems):
            lines += check_providers(settings, origins)
    except ValidationError as error:
        lines += describe_errors(error, origins, fields)
    if lines:
        heading = [f"The configuration has {len(lines)} errors:"] if len(lines) > 1 else []
        raise StartupError("\n".join([*heading, *lines]))
    return settings


def _unknown_variables(
    environment: Mapping[str, str],
    variables: Collection[str],
    fields: Fields,
    providers: ProviderSections,
) -> list[str]:
    """A line for each variable that is not a setting."""
    return [
        unknown_setting(name, tuple(name.removeprefix("TALLYSTICK_").split("__")), fields)
        for name in sorted(environment)
        if name.startswith("TALLYSTICK_")
        and name not in variables
        and name not in _OTHER_VARIABLES
        and _SERVICE_LINK.fullmatch(name) is None
        and provider_of_variable(name) not in providers.rejected_names
    ]


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise StartupError(
            f"The configuration file {path} cannot be read: {error.strerror}."
        ) from None
    except ValueError as error:
        raise StartupError(f"The configuration file {path} is not valid TOML: {error}.") from None


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two layers of settings, section by section."""
    merged = dict(below)
    for name, value in above.items():
        is_section = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if is_section else value
    return merged


def _check_combinations(settings: Settings, origins: Origins) -> list[str]:
    """The rules that concern several settings."""
    lines = check_network(settings, origins)
    if settings.authentication == "tokens":
        lines += _check_callers(settings, origins)
    return lines


def _check_callers(settings: Settings, origins: Origins) -> list[str]:
    lines = []
    if not settings.callers:
        lines.append(
            f"{origins.name(('callers',))} must have at least one caller while authentication is "
            "tokens."
        )
    service_caller = settings.callers.get(settings.service_token)
    if service_caller is None or Role.SERVICE not in service_caller.roles:
        lines.append(
            f"{origins.name(('service_token',))} must be a token of a caller with the role service."
        )
    services = {caller.name for caller in settings.callers.values() if Role.SERVICE in caller.roles}
    if settings.payout_service and settings.payout_service not in services:
        lines.append(
            f"{origins.name(('payout_service',))} must be the name of a caller with the role "
            "service, or empty."
        )
    return lines
