"""Entries of the ledger that no statement and no break has yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tallystick import Client, TallystickError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tests.support.break_operator import Operator
from tests.support.reconciliation import Provider, charge, clearing, reconcile

TODAY = datetime.now(UTC)


def entries_of(
    client: Client, account: str, min_age_days: int = 0
) -> list[reconciliation_pb2.LedgerItem]:
    """All pages, of one entry each."""
    request = pb.ListExpectedEntriesRequest(
        account=account, currency="EUR", min_age_days=min_age_days, page_size=1
    )
    return list(client.pages(client.reconciliation.ListExpectedEntries, request, "entries"))


def test_what_no_statement_has_is_listed_oldest_first(client: Client, provider: Provider) -> None:
    """Entries of one time are in the order of the ledger. The list explains the sum of the clearing
    report, and what a line or a break has is not in it.
    """
    times = [TODAY - timedelta(days=days) for days in (20, 3, 40, 3)]
    for index, time in enumerate(times):
        provider.pay_in(10_00 + index, f"ch-{index}", time=time)
    reconcile(client, provider.account, [charge(10_00, "ch-0")])
    found = entries_of(client, provider.account)
    assert [item.external_reference for item in found] == ["ch-2", "ch-1", "ch-3"]
    assert {(item.account, item.currency, item.kind) for item in found} == {
        (provider.account, "EUR", "PAY_IN")
    }
    report = clearing(client, provider.account)
    expected = sum(Decimal(part.amount.amount) for part in report.expected)
    assert sum(Decimal(item.amount) for item in found) == expected
    oldest = found[0]
    opened = Operator(client).open(
        provider.account, oldest.transaction_id, entry_number=oldest.entry_number
    )
    assert opened.difference == f"-{oldest.amount}"
    assert [item.external_reference for item in entries_of(client, provider.account)] == [
        "ch-1",
        "ch-3",
    ]


def test_entries_are_listed_by_age(client: Client, provider: Provider) -> None:
    """In days, of the time at which the money moved."""
    for days in (40, 10, 0):
        provider.pay_in(10_00, f"ch-{days}", time=TODAY - timedelta(days=days, minutes=1))
    for age, count in ((0, 3), (10, 2), (11, 1), (41, 0), (36_500, 0)):
        assert len(entries_of(client, provider.account, min_age_days=age)) == count, age


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"currency": "EUR"}, "FIELD_REQUIRED"),
        ({"account": "psp/a/clearing"}, "FIELD_REQUIRED"),
        ({"account": "psp/a/clearing", "currency": "EURO"}, "CURRENCY_UNKNOWN"),
        ({"account": "psp/a/clearing", "currency": "EUR", "min_age_days": -1}, "FIELD_INVALID"),
        ({"account": "psp/a/clearing", "currency": "EUR", "min_age_days": 36_501}, "FIELD_INVALID"),
    ],
)
def test_an_invalid_request_is_rejected(
    client: Client, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(TallystickError) as error:
        client.reconciliation.ListExpectedEntries(pb.ListExpectedEntriesRequest(**fields))  # type: ignore[arg-type]
    assert error.value.reason == reason
