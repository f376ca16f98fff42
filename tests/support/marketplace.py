"""Helpers for tests of owners: a marketplace with two callers, a competitor, and operators."""

from __future__ import annotations

from tallystick import Client, new_order
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_service_pb2 as wb
from tallystick_core.access import Role
from tests.support.callers import settings_with_callers
from tests.support.platform import FAST_RETRY, unique_id

CALLERS = {
    "checkout": ("market", {Role.TEAM}),
    "payouts": ("market", {Role.PAYOUTS}),
    "rival": ("", {Role.TEAM, Role.PAYOUTS}),
    "operator": ("", {Role.OPERATOR}),
    "second-operator": ("", {Role.OPERATOR}),
    "other-service": ("", {Role.SERVICE}),
}
"""The owner and the roles of each caller."""
SETTINGS = settings_with_callers(
    CALLERS,
    retry=FAST_RETRY,
    worker__scan_interval=0.2,
    payout__destination_cooldown=0,
    payment__seller_owner_max_age=0,
    payout__destination_approval_threshold={"EUR": 100_000},
)


def create_paid_order(client: Client, seller: str, amount: str = "10.00") -> str:
    """Creates a payment of one order and waits for it; returns its id."""
    checkout_id = unique_id("c")
    client.create_payment(
        checkout_id,
        [new_order(f"{checkout_id}-1", "buyer-1", seller, amount, "EUR")],
        credit_card_info="tok_visa",
    )
    return checkout_id


def preview_payout(client: Client, seller: str) -> pb.PreviewPayoutResponse:
    return client.payout.PreviewPayout(
        pb.PreviewPayoutRequest(seller_account=seller, currency="EUR")
    )


def register_destination(
    client: Client, seller: str, destination_id: str = ""
) -> payout_pb2.PayoutDestination:
    destination_id = destination_id or unique_id("d")
    request = pb.CreatePayoutDestinationRequest(
        payout_destination_id=destination_id,
        seller_account=seller,
        currency="EUR",
        bank_account_token=destination_id,
    )
    return client.payout.CreatePayoutDestination(request).payout_destination


def set_schedule(
    client: Client, seller: str, fee: str = "", minimum_amount: str = "", reserve: str = ""
) -> payout_pb2.PayoutSchedule:
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    request = pb.SetPayoutScheduleRequest(
        seller_account=seller,
        currency="EUR",
        interval=manual,
        fee=fee,
        minimum_amount=minimum_amount,
        reserve=reserve,
    )
    return client.payout.SetPayoutSchedule(request).payout_schedule


def owner_of(client: Client, seller: str) -> str:
    return client.wallet.GetSeller(wb.GetSellerRequest(seller_account=seller)).seller.owner
