"""Whom sellers belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.refusal import Reason, Refused, key_reused
from tallystick_core.table import Verb, forbidden


class AssignmentState(StrEnum):
    """How far a seller's move to another owner has come."""

    REQUESTED = "REQUESTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class SellerClaim:
    """A seller, and the owner that claims it should it belong to nobody; "": it is only looked up."""

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


def granted_claims(claims: Sequence[SellerClaim], owners: Mapping[str, str]) -> dict[str, str]:
    """Seller to owner: the claims of sellers that belong to nobody, given the others' owners. A group gets all its sellers or none; first come."""
    groups: dict[tuple[int, int], list[SellerClaim]] = {}
    for place, claim in enumerate(claims):
        if claim.owner:
            groups.setdefault((claim.group, 0 if claim.group else place), []).append(claim)
    granted: dict[str, str] = {}
    for group in groups.values():
        wanted = {claim.seller_account: claim.owner for claim in group}
        if all(wanted[claim.seller_account] == claim.owner for claim in group) and all(
            owners.get(seller, granted.get(seller, owner)) == owner for seller, owner in wanted.items()
        ):
            granted |= {seller: owner for seller, owner in wanted.items() if seller not in owners}
    return granted


def require_move(owner: str, previous_owner: str) -> None:
    """Raises FIELD_INVALID where the seller belongs to the owner already."""
    if owner == previous_owner:
        raise Refused(Reason.FIELD_INVALID, "owner must be another than the seller's present owner.", field="owner")


def decide_assignment(state: AssignmentState, decision: AssignmentState, requested_by: str, decided_by: str) -> bool:
    """Whether the decision changes anything; an equal one was made before, if not.

    Raises STATE_FORBIDS for one that was decided otherwise, SECOND_PERSON_REQUIRED where whoever asked for it approves it.
    """
    if state is decision:
        return False
    if state is not AssignmentState.REQUESTED:
        raise forbidden("assignment", state, Verb("APPROVE", "approved") if decision is AssignmentState.APPROVED else Verb("REJECT", "rejected"))
    if decision is AssignmentState.APPROVED and decided_by == requested_by:
        raise Refused(Reason.SECOND_PERSON_REQUIRED, "Another operator than the one who asked for the assignment has to approve it.")
    return True


def require_unmoved(previous_owner: str, owner: str) -> None:
    """Raises STATE_FORBIDS where a seller belongs to another owner than when its assignment was asked for; "": to nobody."""
    if owner != previous_owner:
        before, present = (f"to {one}" if one else "to nobody" for one in (previous_owner, owner))
        message = f"The seller belonged {before} when the assignment was asked for, and belongs {present} now; reject it, and ask for a new one."
        raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": AssignmentState.REQUESTED, "verb": "APPROVE"})


def first_difference(sent: NewAssignment, stored: NewAssignment) -> None:
    """Raises KEY_REUSED with the first field in which two assignments of one id differ."""
    for name in ("seller_account", "owner", "reason", "requested_by"):
        if getattr(sent, name) != getattr(stored, name):
            raise key_reused(name)
