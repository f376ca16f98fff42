"""Named callers with tokens, and their clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tallystick import Client
from tallystick_core.access import Caller, Role
from tallystick_server.app.configuration import Settings
from tests.support.platform import ServedPlatform

PLATFORM = "platform"
"""The name of the caller as which services call each other."""


def token_of(name: str) -> str:
    """The token of a caller."""
    return f"token-of-{name}-aaaaaaaa"


def make_callers(roles: Mapping[str, tuple[str, set[Role]]]) -> dict[str, Caller]:
    """Callers by token, from the owner and the roles of each name; owner "": the caller itself."""
    return {
        token_of(name): Caller(name, frozenset(caller_roles), owner)
        for name, (owner, caller_roles) in roles.items()
    }


def settings_with_callers(roles: Mapping[str, tuple[str, set[Role]]], **values: Any) -> Settings:
    """Settings of a platform that authenticates these callers, and itself as `PLATFORM`."""
    return Settings().replace(
        authentication="tokens",
        callers=make_callers({**roles, PLATFORM: ("", {Role.SERVICE})}),
        service_token=token_of(PLATFORM),
        **values,
    )


def client_of(platform: ServedPlatform, name: str) -> Iterator[Client]:
    """A client with the token of a caller, for a fixture."""
    with platform.client(token_of(name)) as client:
        yield client
