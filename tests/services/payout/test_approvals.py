"""Actions of operators and callers on payouts and destinations: approve, reject, cancel, disable,
retry, close.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2_grpc
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.access import Caller, Role
from tallystick_core.payout.destination import DestinationTrigger
from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    PayoutLookupOutcome,
    Pending,
    PendingReason,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.payout.destination_verification import end_destinations
from tallystick_server.payout.worker import PayoutWorker
from tallystick_server.verify.run import verify
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.approvals import expect_error_reason
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    error_reason,
    get_payout,
    state_name,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    eventually,
    fresh_database,
    is_replayed,
    run_command,
    serve_platform,
    unique_id,
)

TOKENS = {name: f"token-of-{name}-aaaa" for name in ("shop", "other", "boss", "chief", "platform")}
CALLERS = {
    TOKENS["shop"]: Caller("shop", frozenset({Role.TEAM, Role.PAYOUTS})),
    TOKENS["other"]: Caller("other", frozenset({Role.TEAM, Role.PAYOUTS})),
    TOKENS["boss"]: Caller("boss", frozenset({Role.TEAM, Role.PAYOUTS, Role.OPERATOR})),
    TOKENS["chief"]: Caller("chief", frozenset({Role.OPERATOR})),
    TOKENS["platform"]: Caller("platform", frozenset({Role.SERVICE})),
}
RETRY = {
    **FAST_RETRY,
    ("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL),
    ("", RetryReason.OUTCOME_UNKNOWN): RetryPolicy(RetryStrategy.CANCEL),
}


@pytest.fixture(scope="module")
def payout_provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


@pytest.fixture(scope="module")
def payout_platform(
    admin_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    payout_provider: ScriptedPayoutProvider,
) -> Iterator[ServedPlatform]:
    """All services, with named callers."""
    settings = Settings().replace(
        retry=RETRY,
        worker__sweep_interval=0.1,
        payout__approval_threshold={"EUR": 10_000},
        payout__destination_cooldown=0,
        authentication="tokens",
        callers=CALLERS,
        service_token=TOKENS["platform"],
    )
    folder: Path = tmp_path_factory.mktemp("office")
    with (
        fresh_database(admin_url, folder) as databases,
        serve_platform(
            databases,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        ) as served_platform,
    ):
        yield served_platform


def client_of(platform: ServedPlatform, name: str) -> Iterator[Client]:
    with platform.client(TOKENS[name]) as client:
        yield client


@pytest.fixture(scope="module")
def shop_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(payout_platform, "shop")


@pytest.fixture(scope="module")
def other_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(payout_platform, "other")


@pytest.fixture(scope="module")
def approver_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    """A caller who may create and approve payouts."""
    yield from client_of(payout_platform, "boss")


@pytest.fixture(scope="module")
def operator_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    yield from client_of(payout_platform, "chief")


def approve_payout(client: Client, payout_id: str, reason: str = "checked") -> payout_pb2.Payout:
    return client.payout.ApprovePayout(
        pb.ApprovePayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def reject_payout(client: Client, payout_id: str, reason: str = "no") -> payout_pb2.Payout:
    return client.payout.RejectPayout(
        pb.RejectPayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def cancel_payout(client: Client, payout_id: str, reason: str = "no more") -> payout_pb2.Payout:
    return client.payout.CancelPayout(
        pb.CancelPayoutRequest(payout_id=payout_id, reason=reason)
    ).payout


def reused_field(call: object, *arguments: object) -> str:
    """The field in which a call differs from the first one with its key, from the metadata of
    IDEMPOTENCY_KEY_REUSED.
    """
    with pytest.raises(TallystickError) as error:
        call(*arguments)  # type: ignore[operator]
    assert error_reason(error) == "IDEMPOTENCY_KEY_REUSED"
    return error.value.metadata["field"]


def test_two_people_for_large_payouts(
    shop_client: Client, approver_client: Client, operator_client: Client
) -> None:
    """Above the threshold a payout waits, with its money held, for an approver other than its
    creator; the history records the approver and the reason.
    """
    seller = create_sale(approver_client, "300.00")
    create_destination(approver_client, seller)
    at_the_threshold = create_payout(approver_client, seller, "100.00")
    wait_for_state(approver_client, at_the_threshold.payout_id, "PAID")
    payout = create_payout(approver_client, seller, "100.01")
    assert state_name(payout) == "AWAITING_APPROVAL"
    assert wallet_amounts(operator_client, seller) == ("99.99", "100.01", "0.00")
    assert (
        expect_error_reason(approve_payout, approver_client, payout.payout_id)
        == "SECOND_APPROVER_REQUIRED"
    )
    assert expect_error_reason(approve_payout, shop_client, payout.payout_id) == "PERMISSION_DENIED"
    approve_payout(operator_client, payout.payout_id)
    assert approve_payout(operator_client, payout.payout_id).payout_id == payout.payout_id
    payout_response = wait_for_state(approver_client, payout.payout_id, "PAID")
    (approval,) = [
        move
        for move in payout_response.history
        if move.transition_reason == payout_pb2.PAYOUT_TRANSITION_REASON_APPROVED
    ]
    assert (approval.actor, approval.reason) == ("chief", "checked")
    assert (
        expect_error_reason(approve_payout, operator_client, payout.payout_id, "another reason")
        == "INVALID_STATE"
    )
    assert expect_error_reason(reject_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_a_rejected_payout_gives_the_money_back(
    approver_client: Client, operator_client: Client
) -> None:
    """A rejection by the second approver is final, is stored with its reason, and releases the
    hold; the payout cannot be approved afterwards.
    """
    seller = create_sale(approver_client, "200.00")
    create_destination(approver_client, seller)
    payout = create_payout(approver_client, seller)
    reject_payout(operator_client, payout.payout_id)
    payout_response = wait_for_state(approver_client, payout.payout_id, "REJECTED")
    assert [
        (m.actor, m.reason)
        for m in payout_response.history
        if m.transition_reason == payout_pb2.PAYOUT_TRANSITION_REASON_REJECTED
    ] == [("chief", "no")]
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    assert expect_error_reason(approve_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_a_payout_is_cancelled_before_it_is_sent(
    shop_client: Client,
    other_client: Client,
    operator_client: Client,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """In AWAITING_APPROVAL the caller or an operator can cancel, and nothing is paid; repeats are
    replays. Once the payout may have been sent, cancelling is INVALID_STATE.
    """
    seller = create_sale(shop_client, "200.00")
    create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "150.00")
    assert expect_error_reason(cancel_payout, other_client, payout.payout_id) == "NOT_FOUND"
    cancel_payout(shop_client, payout.payout_id)
    wait_for_state(shop_client, payout.payout_id, "CANCELLED")
    assert state_name(cancel_payout(shop_client, payout.payout_id)) == "CANCELLED"
    # The result is the same for every caller that may cancel it.
    assert state_name(cancel_payout(operator_client, payout.payout_id)) == "CANCELLED"
    assert reused_field(cancel_payout, shop_client, payout.payout_id, "another reason") == "reason"
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    assert payout.payout_id not in {
        demand.payout_id for demand in payout_provider.submitted_requests
    }
    created_payout = create_payout(shop_client, seller, "10.00")
    wait_for_state(shop_client, created_payout.payout_id, "PAID")
    assert (
        expect_error_reason(cancel_payout, shop_client, created_payout.payout_id) == "INVALID_STATE"
    )


def test_others_see_and_change_nothing(shop_client: Client, other_client: Client) -> None:
    """S3: another caller's payout and destination are NOT_FOUND, and their ids are taken without
    revealing anything.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "1.00")
    assert expect_error_reason(get_payout, other_client, payout.payout_id) == "NOT_FOUND"
    assert (
        expect_error_reason(
            lambda: create_payout(other_client, seller, "1.00", payout_id=payout.payout_id)
        )
        == "ALREADY_EXISTS"
    )
    assert (
        expect_error_reason(
            lambda: create_payout(other_client, seller, "1.00", payout_destination_id=to)
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(
            other_client.payout.GetPayoutDestination,
            pb.GetPayoutDestinationRequest(payout_destination_id=to),
        )
        == "NOT_FOUND"
    )
    reused_request = pb.CreatePayoutDestinationRequest(
        payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token="t"
    )
    assert (
        expect_error_reason(other_client.payout.CreatePayoutDestination, reused_request)
        == "ALREADY_EXISTS"
    )
    assert not list(
        other_client.pages(
            other_client.payout.ListPayouts, pb.ListPayoutsRequest(seller_account=seller), "payouts"
        )
    )
    assert [
        p.payout_id
        for p in shop_client.pages(
            shop_client.payout.ListPayouts, pb.ListPayoutsRequest(seller_account=seller), "payouts"
        )
    ] == [payout.payout_id]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seller_account", "other"),
        ("currency", "USD"),
        ("bank_account_token", "ba_other"),
        ("description", "savings"),
    ],
)
def test_a_destination_again_with_another_value_names_it(
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


def test_a_disabled_destination_takes_its_unsent_payouts_along(
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
        == payout_pb2.PAYOUT_TRANSITION_REASON_DESTINATION_ENDED
    )
    assert wallet_amounts(operator_client, seller) == ("200.00", "0.00", "0.00")
    other_reason = pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="other")
    assert reused_field(shop_client.payout.DisablePayoutDestination, other_reason) == "reason"
    assert expect_error_reason(approve_payout, operator_client, payout.payout_id) == "INVALID_STATE"


def test_destinations_that_end_together_lock_due_work_in_one_pass(
    payout_platform: ServedPlatform, shop_client: Client
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
    (flow,) = (
        service.servicer._worker  # type: ignore[attr-defined]
        for service in payout_platform.server._services
        if service.name == "payout"
    )

    async def end() -> None:
        await flow._database.transact(
            lambda connection: end_destinations(
                connection, [to_early, to_late], DestinationTrigger.ACCOUNT_REJECTED
            )
        )

    with (
        psycopg.connect(payout_platform.databases.admin) as holder,
        psycopg.connect(payout_platform.databases.admin, autocommit=True) as admin,
    ):
        holder.execute(
            "select from payout.operation where operation_id = %s for update", (f"p-{first}",)
        )
        with ThreadPoolExecutor(1) as pool:
            end_future = pool.submit(payout_platform.run_in_loop, end)
            assert eventually(lambda: admin.execute(_WAITING_QUERY).fetchone() == (1,))
            admin.execute(
                "select from payout.operation where operation_id = %s for update nowait",
                (f"p-{last}",),
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


def wait_for_dead_letter(operator_client: Client, subject: str) -> operator_pb2.DeadLetter:
    """The open dead letter of a subject; waits until it exists."""

    def list_open() -> list[operator_pb2.DeadLetter]:
        request = pb.ListDeadLettersRequest(
            state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
        )
        return [
            listed_letter
            for listed_letter in operator_client.payout.ListDeadLetters(request).dead_letters
            if listed_letter.resource_name == subject
        ]

    (open_letter,) = eventually(list_open)
    return open_letter


def test_a_payout_that_was_set_aside_is_retried(
    shop_client: Client, operator_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A payout that the provider rejects is a dead letter, still SUBMITTING with its money held; a
    retry sends the same key again, once for a request id.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller)
    the_dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    assert the_dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_REJECTED
    dead_letter_response = operator_client.payout.GetDeadLetter(
        pb.GetDeadLetterRequest(dead_letter_id=the_dead_letter.dead_letter_id)
    )
    assert state_name(dead_letter_response.payout) == "SUBMITTING"
    assert wallet_amounts(operator_client, seller) == ("0.00", "10.00", "0.00")
    request = pb.RetryPayoutRequest(
        payout_id=payout.payout_id, reason="mended", request_id=unique_id("r")
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
        payout_id=payout.payout_id, reason="mended", request_id=unique_id("r")
    )
    with pytest.raises(
        TallystickError, match="The payout is PAID and cannot be retried: it is no dead letter."
    ) as error:
        shop_client.payout.RetryPayout(repeated_request)
    assert (error_reason(error), error.value.metadata) == (
        "INVALID_STATE",
        {"state": "PAID", "verb": "RETRY"},
    )
    unnamed = pb.RetryPayoutRequest(payout_id=payout.payout_id, reason="mended")
    # the SDK has given it an id
    assert expect_error_reason(shop_client.payout.RetryPayout, unnamed) == "INVALID_STATE"
    assert not unnamed.request_id
    assert (
        len(
            {
                demand.key
                for demand in payout_provider.submitted_requests
                if demand.payout_id == payout.payout_id
            }
        )
        == 1
    )


def close_dead_letter(
    operator_client: Client, dead_letter: operator_pb2.DeadLetter
) -> operator_pb2.DeadLetter:
    request = pb.CloseDeadLetterRequest(
        dead_letter_id=dead_letter.dead_letter_id, reason="asked them", evidence="ticket 7"
    )
    return operator_client.payout.CloseDeadLetter(request).dead_letter


def test_closing_needs_that_nothing_was_paid(
    shop_client: Client, operator_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A dead letter is closed as FAILED with evidence, and the money is released; if the provider
    knows of a transfer, that is applied instead.
    """
    seller = create_sale(shop_client, "20.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller, "5.00")
    the_dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    assert (
        close_dead_letter(operator_client, the_dead_letter).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    payout_response = wait_for_state(shop_client, payout.payout_id, "FAILED")
    assert (
        payout_response.payout.failure_reason == payout_pb2.PAYOUT_FAILURE_REASON_CLOSED_BY_OPERATOR
    )
    assert [
        (move.actor, move.reason)
        for move in payout_response.history
        if move.transition_reason == payout_pb2.PAYOUT_TRANSITION_REASON_CLOSED_BY_OPERATOR
    ] == [("chief", "asked them")]
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


def test_a_closed_payout_is_settled_by_whoever_comes(
    shop_client: Client,
    operator_client: Client,
    payout_provider: ScriptedPayoutProvider,
    payout_platform: ServedPlatform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process that closed a dead letter crashes before booking: after its lease expires another
    process releases the seller's money.
    """
    seller = create_sale(shop_client, "10.00")
    to = create_destination(shop_client, seller)
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    payout = create_payout(shop_client, seller, timeout=1)
    the_dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout.payout_id}")
    monkeypatch.setattr(PayoutWorker, "after_failure", lambda *_: None)
    assert (
        close_dead_letter(operator_client, the_dead_letter).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    assert state_name(get_payout(shop_client, payout.payout_id).payout) == "FAILED"
    monkeypatch.undo()
    with psycopg.connect(payout_platform.databases.admin) as connection:
        connection.execute(
            "update payout.operation set lease_until = now() where operation_id = %s",
            (f"p-{payout.payout_id}",),
        )
    assert eventually(lambda: wallet_amounts(operator_client, seller) == ("10.00", "0.00", "0.00"))


_WAITING_QUERY = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type "
    "= 'Lock' and state = 'active'"
)


def cancel_while_locked(
    platform: ServedPlatform, method: str, request: object, *lock_statements: str
) -> None:
    """Calls a method, and cancels the call while its transaction waits for a lock that these
    statements hold; then that transaction continues.
    """
    with (
        psycopg.connect(platform.databases.admin) as blocker,
        psycopg.connect(platform.databases.admin, autocommit=True) as admin,
    ):
        for statement in lock_statements:
            blocker.execute(statement)
        with grpc.insecure_channel(platform.address) as channel:
            call = getattr(payout_service_pb2_grpc.PayoutServiceStub(channel), method).future(
                request, timeout=30
            )
            assert eventually(lambda: admin.execute(_WAITING_QUERY).fetchone() != (0,))
            call.cancel()
            # The server has no call in progress any more.
            assert eventually(lambda: not platform.server._rpc_servers[0]._timeouts)


def test_a_change_is_answered_while_reads_hang(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider
) -> None:
    """A call returns the result of its change even if a hanging read uses every read connection: a
    change never fails as a slow read.
    """
    settings = Settings().replace(
        retry=RETRY,
        database__read_connections={"payout": 1},
        database__read_timeout=60,
        worker__monitor_interval=3600,
        payout__destination_cooldown=0,
    )
    ports = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=ports) as platform,
        platform.client() as client,
        ThreadPoolExecutor(8) as readers,
    ):
        seller = create_sale(client, "20.00")
        create_destination(client, seller)
        earlier = create_payout(client, seller, "1.00").payout_id
        schedule = pb.SetPayoutScheduleRequest(
            seller_account=seller,
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="12:00",
            time_zone="UTC",
        )
        run = pb.NewPayoutRun(seller_account=seller, currency="EUR")
        with (
            psycopg.connect(databases.admin) as admin,
            psycopg.connect(databases.admin, autocommit=True) as look,
        ):
            admin.execute("lock table payout.conflicting_report in access exclusive mode")
            hanging = [
                readers.submit(
                    client.payout.GetPayout, pb.GetPayoutRequest(payout_id=earlier), timeout=60
                )
                for _ in range(8)
            ]
            assert eventually(lambda: look.execute(_WAITING_QUERY).fetchone() != (0,))
            client.payout.SetPayoutSchedule(schedule, timeout=10)
            created_payout = client.payout.CreatePayout(
                pb.CreatePayoutRequest(
                    payout_id=unique_id("p"), seller_account=seller, amount="1.00", currency="EUR"
                ),
                timeout=10,
            )
            assert created_payout.payout.payout_state != payout_pb2.PAYOUT_STATE_UNSPECIFIED
            client.payout.CreatePayoutBatch(
                pb.CreatePayoutBatchRequest(payout_batch_id=unique_id("b"), run=run), timeout=10
            )
            assert not all(read.done() for read in hanging)
            admin.rollback()
            assert all(read.result(60).payout.payout_id == earlier for read in hanging)


@pytest.mark.parametrize("call", ["CloseDeadLetter", "CancelPayout", "CreatePayoutDestination"])
def test_a_caller_that_goes_away_strands_nothing(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider, call: str
) -> None:
    """A call that is cancelled while its change is being committed leaves no orphaned lease: the
    follow-up work of the change runs without a scan.
    """
    settings = Settings().replace(
        retry=RETRY,
        worker__sweep_interval=3600,
        payout__approval_threshold={"EUR": 10_000},
        payout__destination_cooldown=0,
    )
    ports = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=ports) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "200.00")
        if call == "CreatePayoutDestination":
            to = unique_id("d")
            new = pb.CreatePayoutDestinationRequest(
                payout_destination_id=to,
                seller_account=seller,
                currency="EUR",
                bank_account_token=to,
            )
            cancel_while_locked(
                platform, call, new, "lock table payout.payout_destination in share mode"
            )
            verified = pb.ListPayoutDestinationsRequest(
                state=payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
            )
            assert eventually(
                lambda: client.payout.ListPayoutDestinations(verified).payout_destinations
            )
            return
        to = create_destination(client, seller)
        if call == "CloseDeadLetter":
            payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
            payout_id = create_payout(client, seller, "5.00", timeout=1).payout_id
            the_dead_letter = wait_for_dead_letter(client, f"payouts/{payout_id}").dead_letter_id
            request: object = pb.CloseDeadLetterRequest(
                dead_letter_id=the_dead_letter, reason="asked them", evidence="ticket 7"
            )
        else:
            payout_id = create_payout(client, seller, "150.00").payout_id
            request = pb.CancelPayoutRequest(payout_id=payout_id, reason="no more")
        cancel_while_locked(
            platform,
            call,
            request,
            f"select from payout.operation where operation_id = 'p-{payout_id}' for update",
        )
        wait_for_state(client, payout_id, "FAILED" if call == "CloseDeadLetter" else "CANCELLED")
        assert wallet_amounts(client, seller) == ("200.00", "0.00", "0.00")


def test_a_payout_whose_hold_is_refused_as_our_fault_is_set_aside(
    payout_platform: ServedPlatform,
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
    with payout_platform.client(TOKENS["platform"]) as service:
        service.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
    request = pb.CreatePayoutRequest(
        payout_id=payout_id, seller_account=seller, amount="5.00", currency="EUR"
    )
    shop_client.payout.CreatePayout(request, timeout=1)
    the_dead_letter = wait_for_dead_letter(operator_client, f"payouts/{payout_id}")
    assert the_dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_BOOKING_REJECTED
    assert (
        expect_error_reason(close_dead_letter, operator_client, the_dead_letter) == "INVALID_STATE"
    )
    # The hold under its id may belong to another payout.
    assert expect_error_reason(cancel_payout, shop_client, payout_id) == "INVALID_STATE"
    operator_client.payout.RetryDeadLetter(
        pb.RetryDeadLetterRequest(dead_letter_id=the_dead_letter.dead_letter_id, reason="again")
    )
    assert (
        wait_for_dead_letter(operator_client, f"payouts/{payout_id}").dead_letter_id
        != the_dead_letter.dead_letter_id
    )
    assert state_name(get_payout(shop_client, payout_id).payout) == "CREATED"
    assert payout_id not in {demand.payout_id for demand in payout_provider.submitted_requests}


@pytest.mark.parametrize(
    "policy",
    [RetryPolicy(RetryStrategy.CANCEL), RetryPolicy(RetryStrategy.FIXED, 3600, 3600, 5)],
    ids=["retried dead letter", "waiting for a retry"],
)
def test_a_hold_in_doubt_is_never_released(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider, policy: RetryPolicy
) -> None:
    """Once the wallet has rejected a payout's hold, the payout cannot be cancelled before it is
    held, whether it waits for a retry or was requeued.
    """
    settings = Settings().replace(
        retry={**RETRY, ("", RetryReason.BOOKING_REJECTED): policy},
        worker__sweep_interval=3600,
        payout__destination_cooldown=0,
    )
    ports = Dependencies(payout_providers={"sandbox": payout_provider})
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(databases, settings, dependencies=ports) as platform,
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
            "select retry_reason from payout.operation where operation_id = %s", [f"p-{payout_id}"]
        ).fetchone()
    return str((row or ("",))[0])


def test_a_payout_does_not_share_its_hold_with_another_hold_of_its_id(
    payout_platform: ServedPlatform, shop_client: Client, operator_client: Client
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
    with payout_platform.client(TOKENS["platform"]) as service:
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


def test_a_destination_that_nobody_verifies_is_closed(
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
        pb.GetDeadLetterRequest(dead_letter_id=dead_letters[first_id].dead_letter_id)
    )
    assert dead_letter_response.payout_destination.payout_destination_id == first_id
    assert (
        close_dead_letter(operator_client, dead_letters[first_id]).state
        == operator_pb2.DEAD_LETTER_STATE_CLOSED
    )
    operator_client.payout.RetryDeadLetter(
        pb.RetryDeadLetterRequest(dead_letter_id=dead_letters[two].dead_letter_id, reason="again")
    )

    def get(id_: str) -> int:
        return shop_client.payout.GetPayoutDestination(
            pb.GetPayoutDestinationRequest(payout_destination_id=id_)
        ).payout_destination.state

    assert get(first_id) == payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
    assert eventually(lambda: get(two) == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)


def test_the_default_schedule_is_for_operators(
    shop_client: Client, operator_client: Client
) -> None:
    """A team sets and runs its sellers' schedules; only an operator sets the default, which applies
    to all sellers.
    """
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL
    assert (
        expect_error_reason(
            shop_client.payout.SetPayoutSchedule,
            pb.SetPayoutScheduleRequest(currency="SEK", interval=manual),
        )
        == "PERMISSION_DENIED"
    )
    run = pb.CreatePayoutBatchRequest(
        payout_batch_id=unique_id("b"), run=pb.NewPayoutRun(currency="SEK")
    )
    assert expect_error_reason(shop_client.payout.CreatePayoutBatch, run) == "PERMISSION_DENIED"
    operator_client.payout.SetPayoutSchedule(
        pb.SetPayoutScheduleRequest(currency="SEK", interval=manual, fee="1.00")
    )
    own_seller = create_sale(shop_client, "1.00")
    current_schedule = shop_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(seller_account=own_seller, currency="SEK")
    ).payout_schedule
    assert (
        current_schedule.seller_account,
        current_schedule.fee,
        current_schedule.version,
        current_schedule.caller,
    ) == ("", "1.00", 1, "chief")


def test_of_two_operators_who_set_a_schedule_one_learns_of_the_other(
    operator_client: Client,
) -> None:
    """A schedule update with an outdated version is rejected with the current version, also if two
    are concurrent; a repeat changes nothing.
    """
    manual = payout_pb2.PAYOUT_INTERVAL_MANUAL

    def schedule(fee: str, version: int) -> pb.SetPayoutScheduleRequest:
        return pb.SetPayoutScheduleRequest(
            currency="NOK", interval=manual, fee=fee, expected_version=version
        )

    def outcome(fee: str, version: int) -> str:
        try:
            return str(
                operator_client.payout.SetPayoutSchedule(
                    schedule(fee, version)
                ).payout_schedule.version
            )
        except TallystickError as error:
            return f"{error.reason} {error.metadata.get('version')}"

    assert outcome("1.00", 2) == "VERSION_MISMATCH 0"
    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(lambda number: outcome(f"{number}.00", 0), range(1, 9)))
    assert outcomes == ["1", *["VERSION_MISMATCH 1"] * 7]
    current_schedule = operator_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(currency="NOK")
    ).payout_schedule
    assert is_replayed(operator_client.payout.SetPayoutSchedule, schedule(current_schedule.fee, 0))
    assert outcome("9.00", 1) == "2"
    assert outcome("10.00", 1) == "VERSION_MISMATCH 2"
    assert outcome("10.00", -1) == "FIELD_INVALID None"


def acknowledge_payout(
    client: Client,
    payout_id: str,
    reason: str = "asked the bank",
    *,
    reference: str = "",
    report_number: int = 0,
    is_replay: bool = False,
) -> payout_pb2.Payout:
    """Acknowledges a transfer by its reference, or a report by its number; `is_replay`: the answer
    is marked as a replay.
    """
    request = pb.AcknowledgePayoutRequest(payout_id=payout_id, reason=reason)
    if reference:
        request.provider_reference = reference
    if report_number:
        request.report_number = report_number
    assert is_replayed(client.payout.AcknowledgePayout, request) == is_replay
    return get_payout(client, payout_id).payout


def payout_alerts(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str
) -> list[operator_pb2.Alert]:
    """All alerts of a kind about a payout, newest first."""
    request = pb.ListAlertsRequest(ended=True, page_size=200)
    return [
        alert
        for alert in client.payout.ListAlerts(request).alerts
        if (alert.kind, alert.resource_name) == (kind, f"payouts/{payout_id}")
    ]


def is_alert_open(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str, number: int
) -> bool:
    """Whether the alert is open and is the expected occurrence."""
    matching_alerts = payout_alerts(client, kind, payout_id)
    return len(matching_alerts) == number and not matching_alerts[0].HasField("end_time")


def are_alerts_ended(
    client: Client, kind: operator_pb2.AlertKind.ValueType, payout_id: str, number: int
) -> bool:
    """Whether there were the given number of alerts, and all have ended."""
    matching_alerts = payout_alerts(client, kind, payout_id)
    return len(matching_alerts) == number and all(
        alert.HasField("end_time") for alert in matching_alerts
    )


@pytest.fixture
def polling_platform(
    admin_url: str, tmp_path: Path, payout_provider: ScriptedPayoutProvider
) -> Iterator[ServedPlatform]:
    """A platform that continuously polls completed payouts and checks for alerts; verify passes on
    it at the end.
    """
    settings = Settings().replace(
        retry={
            **RETRY,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(
                RetryStrategy.FIXED, 0.1, 0.1, 100_000
            ),
            ("", RetryReason.BOOKING_FAILED): RetryPolicy(RetryStrategy.CANCEL),
        },
        worker__sweep_interval=0.1,
        worker__monitor_interval=0.2,
        payout__approval_threshold={"EUR": 10_000},
        payout__destination_cooldown=0,
        authentication="tokens",
        callers=CALLERS,
        service_token=TOKENS["platform"],
    )
    with fresh_database(admin_url, tmp_path) as databases:
        with serve_platform(
            databases,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        ) as served_platform:
            yield served_platform
        report = verify(databases)
        assert report.passed, report.as_text()


def is_alert_ended_with(platform: ServedPlatform, dead_letter: operator_pb2.DeadLetter) -> bool:
    """Whether the transaction that ended the dead letter ended its alert as well."""
    query = """
        select d.state = 'RESOLVED' and d.xmin = a.xmin from payout.dead_letter d
            join payout.alert a on a.resource_name = 'deadLetters/' || d.dead_letter_id
        where d.dead_letter_id = %s and a.end_time is not null"""
    with psycopg.connect(platform.databases.admin) as connection:
        return connection.execute(query, (dead_letter.dead_letter_id,)).fetchone() == (True,)


def wait_for_alerted_dead_letter(operator_client: Client, subject: str) -> operator_pb2.DeadLetter:
    """The open dead letter of a subject; waits until there is an alert about it."""
    letter = wait_for_dead_letter(operator_client, subject)
    alert_key = (operator_pb2.ALERT_KIND_DEAD_LETTER, f"deadLetters/{letter.dead_letter_id}")
    assert eventually(
        lambda: (
            alert_key
            in {
                (alert.kind, alert.resource_name)
                for alert in operator_client.payout.ListAlerts(pb.ListAlertsRequest()).alerts
            }
        )
    )
    return letter


def test_a_disabled_destination_ends_its_dead_letter(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Disabling a destination whose verification is a dead letter ends the dead letter and its
    alert in the same transaction, each with its event.
    """
    with (
        polling_platform.client(TOKENS["chief"]) as chief,
        polling_platform.client(TOKENS["shop"]) as shop,
    ):
        seller, to = create_sale(shop, "10.00"), unique_id("d")
        payout_provider.verifications[to].append(Unknown("malformed", RetryReason.REJECTED))
        new = pb.CreatePayoutDestinationRequest(
            payout_destination_id=to, seller_account=seller, currency="EUR", bank_account_token=to
        )
        shop.payout.CreatePayoutDestination(new)
        the_dead_letter = wait_for_alerted_dead_letter(chief, f"payoutDestinations/{to}")
        shop.payout.DisablePayoutDestination(
            pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="a typing error")
        )
        assert is_alert_ended_with(polling_platform, the_dead_letter)
        retry = pb.RetryDeadLetterRequest(
            dead_letter_id=the_dead_letter.dead_letter_id, reason="again"
        )
        assert expect_error_reason(chief.payout.RetryDeadLetter, retry) == "INVALID_STATE"
        dead_letter_event = eventually(
            lambda: [
                event
                for event in chief.events(
                    aggregate_id=f"deadLetters/{the_dead_letter.dead_letter_id}"
                )
                if event.aggregate_version == 2
            ]
        )
        assert [event.dead_letter.state for event in dead_letter_event] == [
            operator_pb2.DEAD_LETTER_STATE_RESOLVED
        ]


@pytest.mark.parametrize("by", ["its caller", "its destination"])
def test_a_cancelled_payout_ends_its_dead_letter(polling_platform: ServedPlatform, by: str) -> None:
    """A payout that became a dead letter before it was sent stops being one when it is cancelled by
    its caller or with its destination.
    """
    with (
        polling_platform.client(TOKENS["chief"]) as chief,
        polling_platform.client(TOKENS["shop"]) as shop,
    ):
        seller = create_sale(shop, "200.00")
        to = create_destination(shop, seller)
        payout = create_payout(shop, seller, "150.00")
        with psycopg.connect(polling_platform.databases.admin, autocommit=True) as admin:
            admin.execute(
                "create trigger no_attempt before insert on payout.attempt for each row execute "
                "function payout.reject_change()"
            )
            approve_payout(chief, payout.payout_id)
            the_dead_letter = wait_for_alerted_dead_letter(chief, f"payouts/{payout.payout_id}")
            admin.execute("drop trigger no_attempt on payout.attempt")
        assert state_name(get_payout(shop, payout.payout_id).payout) == "READY"
        if by == "its caller":
            cancel_payout(shop, payout.payout_id)
        else:
            shop.payout.DisablePayoutDestination(
                pb.DisablePayoutDestinationRequest(payout_destination_id=to, reason="sold the bank")
            )
        assert is_alert_ended_with(polling_platform, the_dead_letter)
        wait_for_state(shop, payout.payout_id, "CANCELLED")
        assert eventually(lambda: wallet_amounts(chief, seller) == ("200.00", "0.00", "0.00"))


def test_a_conflicting_report_is_acknowledged(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Acknowledging ends the alert and moves no money; the same report again raises nothing, a
    different one raises another alert.
    """
    with (
        polling_platform.client(TOKENS["boss"]) as boss,
        polling_platform.client(TOKENS["chief"]) as chief,
        polling_platform.client(TOKENS["shop"]) as shop,
    ):
        seller, reference, kind = (
            create_sale(boss, "10.00"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT,
        )
        to = create_destination(boss, seller)
        payout_provider.script[to].extend(
            [Succeeded(reference, 1000, "EUR"), Declined(PayoutFailure.PROVIDER_DECLINED, "late")]
        )
        id_ = create_payout(boss, seller).payout_id
        assert eventually(lambda: is_alert_open(chief, kind, id_, 1))
        (report,) = wait_for_state(chief, id_, "PAID").conflicting_reports
        assert (report.number, report.report, report.acknowledged_by) == (1, "Declined late", "")
        assert (
            expect_error_reason(lambda: acknowledge_payout(shop, id_, report_number=1))
            == "PERMISSION_DENIED"
        )
        before = get_payout(chief, id_).payout
        after = acknowledge_payout(chief, id_, report_number=1)
        acknowledge_payout(chief, id_, report_number=1, is_replay=True)
        assert (
            expect_error_reason(lambda: acknowledge_payout(chief, id_, "other", report_number=1))
            == "IDEMPOTENCY_KEY_REUSED"
        )
        assert after.version == before.version + 1
        before.version = after.version
        before.update_time.CopyFrom(after.update_time)
        assert after == before
        payout_response = get_payout(chief, id_)
        assert [
            (conflicting_report.acknowledged_by, conflicting_report.acknowledge_reason)
            for conflicting_report in payout_response.conflicting_reports
        ] == [("chief", "asked the bank")]
        assert payout_response.conflicting_reports[0].acknowledge_time == after.update_time
        assert (
            payout_response.history[-1].transition_reason,
            payout_response.history[-1].actor,
            payout_response.history[-1].reason,
        ) == (
            payout_pb2.PAYOUT_TRANSITION_REASON_ACKNOWLEDGED,
            "chief",
            "asked the bank",
        )
        assert eventually(
            lambda: (
                [event.aggregate_version for event in chief.events(aggregate_id=f"payouts/{id_}")][
                    -1
                ]
                == after.version
            )
        )
        assert eventually(lambda: are_alerts_ended(chief, kind, id_, 1))
        payout_provider.script[id_].extend(
            [Declined(PayoutFailure.PROVIDER_DECLINED, "late")] * 2
            + [Declined(PayoutFailure.PROVIDER_DECLINED, "risk")]
        )
        assert eventually(lambda: is_alert_open(chief, kind, id_, 2))
        assert [
            conflicting_report.report
            for conflicting_report in wait_for_state(chief, id_, "PAID").conflicting_reports
        ] == [
            "Declined late",
            "Declined risk",
        ]
        assert payout_alerts(chief, kind, id_)[0].detail == "Declined risk"
        acknowledge_payout(chief, id_, report_number=2)
        assert eventually(lambda: are_alerts_ended(chief, kind, id_, 2))
        assert wallet_amounts(chief, seller) == ("0.00", "0.00", "0.00")


def test_a_report_that_comes_again_after_another_raises_an_alert(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Reports A, B and A again are each acknowledged before the next: the second A raises an alert,
    and continued reports of the same content raise one.
    """
    with (
        polling_platform.client(TOKENS["boss"]) as boss,
        polling_platform.client(TOKENS["chief"]) as chief,
    ):
        seller, reference, kind = (
            create_sale(boss, "10.00"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_PAYOUT_STATUS_CONFLICT,
        )
        to = create_destination(boss, seller)
        payout_provider.script[to].append(Succeeded(reference, 1000, "EUR"))
        id_ = create_payout(boss, seller).payout_id
        for number, code in enumerate(("a", "b", "a"), 1):
            payout_provider.script[id_].extend(
                [Declined(PayoutFailure.PROVIDER_DECLINED, code)] * 3
            )
            assert eventually(lambda number=number: is_alert_open(chief, kind, id_, number))  # type: ignore[misc]
            wait_for_state(chief, id_, "PAID")
            acknowledge_payout(chief, id_, report_number=number)
            assert eventually(lambda number=number: are_alerts_ended(chief, kind, id_, number))  # type: ignore[misc]
        assert [report.report for report in get_payout(chief, id_).conflicting_reports] == [
            "Declined a",
            "Declined b",
            "Declined a",
        ]


class LookupRecordingProvider(ScriptedPayoutProvider):
    """Records the polls about completed payouts."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_up_ids: list[str] = []

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        self.looked_up_ids.append(request.payout_id)
        return await super().look_up(request)


def test_one_process_asks_what_became_of_payouts(admin_url: str, tmp_path: Path) -> None:
    """Of two processes one polls the provider about completed payouts; the other takes over once
    the first has not renewed its lease for some seconds.
    """
    own_provider, other_provider = LookupRecordingProvider(), LookupRecordingProvider()
    often = Settings().replace(
        retry={
            **RETRY,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(
                RetryStrategy.FIXED, 0.0, 0.0, 1_000_000
            ),
        },
        worker__sweep_interval=0.1,
    )
    seldom = often.replace(worker__sweep_interval=3600)
    with (
        fresh_database(admin_url, tmp_path) as databases,
        serve_platform(
            databases,
            seldom,
            dependencies=Dependencies(payout_providers={"sandbox": other_provider}),
        ) as other_platform,
    ):
        (flow,) = (
            service.servicer._worker  # type: ignore[attr-defined]
            for service in other_platform.server._services
            if service.name == "payout"
        )
        with (
            serve_platform(
                databases,
                often,
                dependencies=Dependencies(payout_providers={"sandbox": own_provider}),
            ) as platform,
            platform.client() as client,
        ):
            seller = create_sale(client, "20.00")
            create_destination(client, seller)
            wait_for_state(client, create_payout(client, seller, "5.00").payout_id, "PAID")
            assert eventually(lambda: own_provider.looked_up_ids)
            other_platform.run_in_loop(flow.polling._work)
            assert other_provider.looked_up_ids == []
        with psycopg.connect(databases.admin) as connection:
            connection.execute(
                "update payout.leader_lease set lease_until = now() where name like 'watch%'"
            )
        other_platform.run_in_loop(flow.polling._work)
        assert len(other_provider.looked_up_ids) == 1


def test_an_unmatched_transfer_is_acknowledged(
    polling_platform: ServedPlatform, payout_provider: ScriptedPayoutProvider
) -> None:
    """Acknowledging a transfer ends its alert and moves no money; another transfer, or a return of
    the same one, raises another alert.
    """
    with (
        polling_platform.client(TOKENS["boss"]) as boss,
        polling_platform.client(TOKENS["chief"]) as chief,
    ):
        seller, first, second, kind = (
            create_sale(boss, "10.00"),
            unique_id("tr"),
            unique_id("tr"),
            operator_pb2.ALERT_KIND_UNMATCHED_TRANSFER,
        )
        to = create_destination(boss, seller)
        payout_provider.script[to].append(Succeeded(first, 501, "EUR"))
        id_ = create_payout(boss, seller, "5.00").payout_id
        assert eventually(lambda: is_alert_open(chief, kind, id_, 1))
        wait_for_state(chief, id_, "FAILED")
        acknowledge_payout(chief, id_, reference=first)
        acknowledge_payout(chief, id_, reference=first, is_replay=True)
        assert (
            expect_error_reason(lambda: acknowledge_payout(chief, id_, "other", reference=first))
            == "IDEMPOTENCY_KEY_REUSED"
        )
        (transfer,) = get_payout(chief, id_).transfers
        assert (transfer.acknowledged_by, transfer.acknowledge_reason) == (
            "chief",
            "asked the bank",
        )
        assert eventually(lambda: are_alerts_ended(chief, kind, id_, 1))
        assert wallet_amounts(chief, seller) == ("4.99", "0.00", "0.00")
        payout_provider.script[id_].append(Succeeded(second, 100, "EUR"))
        assert eventually(lambda: is_alert_open(chief, kind, id_, 2))
        assert payout_alerts(chief, kind, id_)[0].detail == f"DUPLICATE {second}"
        wait_for_state(chief, id_, "FAILED")
        acknowledge_payout(chief, id_, reference=second)
        assert eventually(lambda: are_alerts_ended(chief, kind, id_, 2))
        payout_provider.script[id_].append(Returned(first, 501, "EUR"))
        assert eventually(lambda: is_alert_open(chief, kind, id_, 3))
        payout_response = wait_for_state(chief, id_, "FAILED")
        assert [finding.acknowledged_by for finding in payout_response.transfers] == ["", "chief"]
        assert [
            row.actor
            for row in payout_response.history
            if row.transition_reason == payout_pb2.PAYOUT_TRANSITION_REASON_ACKNOWLEDGED
        ] == [
            "chief",
            "chief",
        ]
        acknowledge_payout(chief, id_, "it came back", reference=first)
        assert eventually(lambda: are_alerts_ended(chief, kind, id_, 3))
        assert wallet_amounts(chief, seller) == ("9.00", "0.00", "0.00")


def test_what_cannot_be_acknowledged_of_a_payout_says_why(
    shop_client: Client, operator_client: Client
) -> None:
    """An unknown subject is NOT_FOUND, a missing field FIELD_REQUIRED, and with nothing to
    acknowledge the call is INVALID_STATE.
    """
    seller = create_sale(shop_client, "10.00")
    create_destination(shop_client, seller)
    id_ = wait_for_state(
        shop_client, create_payout(shop_client, seller).payout_id, "PAID"
    ).payout.payout_id
    reference = get_payout(shop_client, id_).transfers[0].provider_reference
    assert (
        expect_error_reason(
            lambda: acknowledge_payout(operator_client, "p-nobody", report_number=1)
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(
            lambda: acknowledge_payout(operator_client, id_, reference="tr_unknown")
        )
        == "NOT_FOUND"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, reference=reference))
        == "INVALID_STATE"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, report_number=1))
        == "INVALID_STATE"
    )
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, report_number=-1))
        == "FIELD_INVALID"
    )
    assert expect_error_reason(lambda: acknowledge_payout(operator_client, id_)) == "FIELD_REQUIRED"
    assert (
        expect_error_reason(lambda: acknowledge_payout(operator_client, id_, " ", report_number=1))
        == "FIELD_REQUIRED"
    )
    assert (
        expect_error_reason(
            operator_client.payout.AcknowledgePayout,
            pb.AcknowledgePayoutRequest(payout_id=id_, provider_reference="", reason="r"),
        )
        == "FIELD_REQUIRED"
    )


def test_an_operator_works_from_the_command_line(
    shop_client: Client,
    operator_client: Client,
    payout_platform: ServedPlatform,
    payout_provider: ScriptedPayoutProvider,
) -> None:
    """`tallystick payouts`, `payout-batch` and `dead-letters --service payout` do what the calls
    do, with the operator's token; errors are one sentence.
    """
    environment = {
        "TALLYSTICK_TOKEN": TOKENS["chief"],
        "TALLYSTICK_SERVER__LISTEN": payout_platform.address,
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, **environment)

    seller = create_sale(shop_client, "300.00")
    to = create_destination(shop_client, seller)
    payout = create_payout(shop_client, seller, "150.00")
    pending_lines = command(
        "payouts", "list", "--state", "AWAITING_APPROVAL", "--seller", seller, "--json"
    ).stdout.splitlines()
    assert [json.loads(line)["payout_id"] for line in pending_lines] == [payout.payout_id]
    none = command("payouts", "list", "--seller", "nobody")
    assert (none.returncode, none.stdout, none.stderr) == (
        0,
        "",
        "No payouts for the seller nobody.\n",
    )
    approved = command("payouts", "approve", payout.payout_id, "--reason", "seen", "--json")
    assert json.loads(approved.stdout)["payout_id"] == payout.payout_id, approved.stderr
    wait_for_state(shop_client, payout.payout_id, "PAID")
    payout_json = json.loads(command("payouts", "show", payout.payout_id, "--json").stdout)
    assert [
        (m["actor"], m["reason"])
        for m in payout_json["history"]
        if m["transition_reason"] == "PAYOUT_TRANSITION_REASON_APPROVED"
    ] == [("chief", "seen")]
    rejected_command = command("payouts", "reject", payout.payout_id, "--reason", "late")
    assert (rejected_command.returncode, len(rejected_command.stderr.splitlines())) == (1, 1)
    assert "INVALID_STATE" in rejected_command.stderr
    batch_id = unique_id("b")
    run = pb.NewPayoutRun(seller_account="nobody", currency="EUR")
    operator_client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(payout_batch_id=batch_id, run=run)
    )
    states = [
        json.loads(line)["state"]
        for line in command("payout-batch", batch_id, "--follow", "--json").stdout.splitlines()
    ]
    assert states[-1] == "PAYOUT_BATCH_STATE_DONE"
    payout_provider.script[to].append(Unknown("malformed", RetryReason.REJECTED))
    stuck = create_payout(shop_client, seller, "1.00")
    the_dead_letter = wait_for_dead_letter(operator_client, f"payouts/{stuck.payout_id}")
    listed_ids = [
        json.loads(line)["dead_letter_id"]
        for line in command(
            "dead-letters", "list", "--service", "payout", "--json"
        ).stdout.splitlines()
    ]
    assert the_dead_letter.dead_letter_id in listed_ids
    subject = f"deadLetters/{the_dead_letter.dead_letter_id}"
    assert eventually(lambda: subject in command("alerts", "--service", "payout").stdout)
    for service in ("wallet", "ledger"):
        none = command("alerts", "--service", service)
        assert (none.returncode, none.stdout) == (0, "")
        assert none.stderr == f"No active alerts in the {service} service.\n"
    for token, expected_message in (
        ("", "Set TALLYSTICK_TOKEN."),
        ("ä", "TALLYSTICK_TOKEN must be visible ASCII characters."),
    ):
        environment["TALLYSTICK_TOKEN"] = token
        unknown = command("alerts")
        assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)
        assert expected_message in unknown.stderr
    environment["TALLYSTICK_TOKEN"] = TOKENS["chief"]
    command(
        "dead-letters",
        "retry",
        the_dead_letter.dead_letter_id,
        "--service",
        "payout",
        "--reason",
        "again",
    )
    wait_for_state(shop_client, stuck.payout_id, "PAID")
    reference = unique_id("tr")
    payout_provider.script[to].append(Succeeded(reference, 101, "EUR"))
    mismatch = wait_for_state(
        shop_client, create_payout(shop_client, seller, "1.00").payout_id, "FAILED"
    ).payout
    acknowledge_command = command(
        "payouts",
        "acknowledge",
        mismatch.payout_id,
        "--transfer",
        reference,
        "--reason",
        "seen",
        "--json",
    )
    assert json.loads(acknowledge_command.stdout)["payout_id"] == mismatch.payout_id, (
        acknowledge_command.stderr
    )
    assert [
        transfer.acknowledge_reason
        for transfer in get_payout(operator_client, mismatch.payout_id).transfers
    ] == ["seen"]
    empty_command = command(
        "payouts", "acknowledge", mismatch.payout_id, "--report", "1", "--reason", "seen"
    )
    assert (empty_command.returncode, len(empty_command.stderr.splitlines())) == (1, 1)
    assert "there is nothing to acknowledge" in empty_command.stderr
