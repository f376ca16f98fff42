"""Explain: the story of a payment or a payout with its statement lines and breaks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tallystick import Client, NotFoundError, UnavailableError
from tallystick.history.v1 import explanation_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick.reconciliation.v1.reconciliation_pb2 import StatementLine
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.explanations import actions, actors, check_form, sources, story
from tests.support.payments import create_payment
from tests.support.payouts import create_destination, create_payout, create_sale, wait_for_state
from tests.support.platform import (
    ServedPlatform,
    free_address,
    run_command,
    serve_platform,
)
from tests.support.reconciliation import charge, reconcile

_ACCOUNT = "psp/sandbox/clearing"


def line_of_today(amount: int, charge_reference: str = "", **values: Any) -> StatementLine:
    """A line about money that moved today."""
    return charge(
        amount, charge_reference, booking_date=datetime.now(UTC).date().isoformat(), **values
    )


def explain(client: Client, id_: str) -> explanation_pb2.Explanation:
    request = pb.ExplainRequest(id=id_)
    return check_form(client.reconciliation.Explain(request).explanation)


def pay(client: Client) -> tuple[payment_pb2.Payment, str]:
    """A paid payment of 5 EUR, and the provider's id of its charge."""
    payment = create_payment(client, "5.00")
    return payment, payment.payment_orders[0].provider_reference


def test_a_payment_that_no_statement_has_is_paid_and_not_reconciled(client: Client) -> None:
    """Nobody must act: the next statement may have it."""
    payment, _ = pay(client)
    other, reference = pay(client)
    reconcile(client, _ACCOUNT, [line_of_today(5_00, reference)])
    explanation = explain(client, payment.checkout_id)
    assert explanation.summary.endswith(f"No statement of {_ACCOUNT} has it yet.")
    assert actors(explanation) == ["NOBODY"]
    assert "RECONCILIATION" not in sources(explanation)
    assert "1 statement line matches it." in explain(client, other.checkout_id).summary


@pytest.mark.parametrize("by", ["charge_reference", "reference"])
def test_a_matched_line_is_part_of_the_story(client: Client, by: str) -> None:
    """With its file, its number, its amount after the fee, and the rule that matched it."""
    payment, reference = pay(client)
    line = line_of_today(5_00, fee=15, **{by: reference})
    file = reconcile(client, _ACCOUNT, [line]).statement_file
    for id_ in (payment.checkout_id, reference):
        explanation = explain(client, id_)
        assert "1 statement line matches it." in explanation.summary
        assert (
            f"Line 2 of the statement file {file.statement_file_id} matches the ledger by "
            in story(explanation)
        )
        assert "It is a CHARGE of 4.85 EUR. The provider took a fee of 0.15 EUR." in story(
            explanation
        )
        assert sources(explanation)[-1] == "RECONCILIATION"


def test_a_break_waits_for_finance(client: Client) -> None:
    """Its kind, its difference and its detail are part of the story, and it is the next step."""
    payment, reference = pay(client)
    reconcile(client, _ACCOUNT, [line_of_today(5_50, reference)])
    explanation = explain(client, payment.checkout_id)
    assert actors(explanation) == ["OPERATOR"]
    assert "must resolve the break" in actions(explanation)
    assert "AMOUNT_DIFFERS" in story(explanation)
    assert "The difference is 0.50 EUR." in story(explanation)
    assert "is in the break" in story(explanation)
    assert "It is a CHARGE of 5.50 EUR." in story(explanation)
    assert "1 break is not resolved." in explanation.summary


def test_a_line_without_a_ledger_entry_is_found_by_its_reference(client: Client) -> None:
    """A charge that the platform counts as declined is on the statement: a break."""
    payment = create_payment(client, "5.00", token="tok_decline:do_not_honor")
    reference = payment.payment_orders[0].provider_reference
    assert reference
    reconcile(client, _ACCOUNT, [line_of_today(5_00, reference=reference)])
    explanation = explain(client, payment.checkout_id)
    assert "is in the break" in story(explanation)
    assert "is not resolved." in explanation.summary


def test_a_payout_is_explained_with_its_lines(client: Client) -> None:
    """By its id and by the provider's."""
    seller = create_sale(client, "20.00")
    create_destination(client, seller)
    payout_id = create_payout(client, seller, "10.00").payout_id
    paid = wait_for_state(client, payout_id, "PAID").payout
    line = line_of_today(-10_00, line_type="PAYOUT", reference=paid.provider_reference)
    reconcile(client, _ACCOUNT, [line])
    for id_ in (payout_id, paid.provider_reference):
        explanation = explain(client, id_)
        assert explanation.resource_name == f"payouts/{payout_id}"
        assert "It is a PAYOUT of -10.00 EUR." in story(explanation)


def test_an_unknown_id_is_not_found(client: Client) -> None:
    """In neither service."""
    with pytest.raises(NotFoundError) as error:
        explain(client, "missing")
    assert error.value.message == "There is no payment or payout with the id missing."


def test_a_service_that_does_not_answer_hides_only_its_own(scratch_database: DatabaseUrls) -> None:
    """Without PaymentService a payout is explained; another id is not said to be missing."""
    with serve_platform(scratch_database) as platform, platform.client() as client:
        seller = create_sale(client, "20.00")
        create_destination(client, seller)
        payout_id = create_payout(client, seller, "10.00").payout_id
        wait_for_state(client, payout_id, "PAID")
        nowhere = Settings().replace(
            service_addresses={
                **dict.fromkeys(("payout", "wallet", "ledger", "event"), platform.address),
                "payment": free_address(),
            }
        )
        with (
            serve_platform(scratch_database, nowhere, names=("reconciliation",)) as alone,
            alone.client(tries=1) as reconciliation_client,
        ):
            explanation = explain(reconciliation_client, payout_id)
            assert explanation.resource_name == f"payouts/{payout_id}"
            with pytest.raises(UnavailableError, match="PaymentService does not answer"):
                explain(reconciliation_client, "missing")


def test_the_command_explains_without_reconciliation(scratch_database: DatabaseUrls) -> None:
    """If ReconciliationService is not served at the address, the answer names what is missing."""
    names = ("payment", "payout", "wallet", "ledger", "event")
    with (
        serve_platform(scratch_database, names=names) as platform,
        platform.client() as client,
    ):
        payment, _ = pay(client)
        completed = run_command("explain", payment.checkout_id, "--address", platform.address)
        assert completed.stdout.splitlines()[0] == f"payments/{payment.checkout_id}: PAID"
        assert "- ReconciliationService did not explain it" in completed.stdout


def test_the_command_shows_the_lines(platform: ServedPlatform, client: Client) -> None:
    """In one call, whatever the id names."""
    payment, reference = pay(client)
    reconcile(client, _ACCOUNT, [line_of_today(5_00, reference)])
    completed = run_command("explain", payment.checkout_id, "--address", platform.address)
    assert "RECONCILIATION" in completed.stdout
    assert "What is missing here" not in completed.stdout
