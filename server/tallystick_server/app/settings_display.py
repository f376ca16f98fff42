"""The settings of a process as a person may see them: a secret shows only whether it is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from tallystick_server.app.configuration.errors import kind_of
from tallystick_server.app.configuration.providers import CONFIGURED_PROVIDERS
from tallystick_server.app.configuration.settings import Settings
from tallystick_server.http.console.pages.settings import ShownSetting


def show_settings(settings: Settings) -> list[ShownSetting]:
    """All settings, in the order of their sections. A field that may hold a secret has
    `repr=False`.
    """
    return list(_describe(settings, ()))


def _describe(model: BaseModel, path: tuple[str, ...]) -> Iterator[ShownSetting]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _describe(value, (*path, name))
        elif (*path, name) == CONFIGURED_PROVIDERS:
            for key, item in value.items():
                yield from _describe(item, (*path, key))
        else:
            write = kind_of(field).write or _format
            text = write(value) if field.repr else "set" if value else "not set"
            is_default = not field.is_required() and value == field.default
            yield ShownSetting(".".join((*path, name)), text, is_default)


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_format(item)}" for key, item in value.items())
    if isinstance(value, frozenset):
        return ", ".join(sorted(map(_format, value)))
    if isinstance(value, tuple):
        return ", ".join(map(_format, value))
    return f"{value:.10g}" if isinstance(value, float) else str(value)
