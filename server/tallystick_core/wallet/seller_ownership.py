"""Whom sellers belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason, key_reused_error
from tallystick_core.state_machine import Verb, invalid_state_error


class AssignmentState(StrEnum):
    """How far a seller's move to another owner has come."""

    REQUESTED = "REQUESTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class SellerClaim:
    """A seller, and the owner that claims it should it belong to nobody; "": it is only
    looked up.
    """

    seller_account: str
    owner: str = ""
    group: int = 0
    """The claims of a group are made all or none; 0: a group of its own."""


@dataclass(frozen=True, slots=True)
class NewAssignment:
    """A seller's move to another owner, as an operator asks for it."""

    seller_assignment_id: str
    seller_account: str
    owner: str
    requested_by: str
    reason: str


def grant_claims(claims: Sequence[SellerClaim], owners: Mapping[str, str]) -> dict[str, str]:
    """Seller to owner: the claims of sellers that belong to nobody, given the others' owners. A
    group gets all its sellers or none; first come.
    """
    groups: dict[tuple[int, int], list[SellerClaim]] = {}
    for index, claim in enumerate(claims):
        if claim.owner:
            groups.setdefault((claim.group, 0 if claim.group else index), []).append(claim)
    grants: dict[str, str] = {}
    for group in groups.values():
        claimed_owners = {claim.seller_account: claim.owner for claim in group}
        if all(claimed_owners[claim.seller_account] == claim.owner for claim in group) and all(
            owners.get(seller, grants.get(seller, owner)) == owner
            for seller, owner in claimed_owners.items()
        ):
            grants |= {
                seller: owner for seller, owner in claimed_owners.items() if seller not in owners
            }
    return grants


def require_new_owner(owner: str, previous_owner: str) -> None:
    """Raises FIELD_INVALID where the seller belongs to the owner already."""
    if owner == previous_owner:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "owner must be another than the seller's present owner.",
            field="owner",
        )


def decide_assignment(
    state: AssignmentState, decision: AssignmentState, requested_by: str, decided_by: str
) -> bool:
    """Whether the decision changes anything; an equal one was made before, if not.

    Raises INVALID_STATE for one that was decided otherwise, SECOND_APPROVER_REQUIRED where whoever
    asked for it approves it.
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
            "Another operator than the one who asked for the assignment has to approve it.",
        )
    return True


def require_unchanged_owner(previous_owner: str, owner: str) -> None:
    """Raises INVALID_STATE where a seller belongs to another owner than when its assignment was
    asked for; "": to nobody.
    """
    if owner != previous_owner:
        previous, current = (
            f"to {owner_name}" if owner_name else "to nobody"
            for owner_name in (previous_owner, owner)
        )
        message = (
            f"The seller belonged {previous} when the assignment was asked for, and belongs "
            f"{current} now; reject it, and ask for a new one."
        )
        raise ApiError(
            ErrorReason.INVALID_STATE,
            message,
            metadata={"state": AssignmentState.REQUESTED, "verb": "APPROVE"},
        )


def require_same_assignment(sent: NewAssignment, stored: NewAssignment) -> None:
    """Raises IDEMPOTENCY_KEY_REUSED with the first field in which two assignments of one id
    differ.
    """
    for name in ("seller_account", "owner", "reason", "requested_by"):
        if getattr(sent, name) != getattr(stored, name):
            raise key_reused_error(name)
