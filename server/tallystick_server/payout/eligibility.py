"""Payout eligibility: reads what a payout decision needs besides the wallet balance: schedule terms
and destinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.payout.destination import DestinationState
from tallystick_core.payout.quote import DestinationReadiness, PayoutTerms
from tallystick_core.payout.request import NewPayout
from tallystick_storage.payout import destinations, schedules
from tallystick_storage.payout.destinations import DestinationReadinessRow
from tallystick_storage.payout.schedules import ScheduleRow
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class PayoutContext:
    """Current schedules and destinations by (seller, currency), and named destinations by id."""

    schedules: Mapping[tuple[str, str], ScheduleRow]
    current_destinations: Mapping[tuple[str, str], DestinationReadinessRow]
    requested_destinations: Mapping[str, DestinationReadinessRow]

    @classmethod
    def read(
        cls,
        connection: Connection,
        keys: Sequence[tuple[str, str]],
        owners: Mapping[str, str],
        destination_ids: Sequence[str],
    ) -> PayoutContext:
        """`owners`: owners of the sellers; unowned sellers are missing."""
        requested_rows = (
            destinations.find_with_readiness(connection, destination_ids) if destination_ids else {}
        )
        return cls(
            schedules.find_effective_schedules(connection, keys),
            destinations.find_current(connection, keys, owners),
            requested_rows,
        )

    def terms(self, key: tuple[str, str]) -> PayoutTerms:
        """The terms on which a seller is paid."""
        row = self.schedules.get(key)
        return (
            PayoutTerms() if row is None else PayoutTerms(row.minimum_amount, row.fee, row.reserve)
        )

    def find_destination(self, payout: NewPayout, owner: str) -> DestinationReadinessRow | None:
        """The destination of a payout; it must belong to the seller's owner.

        Raises NOT_FOUND, or FIELD_INVALID for a named destination that does not fit.
        """
        if not payout.payout_destination_id:
            return self.current_destinations.get((payout.seller_account, payout.currency))
        row = self.requested_destinations.get(payout.payout_destination_id)
        if row is None or row.owner != owner:
            raise not_found_error(
                "payout destination", payout.payout_destination_id, "payout_destination_id"
            )
        if (row.seller_account, row.currency) != (payout.seller_account, payout.currency):
            message = "payout_destination_id must be a destination of the seller in this currency."
            raise ApiError(ErrorReason.FIELD_INVALID, message, field="payout_destination_id")
        return row


def readiness_of(destination: DestinationReadinessRow | None) -> DestinationReadiness | None:
    """The readiness of a destination, for `quote_amount`."""
    return (
        None
        if destination is None
        else DestinationReadiness(
            DestinationState(destination.state),
            in_cooldown=destination.is_in_cooldown,
            awaits_approval=destination.awaits_approval,
        )
    )


def require_seller_owner(seller_account: str, owner: str, owners: Mapping[str, str]) -> str:
    """The seller's owner, which must be `owner`; "": any owner.

    Raises NOT_FOUND for another owner's seller and for an unowned one.
    """
    seller_owner = owners.get(seller_account, "")
    if not seller_owner or owner not in ("", seller_owner):
        raise not_found_error("seller", seller_account)
    return seller_owner
