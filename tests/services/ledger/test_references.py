"""The references and times that postings carry for reconciliation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.ledger.v1 import ledger_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.ledger.hash_chain import compute_chain_hash
from tallystick_core.ledger.posting import Posting, build_reversal
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tests.services.ledger.test_ledger_service import error_reason, post, posting
from tests.support.charges import booked_unapplied_charges
from tests.support.errors import from_status
from tests.support.ledger import list_by_reference
from tests.support.payments import create_payment
from tests.support.platform import eventually, unique_id

TIME = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def one_posting(**values: object) -> Posting:
    lines = (JournalLine("x/a", "EUR", -1), JournalLine("x/b", "EUR", 1))
    return Posting(PostingKind.ADJUSTMENT, "j-1", "test", lines, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", ["external_reference", "effective_time", "buyer_account"])
def test_each_field_is_in_fingerprint_and_hash(changed: str) -> None:
    """L6: a posting with another reference, effective time or buyer has another fingerprint and
    hash.
    """
    original = one_posting(external_reference="pi_1", effective_time=TIME, buyer_account="b-1")
    value = {
        "external_reference": "pi_2",
        "effective_time": TIME + timedelta(microseconds=1),
        "buyer_account": "b-2",
    }
    other = replace(original, **{changed: value[changed]})  # type: ignore[arg-type]
    assert original.fingerprint != other.fingerprint
    first, second = (
        compute_chain_hash(bytes(32), item, 1, item.effective_time or TIME, TIME)
        for item in (original, other)
    )
    assert first != second


def test_a_reversal_has_reference_and_buyer_of_its_transaction() -> None:
    """A list by reference, or of a buyer, has the reversal with the transaction."""
    original = one_posting(external_reference="pi_1", buyer_account="b-1")
    reversal = build_reversal(original, 7, "wrong", "test")
    assert (reversal.external_reference, reversal.buyer_account) == ("pi_1", "b-1")


def test_a_posting_has_a_reference_and_a_time(client: Client) -> None:
    """Reference and effective time are answered as they were posted, and list by reference finds
    the transactions, whatever the other filters. A repeat with another reference is rejected.
    """
    reference, sources = f"4242424242424242/{unique_id('r')}", [unique_id("j") for _ in range(3)]
    accounts = [unique_id("a") for _ in sources]
    moved = Timestamp(seconds=1_750_000_000, nanos=123_456_000)
    postings = [
        posting(
            source,
            (f"x/{account}", "-1.00"),
            ("x/z", "1.00"),
            external_reference=reference if index < 2 else "",
            effective_time=moved,
        )
        for index, (source, account) in enumerate(zip(sources, accounts, strict=True))
    ]
    for result in post(client, *postings):
        assert result.transaction.effective_time == moved
    found = list_by_reference(client, reference)
    assert [transaction.source_id for transaction in found] == [sources[1], sources[0]]
    assert {transaction.external_reference for transaction in found} == {reference}
    for filters in ({"account": f"x/{accounts[0]}"}, {"source_id": sources[0]}):
        (transaction,) = list_by_reference(client, reference, **filters)
        assert transaction.source_id == sources[0]
    assert not list_by_reference(client, reference, source_id=sources[0], account="x/nobody")
    assert not list_by_reference(client, reference, currency="USD")
    postings[0].external_reference += "-other"
    (reused,) = post(client, postings[0])
    assert error_reason(reused) == "IDEMPOTENCY_KEY_REUSED"
    assert from_status(reused.error).metadata["field"] == "external_reference"


def test_a_reference_that_is_too_long_is_rejected(client: Client) -> None:
    """A reference has at most 255 characters; the error names the field."""
    lines = ((f"x/{unique_id('a')}", "-1.00"), ("x/z", "1.00"))
    (result,) = post(client, posting(unique_id("j"), *lines, external_reference="r" * 256))
    assert "postings[0].external_reference must have at most 255" in result.error.message


def test_a_pay_in_carries_its_charge(client: Client) -> None:
    """The orders of one combined charge are posted under the provider's reference of the charge,
    with the time of its outcome.
    """
    payment = create_payment(client, "3.00", "4.00", charge_mode=payment_pb2.CHARGE_MODE_COMBINED)
    reference = payment.payment_orders[0].provider_reference
    transactions = list_by_reference(client, reference, kind=ledger_pb2.TRANSACTION_KIND_PAY_IN)
    times = {transaction.source_id: transaction.effective_time for transaction in transactions}
    assert times.keys() == {order.payment_order_id for order in payment.payment_orders}
    for order_id, time in times.items():
        history = client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
        ).history
        (outcome_time,) = (
            step.create_time
            for step in history
            if step.transition_reason == history_pb2.TRANSITION_REASON_PROVIDER_OUTCOME
        )
        assert time == outcome_time


def test_an_unapplied_charge_carries_its_reference(client: Client) -> None:
    """Money that fits no order is posted under the provider's reference, with the time at which it
    was reported.
    """
    payment = create_payment(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: booked_unapplied_charges(client, payment))
    (transaction,) = list_by_reference(client, charge.provider_reference)
    assert (transaction.source_id, transaction.effective_time) == (
        charge.unapplied_charge_id,
        charge.create_time,
    )
