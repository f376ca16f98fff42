"""`tallystick verify` reports edits that a person with the administrator's rights has made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.platform import fresh_database
from tests.tampering.database import fill_database
from tests.tampering.exempt import PAGE_PATH, render_page
from tests.tampering.run import Tampering

COLUMNS_BY_TABLE = {
    "payout.attempt": (
        "amount currency outcome provider_key provider_reference moved_amount failure_reason "
        "decline_code start_time end_time"
    ),
    "payout.payout": (
        "paid_amount returned_amount provider_reference payout_destination_id decline_code "
        "reserve caller"
    ),
    "payout.payout_destination": (
        "seller_account currency bank_account_token description usable_time verified_time "
        "disabled_by disable_reason"
    ),
    "payout.payout_history": "transition_reason booked actor reason create_time",
    "payout.payout_schedule": "minimum_amount fee reserve version",
    "payout.payout_batch": "item_count rejected_count done_time",
    "payout.payout_batch_item": "amount error",
    "payout.transfer": "amount provider_reference returned_amount create_time",
    "payout.alert": "detail create_time end_time",
    "payout.operation": "next_try_time retry_counts",
    "wallet.wallet": "frozen policy_version",
    "wallet.wallet_entry": (
        "kind source_id caller amount pending_after available_after held_after owed_after "
        "create_time"
    ),
    "wallet.wallet_policy": "release_delay frozen caller create_time",
    "wallet.hold": "amount captured_amount end_time",
    "wallet.seller": "owner version",
    "event.event": "aggregate_id aggregate_version type owner body",
    "event.head": "cursor",
    "ledger.head": "sequence hash",
    "ledger.tx": "fingerprint",
    "payment.checkout": "caller payment_token cancel_reason done_time",
    "payment.payment_order": (
        "failure_reason decline_code provider_reference pending_reason resolve_by_time"
    ),
    "payment.order_history": (
        "transition_reason failure_reason decline_code provider_reference pending_reason "
        "create_time"
    ),
    "payment.attempt": "provider_key amount outcome failure_reason decline_code",
    "payment.unapplied_charge": "charge_id caller",
    "payment.alert": "detail end_time",
    "payment.dead_letter": "cause detail operator reason",
    "payment.operation": "next_try_time",
    "reconciliation.statement_file": "file_name matched_count reconcile_time",
    "reconciliation.statement": "line_count total currency",
    "reconciliation.statement_line": (
        "statement_number line_type amount currency fee booking_date reference charge_reference "
        "settlement_reference identity occurrence match_number break_id"
    ),
    "reconciliation.open_item": (
        "account currency amount external_reference effective_time line_type"
    ),
    "reconciliation.ledger_item": (
        "account currency amount kind source_id external_reference effective_time line_type"
    ),
    "reconciliation.closed_item": "account currency amount match_number break_id",
    "reconciliation.ledger_position": "sequence",
    "reconciliation.clearing_balance": "ledger_balance statement_balance",
    "reconciliation.expected_sum": "account currency hour entry_count amount",
    "reconciliation.break_sum": "account currency break_class break_count amount",
    "reconciliation.break": "kind difference resolution assignee version",
    "reconciliation.break_change": "caller reason action",
    "reconciliation.break_rule": "rule_limit reason",
    "reconciliation.ledger_posting": "amount entries caller reason transaction_id",
    "reconciliation.alert": "detail end_time",
}
"""Columns whose edits verify never reported, except those of which the database accepts no single
edit.
"""


@pytest.fixture(scope="module")
def tampering(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampering]:
    with fresh_database(admin_url, tmp_path_factory.mktemp("tamper")) as databases:
        fill_database(databases)
        opened_tampering = Tampering(databases.admin)
        try:
            assert opened_tampering.report().passed, opened_tampering.report().as_text()
            yield opened_tampering
        finally:
            opened_tampering.close()


def test_verify_names_edits_of_every_table(tampering: Tampering) -> None:
    """verify reports each random edit, with all triggers off, of any table and column that is not
    exempt, and no edit stops it. Thousands: scripts/tamper.
    """
    result = tampering.run(50, seed=7)
    assert result.edit_count == 50
    assert not result.missed
    assert not result.crashed


@pytest.mark.parametrize("table", COLUMNS_BY_TABLE)
def test_verify_names_an_edit_of_each_column(tampering: Tampering, table: str) -> None:
    """With all triggers off, one cell of each column of a table is edited, and verify reports each
    edit.
    """
    names = [f"{table}.{column}" for column in COLUMNS_BY_TABLE[table].split()]
    result = tampering.run_named(names)
    assert not result.not_editable, "no cell can be edited"
    assert result.edit_count == len(names)
    assert not result.missed


@pytest.mark.parametrize(
    "edit",
    [
        "delete from ledger.head",
        "delete from ledger.relayed",
        "delete from event.head",
        (
            "update event.event x set body = y.body from event.event y where x.cursor in (3, 4) "
            "and y.cursor = 7 - x.cursor"
        ),
        "insert into event.event (cursor, aggregate_id, aggregate_version, type, owner, "
        "publish_time, body) select cursor + 1, 'payments/forged', 1, type, owner, publish_time, "
        "body from event.event order by cursor desc limit 1",
        "delete from event.event where cursor = (select max(cursor) from event.event)",
        "delete from payment.attempt where outcome = 'DECLINED'",
        "delete from payout.attempt where outcome = 'DECLINED'",
        "delete from payment.unapplied_charge",
        "delete from wallet.hold where hold_id = 'h-1'",
        "delete from wallet.wallet_policy",
        "delete from payout.payout_schedule",
        "delete from payout.payout_batch_item",
        ("update payment.operation set next_try_time = next_try_time + interval '1000 years'"),
        "update payout.operation set next_try_time = next_try_time + interval '1000 years'",
        "delete from reconciliation.statement_file where state = 'LOADING'",
        "delete from reconciliation.statement_line where outcome = 'REPEATED'",
        "delete from reconciliation.open_item",
        "delete from reconciliation.clearing_balance",
        "delete from reconciliation.expected_sum",
        "delete from reconciliation.break_sum",
        "delete from reconciliation.ledger_position",
        "delete from reconciliation.break where state = 'OPEN'",
        "delete from reconciliation.ledger_posting where kind = 'ADJUSTMENT'",
        (
            "update reconciliation.ledger_posting set is_posted = false, transaction_id = '' "
            "where kind = 'PROVIDER_FEE'"
        ),
    ],
)
def test_verify_names_edits_of_whole_rows(tampering: Tampering, edit: str) -> None:
    """verify reports rows that are deleted, forged or exchanged with all triggers off, and no edit
    stops a check.
    """
    report = tampering.report_after(edit)
    assert not report.passed


def test_the_page_of_exemptions_is_the_list() -> None:
    """The page about what verify does not see lists exactly the edits that the tampering excludes,
    with the reasons.
    """
    assert PAGE_PATH.read_text() == render_page(), (
        "python -m tests.tampering.exempt writes it again"
    )
