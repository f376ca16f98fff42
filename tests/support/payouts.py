"""Helpers for tests of payouts."""

from __future__ import annotations

from typing import Any

from tallystick import Client, new_order
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.platform import FAST_RETRY, eventually, unique_id

RETRY = {
    **FAST_RETRY,
    ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 3),
    ("", RetryReason.SERVER_ERROR): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 2),
}


def create_sale(client: Client, amount: str, seller: str = "") -> str:
    """A seller with sales of the given amount in EUR."""
    seller, checkout_id = seller or unique_id("s"), unique_id("c")
    assert client.create_payment(
        checkout_id,
        [new_order(f"{checkout_id}-1", "buyer-1", seller, amount, "EUR")],
        credit_card_info="tok_visa",
    ).is_payment_done
    return seller


def create_destination(client: Client, seller: str, token: str = "") -> str:
    """A verified destination of a seller; its token is its id unless one is given."""
    destination_id = unique_id("d")
    client.payout.CreatePayoutDestination(
        pb.CreatePayoutDestinationRequest(
            payout_destination_id=destination_id,
            seller_account=seller,
            currency="EUR",
            bank_account_token=token or destination_id,
        )
    )
    get_request = pb.GetPayoutDestinationRequest(payout_destination_id=destination_id)
    assert eventually(
        lambda: (
            client.payout.GetPayoutDestination(get_request).payout_destination.state
            == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
        )
    )
    return destination_id


def create_payout(
    client: Client, seller: str, amount: str = "", *, timeout: float | None = None, **values: Any
) -> payout_pb2.Payout:
    request = pb.CreatePayoutRequest(
        payout_id=values.pop("payout_id", unique_id("p")),
        seller_account=seller,
        amount=amount,
        currency="EUR",
        **values,
    )
    return client.payout.CreatePayout(request, timeout=timeout).payout


def state_name(payout: payout_pb2.Payout) -> str:
    return payout_pb2.PayoutState.Name(payout.payout_state).removeprefix("PAYOUT_STATE_")


def wait_until_booked(
    client: Client, payout_id: str, paid_amount: str, returned_amount: str = "0.00"
) -> None:
    """Waits until the payout is booked with these amounts."""

    def is_booked() -> bool:
        payout = get_payout(client, payout_id).payout
        amounts = (payout.paid_amount, payout.returned_amount)
        return payout.ledger_updated and amounts == (paid_amount, returned_amount)

    assert eventually(is_booked, 30), f"{payout_id} is not booked"


def get_payout(client: Client, payout_id: str) -> pb.GetPayoutResponse:
    return client.payout.GetPayout(pb.GetPayoutRequest(payout_id=payout_id))


def list_payouts(client: Client, seller: str = "", batch_id: str = "") -> list[payout_pb2.Payout]:
    """All payouts of a seller, of a batch, or of everybody."""
    request = pb.ListPayoutsRequest(seller_account=seller, payout_batch_id=batch_id)
    return list(client.pages(client.payout.ListPayouts, request, "payouts"))


def wait_for_state(client: Client, payout_id: str, expected_state: str) -> pb.GetPayoutResponse:
    """The payout's snapshot once it is in the given state, and booked if that state is final."""
    is_final = expected_state in {"PAID", "FAILED", "REJECTED", "CANCELLED", "RETURNED"}

    def reached() -> pb.GetPayoutResponse | None:
        response = get_payout(client, payout_id)
        current = (state_name(response.payout), response.payout.ledger_updated)
        return response if current == (expected_state, is_final) else None

    # Returned as it was seen: the next report may already have changed the payout.
    response = eventually(reached)
    assert response is not None, get_payout(client, payout_id)
    return response


def wallet_amounts(client: Client, seller: str) -> tuple[str, str, str]:
    """The available, held and owed balance."""
    balances = client.wallet.GetWallet(
        wallet_service_pb2.GetWalletRequest(seller_account=seller, currency="EUR")
    ).wallet
    return balances.available, balances.held, balances.owed


def get_batch(client: Client, batch_id: str, **values: object) -> pb.GetPayoutBatchResponse:
    return client.payout.GetPayoutBatch(
        pb.GetPayoutBatchRequest(payout_batch_id=batch_id, **values)  # type: ignore[arg-type]
    )


def wait_until_done(client: Client, batch_id: str) -> pb.GetPayoutBatchResponse:
    """Waits until the batch is DONE and returns it."""
    assert eventually(
        lambda: get_batch(client, batch_id).payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE
    )
    return get_batch(client, batch_id)


def batch_totals(response: pb.GetPayoutBatchResponse) -> dict[str, tuple[int, str, str]]:
    state_enum = payout_pb2.PayoutState
    return {
        state_enum.Name(total.payout_state).removeprefix("PAYOUT_STATE_"): (
            total.payout_count,
            total.amount,
            total.fee,
        )
        for total in response.payout_batch.totals
    }


def set_daily_schedule(
    client: Client, seller: str = "", **values: Any
) -> payout_pb2.PayoutSchedule:
    request = pb.SetPayoutScheduleRequest(
        seller_account=seller,
        currency="EUR",
        interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
        cut_off="16:00",
        time_zone="Europe/Berlin",
        **values,
    )
    return client.payout.SetPayoutSchedule(request).payout_schedule
