"""Breaks for tests."""

from __future__ import annotations

from tallystick import Client
from tests.support.platform import (
    unique_id,
)
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    kinds_of,
    reconcile,
)


def find_break(
    client: Client, provider: Provider, line_amount: int, ledger_amount: int = 10_00
) -> str:
    """A break AMOUNT_DIFFERS between a line and an entry; its id."""
    provider.pay_in(ledger_amount, reference := unique_id("ch"))
    file = reconcile(client, provider.account, [charge(line_amount, reference, fee=30)])
    assert kinds_of(file.statement_file) == {"AMOUNT_DIFFERS": 1}
    (found,) = breaks_of(client, statement_file_id=file.statement_file.statement_file_id)
    return found.break_id


def big_break(client: Client, provider: Provider) -> str:
    """A break whose resolution needs a second person."""
    return find_break(client, provider, 110_01)
