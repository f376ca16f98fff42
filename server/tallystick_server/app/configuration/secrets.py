"""The secrets among the settings, so that no log line shows one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from tallystick_server.app.configuration.settings import Settings


def secrets_of(settings: Settings, urls: Iterable[str] = ()) -> set[str]:
    """The tokens, keys and passwords in fields with `repr=False`, and the passwords of `urls`."""
    found = {secret for url in urls for secret in _secrets_in(url)}
    found.update(settings.callers)  # a token is the key of its caller
    found.update(_hidden_values(settings))
    return found


def _hidden_values(model: BaseModel) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not field.repr:
            yield from _secrets_in(value)
        elif isinstance(value, BaseModel):
            yield from _hidden_values(value)
        elif isinstance(value, Mapping):  # the configured providers
            for item in value.values():
                if isinstance(item, BaseModel):
                    yield from _hidden_values(item)


def _secrets_in(value: Any) -> Iterator[str]:
    """The texts of a value. A URL is no secret, but its password is, as it is written and as it is
    meant.
    """
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            yield from _secrets_in(item)
    elif isinstance(value, str) and "://" in value:
        password = urlsplit(value).password or ""
        yield from (password, unquote(password))
    elif isinstance(value, str):
        yield value
