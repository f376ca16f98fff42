"""The sections of the configured providers: which there are, their values, and their rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tallystick_server.app.configuration.errors import (
    Fields,
    Origins,
    describe_errors,
    unknown_setting,
    variable_of,
)
from tallystick_server.app.configuration.providers import ProvidersSection
from tallystick_server.app.configuration.settings import Settings
from tallystick_server.operations.retry_policy import DEFAULT_POLICIES
from tallystick_server.providers.gateway import LEASE_MARGIN_SECONDS
from tallystick_server.providers.provider_type import ProviderSettings
from tallystick_server.providers.registry import (
    DEFAULT_PROVIDERS,
    PROVIDER_TYPES,
    names_that_charge,
    names_that_check_risk,
    names_that_pay_out,
)

_SHARED_SETTINGS = frozenset(ProvidersSection.model_fields) - {"configured"}
"""The settings of `[providers]` itself; any other name below it is a provider's."""
_VARIABLE = re.compile(r"TALLYSTICK_PROVIDERS__([A-Z0-9_]+?)__[A-Z0-9_]+")
_NAME = re.compile(r"(?=.{1,32}\Z)[a-z][a-z0-9]*(_[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProviderSections:
    """The sections of providers in the file and in the environment."""

    settings: Mapping[str, type[ProviderSettings]]
    """The settings of each provider, by name; without any section those of the default."""
    is_default: bool
    rejected_names: Collection[str]
    """Providers whose name or type is wrong."""
    problems: list[str]
    """A line for each of them."""


def find_providers(origins: Origins) -> ProviderSections:
    """Finds the providers that have a section."""
    table = origins.table.get("providers")
    sections = {
        name: section
        for name, section in (table if isinstance(table, dict) else {}).items()
        if name not in _SHARED_SETTINGS and isinstance(section, dict)
    }
    for variable in sorted(origins.environment):
        name = provider_of_variable(variable)
        if name:
            sections.setdefault(name, {})
    if not sections:
        types = {name: PROVIDER_TYPES[name].settings for name in DEFAULT_PROVIDERS}
        return ProviderSections(types, is_default=True, rejected_names=(), problems=[])
    settings, problems = {}, {}
    for name, section in sections.items():
        problem = _name_problem(name, origins) or _type_problem(name, section, origins)
        if problem:
            problems[name] = problem
        else:
            settings[name] = PROVIDER_TYPES[_type_name(name, section, origins)].settings
    return ProviderSections(
        settings,
        is_default=False,
        rejected_names=problems.keys(),
        problems=list(problems.values()),
    )


def provider_of_variable(variable: str) -> str:
    """The provider whose setting a variable of the environment may be; "": of none."""
    match = _VARIABLE.fullmatch(variable)
    name = match[1].lower() if match else ""
    return "" if name in _SHARED_SETTINGS else name


def _name_problem(name: str, origins: Origins) -> str:
    path = origins.name(("providers", name))
    if _NAME.fullmatch(name) is None:
        return (
            f"{path} must have a name of at most 32 of a-z, 0-9 and single _, which begins with a "
            "letter."
        )
    if name.upper() in DEFAULT_POLICIES:
        return f"{path} must not have the name of a retry reason."
    return ""


def _type_problem(name: str, section: Mapping[str, Any], origins: Origins) -> str:
    if _type_name(name, section, origins) in PROVIDER_TYPES:
        return ""
    path, choices = ("providers", name, "type"), ", ".join(PROVIDER_TYPES)
    if "type" in section or variable_of(path) in origins.environment:
        return f"{origins.name(path)} must be one of {choices}."
    return f"{origins.name(path)} must be set to one of {choices}: {name} is not a type."


def _type_name(name: str, section: Mapping[str, Any], origins: Origins) -> str:
    """The type of a provider: as set, else its name."""
    variable = variable_of(("providers", name, "type"))
    type_name = origins.environment.get(variable, section.get("type", ""))
    return str(type_name) or name


def take_providers(
    values: dict[str, Any], sections: ProviderSections, origins: Origins, fields: Fields
) -> tuple[Mapping[str, ProviderSettings], list[str]]:
    """Takes the providers' sections out of the values of all settings. Returns the providers, and a
    line for each problem with them.
    """
    table = values.get("providers", {})
    if not isinstance(table, dict):
        return DEFAULT_PROVIDERS, []
    values["providers"] = {name: value for name, value in table.items() if name in _SHARED_SETTINGS}
    lines = [
        unknown_setting(f"{origins.file}: providers.{name}", ("providers", name), fields)
        for name, section in table.items()
        if name not in _SHARED_SETTINGS and not isinstance(section, dict)
    ]
    configured: dict[str, ProviderSettings] = {}
    for name, model in sections.settings.items():
        try:
            configured[name] = model.model_validate(table.get(name, {}))
        except ValidationError as error:
            lines += describe_errors(error, origins, fields, ("providers", name))
    return (DEFAULT_PROVIDERS if sections.is_default else configured), lines


def check_providers(settings: Settings, origins: Origins) -> list[str]:
    """The rules that concern providers, and other settings with them."""
    configured = settings.providers.configured
    lines = [
        *_check_choice(
            "payment", "charges buyers", names_that_charge(configured), settings, origins
        ),
        *_check_choice("payout", "pays sellers", names_that_pay_out(configured), settings, origins),
    ]
    if settings.providers.risk:
        choices = names_that_check_risk(configured)
        lines += _check_choice("risk", "checks risks", choices, settings, origins)
    section, lease_duration = settings.providers, settings.worker.lease_duration
    for name in section.configured:
        terms = section.terms(name)
        if terms.limits.timeout_seconds + LEASE_MARGIN_SECONDS >= lease_duration:
            timeout = ".".join(_own_or_shared(section, name, "timeout"))
            lines.append(
                f"{origins.name(('worker', 'lease_duration'))} must be more than "
                f"{LEASE_MARGIN_SECONDS:g} seconds longer than {timeout}."
            )
        # an outcome must be recorded before its key expires
        if terms.key_window_seconds <= lease_duration:
            window = origins.name(_own_or_shared(section, name, "key_window"))
            lines.append(f"{window} must be longer than worker.lease_duration.")
    lines += [
        f"{origins.name_below(('retry',), f'{provider}.{reason.lower()}')} must be a policy of a "
        f"configured provider: {', '.join(section.configured)}."
        for provider, reason in settings.retry
        if provider and provider not in section.configured
    ]
    lines += _check_routing(settings, origins)
    return list(dict.fromkeys(lines))


def _check_routing(settings: Settings, origins: Origins) -> list[str]:
    """A line for each provider of a routing rule that is not configured or does not charge."""
    choices = names_that_charge(settings.providers.configured)
    lines = []
    for position, rule in enumerate(settings.routing, 1):
        for field, provider in (("provider", rule.provider), ("fallback", rule.fallback)):
            if provider and provider not in choices:
                name = origins.name_below(("routing",), f"[{position}].{field}")
                lines.append(
                    f"{name} must be the name of a configured provider that charges buyers: "
                    f"{', '.join(choices) or 'there is none'}."
                )
    return lines


def _check_choice(
    setting: str, what_it_does: str, choices: list[str], settings: Settings, origins: Origins
) -> list[str]:
    """A line if the provider of new operations is not configured or cannot do it."""
    if getattr(settings.providers, setting) in choices:
        return []
    name, names = origins.name(("providers", setting)), ", ".join(choices) or "there is none"
    return [f"{name} must be the name of a configured provider that {what_it_does}: {names}."]


def _own_or_shared(section: ProvidersSection, name: str, setting: str) -> tuple[str, ...]:
    """The path of the setting that a provider has: its own, or the shared one."""
    if getattr(section.configured[name], setting) is not None:
        return ("providers", name, setting)
    return ("providers", setting)
