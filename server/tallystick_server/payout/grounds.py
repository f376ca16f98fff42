"""Grounds: what payouts are judged by, beside their sellers' money: the terms of schedules, and destinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payable import Destination, DestinationState, Terms
from tallystick_core.payout import NewPayout
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_storage.payout import destination as destinations
from tallystick_storage.payout import schedule as schedules


@dataclass(frozen=True, slots=True)
class Grounds:
    """By (seller, currency) the schedules that hold and the current destinations, and by id the destinations that are named."""

    schedules: Mapping[tuple[str, str], Row[Any]]
    current: Mapping[tuple[str, str], Row[Any]]
    named: Mapping[str, Row[Any]]

    @classmethod
    def read(cls, connection: Connection, keys: Sequence[tuple[str, str]], owners: Mapping[str, str], destination_ids: Sequence[str]) -> Grounds:
        """`owners`: by seller, those that belong to somebody."""
        named = destinations.named(connection, destination_ids) if destination_ids else {}
        return cls(schedules.holding(connection, keys), destinations.current(connection, keys, owners), named)

    def terms(self, key: tuple[str, str]) -> Terms:
        """On what terms a seller is paid."""
        row = self.schedules.get(key)
        return Terms() if row is None else Terms(row.minimum_amount, row.fee, row.reserve)

    def destination(self, payout: NewPayout, owner: str) -> Row[Any] | None:
        """Where it is to be paid, a destination of the seller's owner. Raises NOT_FOUND, FIELD_INVALID for one that is named and cannot be it."""
        if not payout.payout_destination_id:
            return self.current.get((payout.seller_account, payout.currency))
        row = self.named.get(payout.payout_destination_id)
        if row is None or row.owner != owner:
            raise not_found("payout destination", payout.payout_destination_id, "payout_destination_id")
        if (row.seller_account, row.currency) != (payout.seller_account, payout.currency):
            message = "payout_destination_id must be a destination of the seller in this currency."
            raise Refused(Reason.FIELD_INVALID, message, field="payout_destination_id")
        return row


def place_of(destination: Row[Any] | None) -> Destination | None:
    """A destination as the rules know it."""
    return (
        None
        if destination is None
        else Destination(DestinationState(destination.state), waits=destination.waits, awaits_approval=destination.awaits_approval)
    )


def owner_of_seller(seller_account: str, owner: str, owners: Mapping[str, str]) -> str:
    """Whom a seller belongs to, if that is the owner that names it; "": whoever it is. Raises NOT_FOUND for another's, and for nobody's."""
    found = owners.get(seller_account, "")
    if not found or owner not in ("", found):
        raise not_found("seller", seller_account)
    return found
