"""The owners of sellers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason, key_reused_error, state_error
from tallystick_core.state_machine import Verb, invalid_state_error


class AssignmentState(StrEnum):
    """The state of a seller's assignment to another owner."""

    REQUESTED = "REQUESTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class SellerClaim:
    """A claim on a seller by an owner, effective if the seller has no owner. `owner` "": only look
    up the seller.
    """

    seller_account: str
    owner: str = ""
    group: int = 0
    """All claims of a group succeed or none does; 0: a group of its own."""


@dataclass(frozen=True, slots=True)
class NewAssignment:
    """An operator's request to assign a seller to another owner."""

    seller_assignment_id: str
    seller_account: str
    owner: str
    requested_by: str
    reason: str


def grant_claims(claims: Sequence[SellerClaim], owners: Mapping[str, str]) -> dict[str, str]:
    """Returns the granted claims, seller to owner. Only sellers without an owner are granted;
    `owners` are the existing owners. A group gets all its sellers or none, first come, first
    served.
    """
    groups: dict[tuple[int, int], list[SellerClaim]] = {}
    for index, claim in enumerate(claims):
        if claim.owner:
            groups.setdefault((claim.group, 0 if claim.group else index), []).append(claim)
    owners_after = dict(owners)
    for group in groups.values():
        claimed_owners = {claim.seller_account: claim.owner for claim in group}
        if all(claimed_owners[claim.seller_account] == claim.owner for claim in group) and all(
            owners_after.get(seller, owner) == owner for seller, owner in claimed_owners.items()
        ):
            owners_after |= claimed_owners
    return {seller: owner for seller, owner in owners_after.items() if seller not in owners}


def require_new_owner(owner: str, previous_owner: str) -> None:
    """Raises FIELD_INVALID if the seller already belongs to the owner."""
    if owner == previous_owner:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "owner must not be the seller's current owner.",
            field="owner",
        )


def decide_assignment(
    state: AssignmentState, decision: AssignmentState, requested_by: str, decided_by: str
) -> bool:
    """Whether the decision changes anything; False if the same decision was made before.

    Raises INVALID_STATE if the other decision was made, SECOND_APPROVER_REQUIRED if the requester
    approves their own request.
    """
    if state is decision:
        return False
    if state is not AssignmentState.REQUESTED:
        raise invalid_state_error(
            "assignment",
            state,
            Verb("APPROVE", "approved")
            if decision is AssignmentState.APPROVED
            else Verb("REJECT", "rejected"),
        )
    if decision is AssignmentState.APPROVED and decided_by == requested_by:
        raise ApiError(
            ErrorReason.SECOND_APPROVER_REQUIRED,
            "A second operator must approve the assignment; its requester cannot.",
        )
    return True


def require_unchanged_owner(previous_owner: str, owner: str) -> None:
    """Raises INVALID_STATE if the seller's owner has changed since the assignment was requested. An
    empty owner means that the seller belongs to nobody.
    """
    if owner != previous_owner:
        previous, current = (
            f"to {owner_name}" if owner_name else "to nobody"
            for owner_name in (previous_owner, owner)
        )
        message = (
            f"The seller belonged {previous} when the assignment was requested, and belongs "
            f"{current} now. Reject it and request a new one."
        )
        raise state_error(message, AssignmentState.REQUESTED, "APPROVE")


def require_same_assignment(sent: NewAssignment, stored: NewAssignment) -> None:
    """Raises IDEMPOTENCY_KEY_REUSED with the first field in which two assignments with the same id
    differ.
    """
    for name in ("seller_account", "owner", "reason", "requested_by"):
        if getattr(sent, name) != getattr(stored, name):
            raise key_reused_error(name)
