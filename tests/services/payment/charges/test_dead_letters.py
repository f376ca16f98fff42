"""Dead letters of charges: how they arise, and how operators retry and close them."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallystick import Client, FailedPreconditionError, InvalidArgumentError
from tallystick.error.v1 import reason_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import ChargeLookupOutcome, RetryReason, Succeeded, Unknown
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider, succeed
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.charges import (
    TWO_TRIES,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    client_of_platform,
    close_dead_letter,
    dead_letter_state,
    event_versions,
    failure_reason,
    fast_final_settings,
    is_paid,
    retry_dead_letter,
    scheduled_operation,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    is_replayed,
    run_command,
    serve_platform,
)


def test_a_rejected_charge_is_dead_lettered_and_closed(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """A call that the provider rejects is a dead letter with its cause; closing it fails the order,
    and each has an event.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    assert (dead_letter.cause, dead_letter.tries, dead_letter.detail) == (
        operator_pb2.DEAD_LETTER_CAUSE_REJECTED,
        1,
        "status 400 request_malformed",
    )
    assert scheduled_operation(two_try_platform.databases, payment.payment_orders[0].charge_id) == (
        1,
        "REJECTED",
        False,
        True,
        False,
    )
    assert (
        client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
    )
    closed_letter = close_dead_letter(client, dead_letter)
    assert (closed_letter.operator, closed_letter.reason, closed_letter.evidence) == (
        "dev",
        "asked them",
        "ticket 7: no charge",
    )
    assert close_dead_letter(client, dead_letter) == closed_letter  # a repeat changes nothing
    order = wait_for_final_order(client, payment)
    assert failure_reason(order) == "CLOSED_BY_OPERATOR"
    assert eventually(
        lambda: event_versions(client, f"deadLetters/{dead_letter.dead_letter_id}") == [1, 2]
    )
    with pytest.raises(FailedPreconditionError) as error:
        close_dead_letter(client, dead_letter, reason="again")
    assert error.value.reason == "INVALID_STATE"
    with pytest.raises(FailedPreconditionError):
        retry_dead_letter(client, dead_letter)


def test_a_requeued_charge_is_sent_again(client: Client, two_try_platform: ServedPlatform) -> None:
    """A requeued charge is sent again under the same key; if it is rejected again it is a new dead
    letter, and the old one stays as history.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    first = wait_for_dead_letter(client, payment)
    assert retry_dead_letter(client, first) == retry_dead_letter(client, first)
    assert dead_letter_state(client, first) == "RETRIED"
    second = wait_for_dead_letter(client, payment)
    assert second.dead_letter_id != first.dead_letter_id
    assert charge_log(two_try_platform.databases, payment.checkout_id) == []


def test_of_concurrent_retries_one_succeeds(client: Client) -> None:
    """Concurrent closings with different reasons: one succeeds and its reason is stored; the others
    are rejected.
    """
    dead_letter = wait_for_dead_letter(
        client, create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    )

    def attempt(number: int) -> operator_pb2.DeadLetter | str:
        try:
            return retry_dead_letter(client, dead_letter, f"reason {number}")
        except FailedPreconditionError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    (won,) = [result for result in outcomes if isinstance(result, operator_pb2.DeadLetter)]
    assert outcomes.count("INVALID_STATE") == 7
    request = operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    assert client.payment.GetDeadLetter(request).dead_letter.reason == won.reason


def test_repeated_decisions_are_marked_as_replays(client: Client) -> None:
    """K1: the first call of a cancellation, a retry or a closing is not marked as a replay; its
    repeat is.
    """
    pending = create_payment(client, "5.00", token="tok_pending", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letters = [
        wait_for_dead_letter(
            client,
            create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE),
        ).dead_letter_id
        for _ in range(2)
    ]
    service, pb = client.payment, payment_service_pb2
    for method, request in (
        (
            service.CancelPayment,
            pb.CancelPaymentRequest(checkout_id=pending.checkout_id, reason="x"),
        ),
        (
            service.RetryDeadLetter,
            operator_pb2.RetryDeadLetterRequest(dead_letter_id=dead_letters[0], reason="x"),
        ),
        (
            service.CloseDeadLetter,
            operator_pb2.CloseDeadLetterRequest(
                dead_letter_id=dead_letters[1], reason="x", evidence="y"
            ),
        ),
    ):
        assert [is_replayed(method, request) for _ in range(2)] == [False, True], method


def test_a_charge_with_an_unknown_outcome_is_dead_lettered(scratch_database: DatabaseUrls) -> None:
    """A charge with an unknown outcome never fails automatically. Once its key may be forgotten,
    and not before, it is dead-lettered, with its order still EXECUTING.
    """
    retry = {("", reason): TWO_TRIES for reason in RetryReason}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        worker__lease_duration=4,
        providers__timeout=0.1,
        providers__key_window=6.0,
    )
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(
            client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        dead_letter = wait_for_dead_letter(client, payment)
        assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
        age = dead_letter.create_time.ToNanoseconds() - payment.create_time.ToNanoseconds()
        assert age > 1.5e9  # as long as the key outlasts a lease
        assert (
            client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
        )
        close_dead_letter(client, dead_letter)
        assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"


def test_a_charge_with_anothers_answer_is_closed_individually(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge whose provider answers about another one is skipped by bulk closing, and closed when
    it is closed alone.
    """
    provider = ScriptedPaymentProvider(
        lambda request: Unknown("what?", RetryReason.MISMATCHED_OPERATION)
    )
    with client_of_platform(scratch_database, fast_final_settings(), provider) as client:
        dead_letter = wait_for_dead_letter(
            client, create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        )
        many = operator_pb2.CloseDeadLettersRequest(
            all=True, reason="month's end", evidence="none in particular"
        )
        assert [
            (close_request.dead_letter_id, close_request.error_reason)
            for close_request in client.payment.CloseDeadLetters(many).skipped
        ] == [(dead_letter.dead_letter_id, reason_pb2.REASON_INVALID_STATE)]
        assert dead_letter_state(client, dead_letter) == "OPEN"
        close_request = operator_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id, reason="never made", evidence="ticket 7"
        )
        client.payment.CloseDeadLetter(close_request)
        assert dead_letter_state(client, dead_letter) == "CLOSED"
    assert verify(scratch_database).passed


def insert_provider_charge(
    databases: DatabaseUrls, payment: payment_pb2.Payment, reference: str, amount: int = 500
) -> None:
    """Makes the provider report that it made the charge after all."""
    charge_id = payment.payment_orders[0].charge_id
    with psycopg.connect(databases.admin) as connection:
        connection.execute(
            "insert into sandbox.charge values (%s, 1, '', 'sandbox', %s, %s, 'SUCCEEDED', %s, "
            "'EUR', '', '', clock_timestamp())",
            (f"dev-{charge_id}-1", charge_id, reference, amount),
        )


def test_closing_asks_the_provider_first(client: Client, two_try_platform: ServedPlatform) -> None:
    """If the provider knows of a charge when the dead letter is closed, the outcome is applied,
    whatever the operator requests: the dead letter is RESOLVED, the order paid.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    insert_provider_charge(two_try_platform.databases, payment, f"late-{payment.checkout_id}")
    assert close_dead_letter(client, dead_letter).state == operator_pb2.DEAD_LETTER_STATE_RESOLVED
    assert is_paid(client, payment)


@pytest.mark.parametrize(
    ("reason", "evidence", "field"),
    [("", "x", "reason"), ("x", "  ", "evidence"), ("x", "y" * 256, "evidence")],
)
def test_closing_needs_a_reason_and_evidence(
    client: Client, reason: str, evidence: str, field: str
) -> None:
    """Reason and evidence are both stored in the history; without them nothing is closed."""
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    with pytest.raises(InvalidArgumentError) as error:
        close_dead_letter(client, dead_letter, reason=reason, evidence=evidence)
    assert [violation.field for violation in error.value.field_violations] == [field]
    assert dead_letter_state(client, dead_letter) == "OPEN"


def test_a_dead_letter_of_a_removed_provider_is_closed_on_evidence(
    scratch_database: DatabaseUrls,
) -> None:
    """If the provider no longer exists, an operator's evidence decides: the order is FAILED, and a
    payout's money is released to its seller.
    """
    payout_provider = ScriptedPayoutProvider()
    old = Dependencies(
        providers={
            "old": ScriptedPaymentProvider(lambda _: Unknown("malformed", RetryReason.REJECTED)),
            "sandbox": ScriptedPaymentProvider(succeed),
        },
        payout_providers={"old": payout_provider},
    )
    new = Dependencies(
        providers={"sandbox": ScriptedPaymentProvider(succeed)},
        payout_providers={"sandbox": ScriptedPayoutProvider()},
    )
    first = Settings().replace(
        worker__scan_interval=0.1, providers__payout="old", payout__destination_cooldown=0
    )
    with (
        serve_platform(scratch_database, first, dependencies=old) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        payout_provider.script[create_destination(client, seller)].append(
            Unknown("malformed", RetryReason.REJECTED)
        )
        payout = create_payout(client, seller, "4.00")
        assert eventually(
            lambda: (
                client.payout.ListDeadLetters(operator_pb2.ListDeadLettersRequest()).dead_letters
            )
        )
    with (
        serve_platform(
            scratch_database,
            Settings().replace(worker__scan_interval=0.1, providers__payment="old"),
            dependencies=old,
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        wait_for_dead_letter(client, payment)
    with (
        serve_platform(
            scratch_database, Settings().replace(worker__scan_interval=0.1), dependencies=new
        ) as platform,
        platform.client() as client,
    ):
        assert (
            close_dead_letter(client, wait_for_dead_letter(client, payment)).state
            == operator_pb2.DEAD_LETTER_STATE_CLOSED
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"
        (dead_letter,) = client.payout.ListDeadLetters(
            operator_pb2.ListDeadLettersRequest()
        ).dead_letters
        assert dead_letter.resource_name == f"payouts/{payout.payout_id}"
        request = operator_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id,
            reason="the bank is gone",
            evidence="its receiver's letter",
        )
        assert (
            client.payout.CloseDeadLetter(request).dead_letter.state
            == operator_pb2.DEAD_LETTER_STATE_CLOSED
        )
        assert eventually(lambda: wallet_amounts(client, seller) == ("10.00", "0.00", "0.00"))
        wait_for_state(client, payout.payout_id, "FAILED")
    assert verify(scratch_database).passed


def test_a_charge_with_anothers_reference_is_closed_on_evidence(
    scratch_database: DatabaseUrls,
) -> None:
    """A provider that keeps answering with another charge's reference does not keep an order open.
    An operator closes its dead letter individually, the order fails, and the answer moves no money.
    A charge that was made anyway is found later and booked as unapplied.
    """
    own_references: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        return Succeeded(
            "ch_own" if request.charge_id in own_references else "ch_1",
            request.amount,
            request.currency,
        )

    poll_policy = {
        ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 100_000)
    }
    settings = fast_final_settings().replace(retry={**fast_final_settings().retry, **poll_policy})
    with client_of_platform(
        scratch_database, settings, ScriptedPaymentProvider(outcome_of)
    ) as client:
        assert create_payment(client, "5.00").is_payment_done
        other_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        dead_letter = wait_for_dead_letter(client, other_payment)
        many = operator_pb2.CloseDeadLettersRequest(
            all=True, reason="month's end", evidence="none in particular"
        )
        assert [
            skipped_letter.error_reason
            for skipped_letter in client.payment.CloseDeadLetters(many).skipped
        ] == [reason_pb2.REASON_INVALID_STATE]
        assert dead_letter_state(client, dead_letter) == "OPEN"
        close = operator_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id,
            reason="the buyer gave up",
            evidence="ticket 7",
        )
        closed_letter = client.payment.CloseDeadLetter(close).dead_letter
        assert (closed_letter.state, closed_letter.evidence) == (
            operator_pb2.DEAD_LETTER_STATE_CLOSED,
            "ticket 7",
        )
        assert failure_reason(wait_for_final_order(client, other_payment)) == "CLOSED_BY_OPERATOR"
        assert not booked_unapplied_charges(client, other_payment)
        own_references.append(other_payment.payment_orders[0].charge_id)
        (late_charge,) = eventually(lambda: booked_unapplied_charges(client, other_payment))
        assert (late_charge.provider_reference, late_charge.cause) == (
            "ch_own",
            payment_pb2.UNAPPLIED_CAUSE_LATE,
        )
    assert verify(scratch_database).passed


def test_the_command_line_handles_dead_letters_and_unapplied_charges(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """`tallystick dead-letters` lists, shows, retries and closes; `unapplied-charges` lists and
    acknowledges; errors are one sentence and exit 1.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, "--address", two_try_platform.address)

    listed_ids = [
        json.loads(line) for line in command("dead-letters", "list", "--json").stdout.splitlines()
    ]
    assert dead_letter.dead_letter_id in [
        letter_json["dead_letter_id"] for letter_json in listed_ids
    ]
    assert (
        json.loads(command("dead-letters", "show", dead_letter.dead_letter_id, "--json").stdout)[
            "payment_orders"
        ][0]["checkout_id"]
        == payment.checkout_id
    )
    close_command = command(
        "dead-letters",
        "close",
        dead_letter.dead_letter_id,
        "--reason",
        "r",
        "--evidence",
        "e",
        "--json",
    )
    assert json.loads(close_command.stdout)["dead_letter"]["state"] == "DEAD_LETTER_STATE_CLOSED"
    rejected_command = command("dead-letters", "retry", dead_letter.dead_letter_id, "--reason", "r")
    assert (rejected_command.returncode, rejected_command.stderr.count("\n")) == (1, 1)
    assert (
        "INVALID_STATE: The dead letter is CLOSED and cannot be retried." in rejected_command.stderr
    )
    other_payment = create_payment(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: booked_unapplied_charges(client, other_payment))
    completed = command(
        "unapplied-charges",
        "acknowledge",
        charge.unapplied_charge_id,
        "--reason",
        "refunded",
        "--json",
    )
    assert json.loads(completed.stdout)["acknowledge_reason"] == "refunded", completed.stderr
    assert charge.unapplied_charge_id not in command("unapplied-charges", "list").stdout
    assert charge.unapplied_charge_id in command("unapplied-charges", "list", "--all").stdout
