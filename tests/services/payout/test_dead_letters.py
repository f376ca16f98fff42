"""Dead letters of payouts: retry, close, and those that end by a cancellation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.history.v1 import history_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import RetryReason, Submitted, Succeeded, Unknown
from tallystick_server.operations.worker import OperationWorker
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.payout_operations import (
    approve_payout,
    cancel_payout,
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
    get_payout,
    state_name,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import ServedPlatform, eventually, unique_id
from tests.support.rows import update_rows


def test_a_dead_lettered_payout_is_retried(
    shop_client: Client, operator_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A payout that the provider rejects is a dead letter, still SUBMITTING with its money held; a
    retry sends the same key again, once for a request id.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller)
    dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_REJECTED
    dead_letter_response = operator_client.payout.GetDeadLetter(
        operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    )
    assert state_name(dead_letter_response.payout) == "SUBMITTING"
    assert wallet_amounts(operator_client, seller) == ("0.00", "10.00", "0.00")
    request = pb.RetryPayoutRequest(
        payout_id=payout.payout_id, reason="fixed", request_id=unique_id("r")
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shop_client.payout.RetryPayout, [request] * 8))
    wait_for_state(shop_client, payout.payout_id, "PAID")
    shop_client.payout.RetryPayout(request)
    other_reason = pb.RetryPayoutRequest(
        payout_id=payout.payout_id, reason="x", request_id=request.request_id
    )
    assert reused_field(shop_client.payout.RetryPayout, other_reason) == "reason"
    assert expect_error_reason(operator_client.payout.RetryPayout, request) == "ALREADY_EXISTS"
    repeated_request = pb.RetryPayoutRequest(
        payout_id=payout.payout_id, reason="fixed", request_id=unique_id("r")
    )
    with pytest.raises(
        TallystickError, match="The payout is PAID and cannot be retried: it is not a dead letter."
    ) as error:
        shop_client.payout.RetryPayout(repeated_request)
    assert (error_reason(error), error.value.metadata) == (
        "INVALID_STATE",
        {"state": "PAID", "verb": "RETRY"},
    )
    unnamed = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="fixed")
    # the SDK has given it an id
    assert expect_error_reason(shop_client.payout.RetryPayout, unnamed) == "INVALID_STATE"
    assert not unnamed.request_id
    assert (
        len(
            {
                request.key
                for request in payout_provider.submitted_requests
                if request.payout_id == payout.payout_id
            }
        )
        == 1
    )


def test_closing_applies_a_payment_that_the_provider_reports(
    shop_client: Client, operator_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A dead letter is closed as FAILED with evidence, and the money is released; if the provider
    knows of a transfer, that is applied instead.
    """
    seller = create_sale(shop_client, "20.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller, "5.00")
    dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    assert (
        close_dead_letter(operator_client, dead_letter).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    payout_response = wait_for_state(shop_client, payout.payout_id, "FAILED")
    assert (
        payout_response.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_CLOSED_BY_OPERATOR
    )
    assert [
        (move.actor, move.reason)
        for move in payout_response.history
        if move.transition_reason == history_pb2.TRANSITION_REASON_CLOSED_BY_OPERATOR
    ] == [("operator", "asked them")]
    assert wallet_amounts(operator_client, seller) == ("20.00", "0.00", "0.00")
    payout_provider.script[to].extend(
        [Unknown("malformed", RetryReason.REJECTED), Succeeded(unique_id("tr"), 600, "EUR")]
    )
    created_payout = create_payout(shop_client, seller, "6.00")
    assert (
        close_dead_letter(
            operator_client,
            wait_for_dead_letter(operator_client, f"payouts/{created_payout.payout_id}"),
        ).state
        == operator_pb2.DEAD_LETTER_STATE_RESOLVED
    )
    wait_for_state(shop_client, created_payout.payout_id, "PAID")
    payout_provider.script[to].extend(
        [Unknown("malformed", RetryReason.REJECTED), Submitted("tr_x")]
    )
    slow = create_payout(shop_client, seller, "7.00")
    assert (
        expect_error_reason(
            close_dead_letter,
            operator_client,
            wait_for_dead_letter(operator_client, f"payouts/{slow.payout_id}"),
        )
        == "INVALID_STATE"
    )
    assert wallet_amounts(operator_client, seller) == ("7.00", "7.00", "0.00")


def test_a_closed_payout_is_booked_by_any_process(
    shop_client: Client,
    operator_client: Client,
    payout_provider: ScriptedPayoutProvider,
    approval_platform: ServedPlatform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process that closed a dead letter crashes before booking: after its lease expires another
    process releases the seller's money.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller, timeout=1)
    dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    monkeypatch.setattr(OperationWorker, "continue_failed", lambda *_: None)
    assert (
        close_dead_letter(operator_client, dead_letter).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    assert state_name(get_payout(shop_client, payout.payout_id).payout) == "FAILED"
    monkeypatch.undo()
    with psycopg.connect(approval_platform.databases.admin) as connection:
        update_rows(
            connection,
            "update payout.operation set lease_until = now() where operation_id = %s",
            (payout.payout_id,),
        )
    assert eventually(lambda: wallet_amounts(operator_client, seller) == ("10.00", "0.00", "0.00"))


@pytest.mark.parametrize("by", ["its caller", "its destination"])
def test_a_cancelled_payout_ends_its_dead_letter(polling_platform: ServedPlatform, by: str) -> None:
    """A payout that became a dead letter before it was sent stops being one when it is cancelled by
    its caller or with its destination.
    """
    with (
        polling_platform.client(token_of("operator")) as operator,
        polling_platform.client(token_of("shop")) as shop,
    ):
        seller = create_sale(shop, "200.00")
        to = create_destination(shop, seller)
        payout = create_payout(shop, seller, "150.00")
        with psycopg.connect(polling_platform.databases.admin, autocommit=True) as admin:
            admin.execute(
                "create trigger no_attempt before insert on payout.attempt for each row execute "
                "function payout.reject_change()"
            )
            approve_payout(operator, payout.payout_id)
            dead_letter = wait_for_alerted_dead_letter(operator, f"payouts/{payout.payout_id}")
            admin.execute("drop trigger no_attempt on payout.attempt")
        assert state_name(get_payout(shop, payout.payout_id).payout) == "READY"
        if by == "its caller":
            cancel_payout(shop, payout.payout_id)
        else:
            shop.payout.DisablePayoutDestination(
                pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="sold the bank")
            )
        assert is_alert_ended_with(polling_platform, dead_letter)
        wait_for_state(shop, payout.payout_id, "CANCELLED")
        assert eventually(lambda: wallet_amounts(operator, seller) == ("200.00", "0.00", "0.00"))
