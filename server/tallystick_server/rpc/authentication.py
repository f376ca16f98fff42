"""Authenticates callers: the interface and its two implementations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Protocol

from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError, ErrorReason

DEVELOPER = "dev"
"""The caller of every call without authentication."""


class Authenticator(Protocol):
    """Identifies the caller of a call. Client certificates are in `peer_identities`, all other
    credentials in the metadata.
    """

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        """Returns the caller. Raises CREDENTIALS_MISSING or CREDENTIALS_INVALID."""
        ...


class NoAuthentication:
    """Every caller is `dev` with all roles. The configuration allows this on loopback addresses
    only.
    """

    def __init__(self) -> None:
        self._caller = Caller(DEVELOPER, frozenset(Role))

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        return self._caller


class BearerTokens:
    """The tokens of each caller, from the configuration. They are stored and compared as hashes."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self._callers = {
            sha256(token.encode()).digest(): caller for token, caller in callers.items()
        }

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        header = metadata.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if not header:
            raise ApiError(
                ErrorReason.CREDENTIALS_MISSING,
                'The call has no credentials: send the metadata "authorization: Bearer TOKEN", '
                "with a token from the platform's setting callers.",
            )
        caller = (
            self._callers.get(sha256(token.encode()).digest())
            if scheme.lower() == "bearer"
            else None
        )
        if caller is None:
            raise ApiError(
                ErrorReason.CREDENTIALS_INVALID,
                "The metadata authorization must be Bearer and a token of the platform's setting "
                "callers; this token is unknown.",
            )
        return caller
