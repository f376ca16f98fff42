"""Callers, and the roles that authorize them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason


class Role(StrEnum):
    """A role of a caller."""

    TEAM = "team"
    """Creates payments, and reads the payments and payouts of its owner."""
    PAYOUTS = "payouts"
    """Moves money out for its owner: payouts, batches, schedules and destinations."""
    SERVICE = "service"
    """One of the platform's services."""
    OPERATOR = "operator"
    """On call, or finance: reads everything, sets policies, makes corrections."""
    AUDITOR = "auditor"
    """Reads the ledger."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    roles: frozenset[Role]
    configured_owner: str = ""
    """The owner shared by the callers of one marketplace; empty: the caller's own name."""

    @property
    def owner(self) -> str:
        """The owner of the caller's resources and sellers."""
        return self.configured_owner or self.name

    @property
    def can_see_all(self) -> bool:
        """Whether the resources of every owner are visible."""
        return Role.OPERATOR in self.roles

    def can_see(self, owner: str) -> bool:
        """Whether the resources of an owner are visible."""
        return self.can_see_all or owner == self.owner


def authorize(caller: Caller, allowed_roles: frozenset[Role]) -> Caller:
    """Returns the caller with only its allowed roles, so that no other role widens what it can see.
    Raises PERMISSION_DENIED if it has none of them.
    """
    roles = caller.roles & allowed_roles
    if not roles:
        role_names = " or ".join(sorted(allowed_roles))
        raise ApiError(
            ErrorReason.PERMISSION_DENIED, f"This method is for callers with the role {role_names}."
        )
    return Caller(caller.name, roles, caller.configured_owner)
