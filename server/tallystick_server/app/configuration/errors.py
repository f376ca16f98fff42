"""Error messages for invalid settings: one line for each, without its value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tallystick_server.app.configuration.providers import CONFIGURED_PROVIDERS
from tallystick_server.app.configuration.settings import Settings
from tallystick_server.providers.provider_type import ProviderSettings
from tallystick_server.setting_types import InvalidSetting, Kind, expected_number

Path: TypeAlias = tuple[str, ...]
Fields: TypeAlias = Mapping[Path, FieldInfo]
"""Settings by path."""


def collect_fields(providers: Mapping[str, type[ProviderSettings]]) -> Fields:
    """Every setting, with sections resolved. `providers`: the settings of each configured provider,
    by name.
    """
    return dict(_iterate_fields(Settings, (), providers))


def _iterate_fields(
    model: type[BaseModel], section: Path, providers: Mapping[str, type[ProviderSettings]]
) -> Iterator[tuple[Path, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _iterate_fields(field.annotation, (*section, name), providers)
        elif (*section, name) != CONFIGURED_PROVIDERS:
            yield (*section, name), field
        else:
            for provider, settings in providers.items():
                yield from _iterate_fields(settings, (*section, provider), {})


def variable_of(path: Path) -> str:
    """The environment variable of a setting."""
    return "TALLYSTICK_" + "__".join(path).upper()


def setting_name(path: Path) -> str:
    """Both names of a setting: of the file and of the environment."""
    return f"{'.'.join(path)} ({variable_of(path)})"


def kind_of(field: FieldInfo) -> Kind:
    """The description of the setting's type."""
    return next(item for item in _metadata(field) if isinstance(item, Kind))


def expected(field: FieldInfo) -> str:
    """What a value of the setting must be, such as "a number of seconds from 0 to 60"."""
    kind = kind_of(field)
    if kind.expected:
        return kind.expected
    bounds = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("ge", "le")
        if hasattr(item, name)
    }
    return expected_number(kind.name, kind.unit, bounds["ge"], bounds["le"]) if bounds else ""


def _metadata(field: FieldInfo) -> Iterable[Any]:
    yield from field.metadata
    for part in getattr(field.annotation, "__args__", ()):  # of Seconds | None
        yield from getattr(part, "__metadata__", ())


@dataclass(frozen=True, slots=True)
class Origins:
    """The source of each setting."""

    environment: Mapping[str, str]
    file: str
    table: Mapping[str, Any]

    def name(self, path: Path) -> str:
        """The setting as the user wrote it, or both of its names if it has the default."""
        variable = variable_of(path)
        if variable in self.environment:
            return variable
        return f"{self.file}: {'.'.join(path)}" if self._is_in_file(path) else setting_name(path)

    def name_below(self, path: Path, key: str) -> str:
        """A part of a setting's value as the user wrote it."""
        if not key:
            return self.name(path)
        if variable_of(path) in self.environment:
            return f"{variable_of(path)}: {key}"
        return self.name(path) + ("" if key.startswith("[") else ".") + key

    def _is_in_file(self, path: Path) -> bool:
        table: Any = self.table
        for name in path:
            if not isinstance(table, Mapping) or name not in table:
                return False
            table = table[name]
        return True


def describe_errors(
    error: ValidationError, origins: Origins, fields: Fields, section: Path = ()
) -> list[str]:
    """A line for each problem with the values of a section; (): of all."""
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        path = (*section, *(str(part) for part in item["loc"]))
        cause = item.get("ctx", {}).get("error")
        if item["type"] == "extra_forbidden":
            lines.append(unknown_setting(f"{origins.file}: {'.'.join(path)}", path, fields))
        elif isinstance(cause, InvalidSetting):
            lines += [f"{origins.name_below(path, key)} {text}." for key, text in cause.problems]
        elif path in fields:
            lines.append(f"{origins.name(path)} must be {expected(fields[path])}.")
        else:
            lines.append(f"{origins.name(path)} must be a table.")
    return lines


def unknown_setting(name: str, path: Path, fields: Fields) -> str:
    """The line for a setting that does not exist. `name`: as the user wrote it."""
    nearest = max(fields, key=lambda setting_path: _nearness(setting_path, path))
    is_variable = name.startswith("TALLYSTICK_")
    suggestion = variable_of(nearest) if is_variable else ".".join(nearest)
    return f"{name} is not a setting. Did you mean {suggestion}?"


def _nearness(setting_path: Path, path: Path) -> float:
    """The similarity of two paths, as a whole and word by word. So a setting is also found by its
    name in another section, or by a key of its table.
    """
    setting_name, name = "_".join(setting_path), "_".join(path).lower()
    if name.startswith(f"{setting_name}_"):
        return math.inf
    words = [word for word in name.split("_") if word]
    by_word = [max(_likeness(other, word) for other in setting_name.split("_")) for word in words]
    return _likeness(setting_name, name) + 2 * sum(by_word) / max(len(by_word), 1)


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
