"""Payout destinations: creation, verification and disabling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.payout.destination import DestinationTrigger
from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    Pending,
    PendingReason,
    RetryReason,
    Unknown,
)
from tallystick_server.payout.destination_verification import end_destinations
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import expect_error_reason
from tests.support.payout_operations import (
    approve_payout,
    close_dead_letter,
    is_alert_ended_with,
    reused_field,
    wait_for_alerted_dead_letter,
    wait_for_dead_letter,
)
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    WAITING_FOR_LOCK_QUERY,
    ServedPlatform,
    database_of,
    eventually,
    unique_id,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seller_account", "other"),
        ("currency", "USD"),
        ("bank_account_token", "ba_other"),
        ("description", "savings"),
    ],
)
def test_a_reused_destination_id_names_the_differing_field(
    shop_client: Client, field: str, value: str
) -> None:
    """A repeated destination id with another value is IDEMPOTENCY_KEY_REUSED, and the metadata
    names the field.
    """
    values = {
        "seller_account": create_sale(shop_client, "10.00"),
        "currency": "EUR",
        "bank_account_token": "ba_ok",
        "description": "main",
    }
    id_ = unique_id("d")
    shop_client.payout.CreatePayoutDestination(
        pb.CreatePayoutDestinationRequest(payout_destination_id=id_, **values)
    )
    repeated_request = pb.CreatePayoutDestinationRequest(
        payout_destination_id=id_, **{**values, field: value}
    )
    assert reused_field(shop_client.payout.CreatePayoutDestination, repeated_request) == field


def test_a_disabled_destination_cancels_its_unsent_payouts(
    shop_client: Client, operator_client: Client
) -> None:
    """A payout that waits for approval is CANCELLED together with its destination, and its money is
    released; a disabled destination is final, and repeats are replays.
    """
    seller = create_sale(shop_client, "200.00")
    to = create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "150.00")
    request = pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="sold the bank")
    for _ in range(2):
        assert (
            shop_client.payout.DisablePayoutDestination(request).payout_destination.state
            == payout_pb2.PAYOUT_DESTINATION_STATE_DISABLED
        )
    payout_response = wait_for_state(shop_client, payout.payout_id, "CANCELLED")
    assert (
        payout_response.history[-2].transition_reason
        == history_pb2.TRANSITION_REASON_DESTINATION_ENDED
    )
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    other_reason = pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="other")
    assert reused_field(shop_client.payout.DisablePayoutDestination, other_reason) == "reason"
    assert expect_error_reason(approve_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_destinations_that_end_together_lock_operations_by_id(
    approval_platform: ServedPlatform, shop_client: Client
) -> None:
    """Where an answer ends two destinations, the operations of the payouts to both are locked by
    id: a transaction that waits for the first holds no lock on the second.
    """
    sellers = [create_sale(shop_client, "200.00") for _ in range(2)]
    (early_seller, to_early), (late_seller, to_late) = sorted(
        ((seller, create_destination(shop_client, seller)) for seller in sellers),
        key=lambda pair: pair[1],
    )
    last, first = unique_id("pz"), unique_id("pa")
    create_payout(shop_client, early_seller, "150.00", payout_id=last)
    create_payout(shop_client, late_seller, "150.00", payout_id=first)

    async def end() -> None:
        await database_of(approval_platform, "payout").transact(
            lambda connection: end_destinations(
                connection, [to_early, to_late], DestinationTrigger.ACCOUNT_REJECTED
            )
        )

    with (
        psycopg.connect(approval_platform.databases.admin) as holder,
        psycopg.connect(approval_platform.databases.admin, autocommit=True) as admin,
    ):
        holder.execute("select from payout.operation where operation_id = %s for update", (first,))
        with ThreadPoolExecutor(1) as pool:
            end_future = pool.submit(approval_platform.run_in_loop, end)
            assert eventually(lambda: admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() == (1,))
            admin.execute(
                "select from payout.operation where operation_id = %s for update nowait",
                (last,),
            )
            holder.commit()
            end_future.result(30)
    for payout_id in (first, last):
        wait_for_state(shop_client, payout_id, "CANCELLED")


def test_a_destination_is_verified_before_use(
    shop_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """Nothing is paid to a destination until the provider has verified it. A rejection is final,
    and a late answer is awaited.
    """
    seller = create_sale(shop_client, "10.00")
    bad, slow = unique_id("d"), unique_id("d")
    payout_provider.verifications[bad].append(
        Declined(PayoutFailure.DESTINATION_REJECTED, "no_account")
    )
    payout_provider.verifications[slow].extend(
        [
            Pending(PendingReason.PROVIDER_REVIEW),
            Unknown("lost"),
            Pending(PendingReason.PROVIDER_REVIEW),
        ]
    )

    def register(id_: str) -> None:
        request = pb.CreatePayoutDestinationRequest(
            payout_destination_id=id_, seller_account=seller, currency="EUR", bank_account_token=id_
        )
        assert (
            shop_client.payout.CreatePayoutDestination(request).payout_destination.state
            == payout_pb2.PAYOUT_DESTINATION_STATE_PENDING_VERIFICATION
        )
        assert (
            expect_error_reason(
                lambda: create_payout(shop_client, seller, "1.00", payout_destination_id=id_)
            )
            == "DESTINATION_UNUSABLE"
        )

    def get(id_: str) -> payout_pb2.PayoutDestination:
        return shop_client.payout.GetPayoutDestination(
            pb.GetPayoutDestinationRequest(payout_destination_id=id_)
        ).payout_destination

    register(bad)
    assert eventually(lambda: get(bad).state == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE)
    assert get(bad).decline_code == "no_account"
    register(slow)
    assert eventually(lambda: get(slow).state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)
    wait_for_state(shop_client, create_payout(shop_client, seller, "1.00").payout_id, "PAID")


def test_a_dead_lettered_verification_is_closed_or_requeued(
    shop_client: Client, operator_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A verification that is rejected as malformed is a dead letter of the destination; closed, it
    is UNUSABLE; requeued, it is sent again.
    """
    seller = create_sale(shop_client, "10.00")
    first_id, two = unique_id("d"), unique_id("d")
    for id_ in (first_id, two):
        payout_provider.verifications[id_].extend(
            [Unknown("malformed", RetryReason.REJECTED)] * (3 if id_ == first_id else 1)
        )
        shop_client.payout.CreatePayoutDestination(
            pb.CreatePayoutDestinationRequest(
                payout_destination_id=id_,
                seller_account=seller,
                currency="EUR",
                bank_account_token=id_,
            )
        )
    dead_letters = {
        id_: wait_for_dead_letter(operator_client, f"payoutDestinations/{id_}")
        for id_ in (first_id, two)
    }
    dead_letter_response = operator_client.payout.GetDeadLetter(
        operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letters[first_id].dead_letter_id)
    )
    assert dead_letter_response.payout_destination.payout_destination_id == first_id
    assert (
        close_dead_letter(operator_client, dead_letters[first_id]).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    operator_client.payout.RetryDeadLetter(
        operator_pb2.RetryDeadLetterRequest(
            dead_letter_id=dead_letters[two].dead_letter_id, reason="again"
        )
    )

    def get(id_: str) -> int:
        return shop_client.payout.GetPayoutDestination(
            pb.GetPayoutDestinationRequest(payout_destination_id=id_)
        ).payout_destination.state

    assert get(first_id) == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
    assert eventually(lambda: get(two) == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)


def test_a_disabled_destination_ends_its_dead_letter(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Disabling a destination whose verification is a dead letter ends the dead letter and its
    alert in the same transaction, each with its event.
    """
    with (
        polling_platform.client(token_of("operator")) as operator,
        polling_platform.client(token_of("shop")) as shop,
    ):
        seller, to = create_sale(shop, "10.00"), unique_id("d")
        payout_provider.verifications[to].append(Unknown("malformed", RetryReason.REJECTED))
        new = pb.CreatePayoutDestinationRequest(
            payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token=to
        )
        shop.payout.CreatePayoutDestination(new)
        dead_letter = wait_for_alerted_dead_letter(operator, f"payoutDestinations/{to}")
        shop.payout.DisablePayoutDestination(
            pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="a typing error")
        )
        assert is_alert_ended_with(polling_platform, dead_letter)
        retry = operator_pb2.RetryDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id, reason="again"
        )
        assert expect_error_reason(operator.payout.RetryDeadLetter, retry) == "INVALID_STATE"
        dead_letter_event = eventually(
            lambda: [
                event
                for event in operator.events(
                    aggregate_id=f"deadLetters/{dead_letter.dead_letter_id}"
                )
                if event.aggregate_version == 2
            ]
        )
        assert [event.dead_letter.state for event in dead_letter_event] == [
            operator_pb2.DEAD_LETTER_STATE_RESOLVED
        ]
