"""Who calls, and what roles let them call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason


class Role(StrEnum):
    """What a caller may be."""

    TEAM = "team"
    """Creates payments, and sees the payments and payouts of its owner."""
    PAYOUTS = "payouts"
    """Moves money out for its owner: payouts, batches, schedules and destinations."""
    SERVICE = "service"
    """One of the platform's services."""
    OPERATOR = "operator"
    """On call, or finance: sees everything, sets policies, corrects."""
    AUDITOR = "auditor"
    """Reads the book."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller."""

    name: str
    roles: frozenset[Role]
    account: str = ""
    """The owner that callers of one marketplace share; empty: the caller's own name."""

    @property
    def owner(self) -> str:
        """Whom the caller's resources and sellers belong to."""
        return self.account or self.name

    @property
    def can_see_all(self) -> bool:
        """Whether the resources of every owner are visible."""
        return Role.OPERATOR in self.roles

    def can_see(self, owner: str) -> bool:
        """Whether the resources of an owner are visible."""
        return self.can_see_all or owner == self.owner


def authorize(caller: Caller, allowed_roles: frozenset[Role]) -> Caller:
    """The caller in those of its roles that may call: no other widens what it sees. Raises
    PERMISSION_DENIED if it has none of them.
    """
    roles = caller.roles & allowed_roles
    if not roles:
        role_names = " or ".join(sorted(allowed_roles))
        raise ApiError(
            ErrorReason.PERMISSION_DENIED, f"This method is for callers with the role {role_names}."
        )
    return Caller(caller.name, roles, caller.account)
