"""The pages of the console to which the fields of a resource lead."""

from __future__ import annotations

import pytest

from tallystick_server.http.console.links import field_path


@pytest.mark.parametrize(
    ("account", "path"),
    [
        ("paymentOrders/o-1", "/console/orders/o-1"),
        ("payouts/p-1", "/console/payouts/p-1"),
        ("payouts/sandbox/clearing", "/console/accounts?account=payouts%2Fsandbox%2Fclearing"),
        ("sellers/s-1", "/console/accounts?account=sellers%2Fs-1"),
        ("ledger", "/console/accounts?account=ledger"),
        ("", ""),
    ],
)
def test_the_account_of_a_break_leads_to_its_page(account: str, path: str) -> None:
    """A break of an internal check may be about an order or a payout."""
    assert field_path("account", account) == path
