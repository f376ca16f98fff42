"""Who calls: a port, and the two built-in answers to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Protocol

from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError, ErrorReason

DEVELOPER = "dev"
"""Who everyone is without authentication."""


class Authenticator(Protocol):
    """Tells who a call comes from. Client certificates come in `peer_identities`, everything else
    in the metadata.
    """

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        """The caller. Raises CREDENTIALS_MISSING or CREDENTIALS_INVALID."""
        ...


class NoAuthentication:
    """Everyone is `dev` and may do everything. For loopback addresses only, which the configuration
    checks.
    """

    def __init__(self) -> None:
        self._caller = Caller(DEVELOPER, frozenset(Role))

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        return self._caller


class BearerTokens:
    """One set of tokens for each caller, from the configuration. Tokens are kept and compared as
    hashes.
    """

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
                "The metadata authorization must be Bearer and a token that the platform's "
                "setting callers names; this one is not known.",
            )
        return caller
