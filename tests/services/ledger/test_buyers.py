"""Buyers share a bounded number of accounts, and their transactions name them."""

from __future__ import annotations

from tallystick import Client, new_order
from tallystick.ledger.v1 import ledger_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick_core.ledger.posting_rules import buyer_shard, pay_in_lines
from tests.services.ledger.test_ledger_service import error_reason, post, posting
from tests.support.errors import from_status
from tests.support.platform import eventually, unique_id


def list_of_buyer(client: Client, buyer: str) -> list[ledger_pb2.Transaction]:
    request = pb.ListTransactionsRequest(buyer_account=buyer)
    return list(client.ledger.ListTransactions(request).transactions)


def test_a_buyer_has_one_of_sixteen_accounts() -> None:
    """However many buyers there are, they share sixteen accounts. The account of a buyer is stable:
    a repeated posting has the same lines in any process and release.
    """
    shards = {buyer_shard(f"b-{number}") for number in range(10_000)}
    assert shards == {f"buyers/{number}" for number in range(16)}
    assert [buyer_shard(buyer) for buyer in ("buyer-1", "buyer-ada", "x")] == [
        "buyers/4",
        "buyers/15",
        "buyers/3",
    ]


def test_the_lines_of_a_buyer_sum_to_zero() -> None:
    """Debit and credit of a buyer are in the same account, which stays at zero."""
    lines = pay_in_lines("p", "buyer-1", "s-1", "EUR", 100, 5)
    assert [line.amount for line in lines if line.account == buyer_shard("buyer-1")] == [100, -100]


def test_what_happened_to_a_buyer_is_listed(client: Client) -> None:
    """Payments of a buyer open no account of their own, and are listed by buyer, newest first."""
    buyer = unique_id("b")
    order_ids = []
    for _ in range(2):
        checkout_id = unique_id("c")
        order = new_order(f"{checkout_id}-1", buyer, f"seller-{checkout_id}", "3.00", "EUR")
        payment = client.create_payment(checkout_id, [order], credit_card_info="tok_visa")
        order_ids.append(payment.payment_orders[0].payment_order_id)
    assert eventually(
        lambda: [item.source_id for item in list_of_buyer(client, buyer)] == order_ids[::-1]
    )
    for transaction in list_of_buyer(client, buyer):
        assert transaction.buyer_account == buyer
    accounts = client.ledger.ListAccounts(pb.ListAccountsRequest(prefix="buyers/", page_size=200))
    assert 0 < len(accounts.accounts) <= 16 * len({item.currency for item in accounts.accounts})
    assert {item.balance.strip("0.") for item in accounts.accounts} == {""}


def test_a_source_has_one_buyer(client: Client) -> None:
    """A repeat with another buyer is rejected; the error names the field."""
    source_id, lines = unique_id("j"), ((f"x/{unique_id('a')}", "-1.00"), ("x/z", "1.00"))
    post(client, posting(source_id, *lines, buyer_account="b-1"))
    (reused,) = post(client, posting(source_id, *lines, buyer_account="b-2"))
    assert error_reason(reused) == "IDEMPOTENCY_KEY_REUSED"
    assert from_status(reused.error).metadata["field"] == "buyer_account"
