"""The hold of a payout: rejected, in doubt, or with the id of another hold."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import expect_error_reason
from tests.support.payout_operations import (
    RETRY,
    cancel_payout,
    close_dead_letter,
    wait_for_dead_letter,
)
from tests.support.payouts import (
    create_destination,
    create_sale,
    get_payout,
    state_name,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)


def test_a_payout_with_a_conflicting_hold_is_dead_lettered(
    approval_platform: ServedPlatform,
    shop_client: Client,
    operator_client: Client,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """A hold that conflicts with another under its id says nothing about the seller's balance. The
    payout is a dead letter in CREATED, nothing is sent, and closing is rejected.
    """
    seller = create_sale(shop_client, "10.00")
    create_destination(shop_client, seller)
    payout_id = unique_id("p")
    hold = wallet_service_pb2.NewHold(
        hold_id=f"payouts/{payout_id}",
        caller="shop",
        seller_account=seller,
        amount="1.00",
        currency="EUR",
        purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
    )
    with approval_platform.client(token_of("platform")) as service:
        service.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
    request = pb.CreatePayoutRequest(
        payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR"
    )
    shop_client.payout.CreatePayout(request, timeout=1)
    dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout_id}")
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_BOOKING_REJECTED
    assert expect_error_reason(close_dead_letter, operator_client, dead_letter) == "INVALID_STATE"
    # The hold under its id may belong to another payout.
    assert expect_error_reason(cancel_payout, shop_client, payout_id) == "INVALID_STATE"
    operator_client.payout.RetryDeadLetter(
        operator_pb2.RetryDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id, reason="again"
        )
    )
    assert (
        wait_for_dead_letter(operator_client, f"payouts/{payout_id}").dead_letter_id
        != dead_letter.dead_letter_id
    )
    assert state_name(get_payout(shop_client, payout_id).payout) == "CREATED"
    assert payout_id not in {request.payout_id for request in payout_provider.submitted_requests}


@pytest.mark.parametrize(
    "policy",
    [RetryPolicy(RetryStrategy.CANCEL), RetryPolicy(RetryStrategy.FIXED, 3600, 3600, 5)],
    ids=["retried dead letter", "waiting for a retry"],
)
def test_a_payout_with_a_rejected_hold_cannot_be_cancelled(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider, policy: RetryPolicy
) -> None:
    """Once the wallet has rejected a payout's hold, the payout cannot be cancelled before it is
    held, whether it waits for a retry or was requeued.
    """
    settings = Settings().replace(
        retry={**RETRY, ("", RetryReason.BOOKING_REJECTED): policy},
        worker__scan_interval=3600,
        payout__destination_cooldown=0,
    )
    dependencies = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        create_destination(client, seller)
        payout_id = unique_id("p")
        of_another = wallet_service_pb2.NewHold(
            hold_id=f"payouts/{payout_id}",
            caller="shop",
            seller_account=seller,
            amount="1.00",
            currency="EUR",
            purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
        )
        client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[of_another]))
        client.payout.CreatePayout(
            pb.CreatePayoutRequest(
                payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR"
            ),
            timeout=1,
        )
        if policy.strategy is RetryStrategy.CANCEL:
            wait_for_dead_letter(client, f"payouts/{payout_id}")
            client.payout.RetryPayout(
                pb.RetryPayoutRequest(
                    payout_id=payout_id, reason="again", request_id=unique_id("r")
                )
            )
        else:
            assert eventually(lambda: _retry_reason(platform, payout_id) == "BOOKING_REJECTED")
        assert expect_error_reason(cancel_payout, client, payout_id) == "INVALID_STATE"
        assert state_name(get_payout(client, payout_id).payout) == "CREATED"
        hold = client.wallet.GetHold(
            wallet_service_pb2.GetHoldRequest(hold_id=of_another.hold_id)
        ).hold
        assert hold.state == wallet_pb2.HOLD_STATE_OPEN


def _retry_reason(platform: ServedPlatform, payout_id: str) -> str:
    with psycopg.connect(platform.databases.admin) as connection:
        row = connection.execute(
            "select retry_reason from payout.operation where operation_id = %s", [payout_id]
        ).fetchone()
    return str((row or ("",))[0])


def test_a_payout_ignores_another_hold_with_its_id(
    approval_platform: ServedPlatform, shop_client: Client, operator_client: Client
) -> None:
    """A service's hold whose id is a payout's does not prevent the payout from being held and paid,
    and the payout does not end it.
    """
    seller = create_sale(shop_client, "10.00")
    create_destination(shop_client, seller)
    payout_id = unique_id("p")
    hold = wallet_service_pb2.NewHold(
        hold_id=payout_id,
        caller="risk",
        seller_account=seller,
        amount="1.00",
        currency="EUR",
        purpose=wallet_pb2.HOLD_PURPOSE_RESERVE,
    )
    with approval_platform.client(token_of("platform")) as service:
        assert (
            service.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
            .results[0]
            .hold.hold_id
            == payout_id
        )
    request = pb.CreatePayoutRequest(
        payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR"
    )
    shop_client.payout.CreatePayout(request, timeout=1)
    assert eventually(lambda: state_name(get_payout(shop_client, payout_id).payout) == "PAID")
    assert eventually(lambda: wallet_amounts(operator_client, seller) == ("4.00", "1.00", "0.00"))
    reserved = operator_client.wallet.GetHold(
        wallet_service_pb2.GetHoldRequest(hold_id=payout_id)
    ).hold
    assert (reserved.state, reserved.purpose) == (
        wallet_pb2.HOLD_STATE_OPEN,
        wallet_pb2.HOLD_PURPOSE_RESERVE,
    )
