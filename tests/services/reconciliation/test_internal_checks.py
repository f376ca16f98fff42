"""The ledger is compared with itself and with the wallets; what differs becomes a break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import service_names
from tallystick_server.reconciliation import check_breaks
from tallystick_storage.reconciliation import breaks as break_store
from tests.support.break_operator import Operator
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)
from tests.support.reconciliation import breaks_of, post

_OPEN = reconciliation_pb2.BREAK_STATE_OPEN
_RESOLVED = reconciliation_pb2.BREAK_STATE_RESOLVED
_WALLET_DIFFERS = reconciliation_pb2.BREAK_KIND_WALLET_DIFFERS
_LEDGER_UNBALANCED = reconciliation_pb2.BREAK_KIND_LEDGER_UNBALANCED


@pytest.fixture
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """All services, which check all the time."""
    settings = Settings().replace(
        retry=FAST_RETRY, worker__scan_interval=0.1, reconciliation__check_interval=0.1
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("checks")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


@pytest.fixture
def client(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client() as sdk_client:
        yield sdk_client


def sale(client: Client, seller: str) -> None:
    """A sale of 10.00, of which the seller has 10.00 in wallet and ledger."""
    checkout_id = unique_id("c")
    client.create_payment(
        checkout_id,
        [new_order(f"{checkout_id}-1", "buyer-1", seller, "10.00", "EUR", platform_fee="0")],
        credit_card_info="tok_visa",
    )


def found(client: Client, **filters: Any) -> list[reconciliation_pb2.Break]:
    return eventually(lambda: breaks_of(client, **filters))


def test_wallets_that_agree_with_the_ledger_open_no_break(client: Client) -> None:
    """A sale is in the ledger before it is in the wallet, or after; that is no break. The check
    has run when it finds a difference of another seller.
    """
    for number in range(3):
        sale(client, f"seller-{number}")
    lines = [
        JournalLine("platform/adjustments", "EUR", -5_00),
        JournalLine("sellers/seller-x", "EUR", 5_00),
    ]
    post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)
    (only,) = found(client, kind=_WALLET_DIFFERS)
    assert (only.account, only.difference, only.currency) == ("sellers/seller-x", "-5.00", "EUR")
    assert only.detail == "the wallet has -5.00 EUR more than the ledger"


def test_a_wallet_that_differs_is_one_break_until_it_agrees(client: Client) -> None:
    """However often it is checked. The break ends by itself."""
    sale(client, "seller-1")

    def correct(amount: int) -> None:
        lines = [
            JournalLine("platform/adjustments", "EUR", -amount),
            JournalLine("sellers/seller-1", "EUR", amount),
        ]
        post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)

    correct(3_00)
    (first,) = found(client, account="sellers/seller-1")
    assert (first.state, first.difference) == (_OPEN, "-3.00")
    correct(-3_00)
    assert eventually(lambda: breaks_of(client, account="sellers/seller-1", state=_RESOLVED))
    correct(1_00)
    assert eventually(lambda: len(breaks_of(client, account="sellers/seller-1")) == 2)


def test_a_difference_that_was_accepted_is_no_new_break(client: Client) -> None:
    """Until it is another one."""

    def post_to(seller: str, amount: int) -> None:
        lines = [
            JournalLine("platform/adjustments", "EUR", -amount),
            JournalLine(f"sellers/{seller}", "EUR", amount),
        ]
        post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)

    post_to("seller-1", 3_00)
    (first,) = found(client, account="sellers/seller-1")
    client.reconciliation.ResolveBreak(
        pb.ResolveBreakRequest(
            break_id=first.break_id,
            resolution=reconciliation_pb2.RESOLUTION_ACCEPT,
            reason="corrected by hand",
        )
    )
    post_to("seller-2", 1_00)  # the checks have run again once this is found
    assert found(client, account="sellers/seller-2")
    assert len(breaks_of(client, account="sellers/seller-1")) == 1
    post_to("seller-1", 1_00)
    assert eventually(lambda: len(breaks_of(client, account="sellers/seller-1")) == 2)


def test_a_difference_that_comes_again_is_a_new_break(client: Client) -> None:
    """It was accepted, and was gone since then. A break that an operator decides on meanwhile does
    not stop the checks.
    """
    lines = [
        JournalLine("platform/adjustments", "EUR", -3_00),
        JournalLine("sellers/seller-1", "EUR", 3_00),
    ]
    reverse = [line._replace(amount=-line.amount) for line in lines]
    post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)
    (first,) = found(client, account="sellers/seller-1")
    operator = Operator(client)
    operator.resolve(first.break_id, "ACCEPT")
    post(client, PostingKind.ADJUSTMENT, unique_id("a"), reverse)
    assert eventually(
        lambda: (
            [item.reason for item in operator.get(first.break_id).changes][-1]
            == "the difference is gone"
        )
    )
    post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)
    assert eventually(lambda: len(breaks_of(client, account="sellers/seller-1")) == 2)
    assert len(operator.get(first.break_id).changes) == 3


def test_two_checks_at_once_open_one_break(
    platform: ServedPlatform, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find the same difference at the same time."""
    barrier = threading.Barrier(2)
    list_remaining = break_store.list_remaining

    def list_together(*arguments: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(1)
        return list_remaining(*arguments)

    monkeypatch.setattr(break_store, "list_remaining", list_together)
    # as if each ran in another second
    monkeypatch.setattr(check_breaks, "_break_id", lambda *_: unique_id("c"))
    with serve_platform(
        platform.databases,
        platform.settings.replace(
            service_addresses=dict.fromkeys(
                [name for name in service_names() if name != "reconciliation"], platform.address
            )
        ),
        ("reconciliation",),
    ):
        lines = [
            JournalLine("platform/adjustments", "EUR", -3_00),
            JournalLine("sellers/seller-1", "EUR", 3_00),
        ]
        post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines)
        assert found(client, account="sellers/seller-1")
        post(
            client,
            PostingKind.ADJUSTMENT,
            unique_id("a"),
            [
                JournalLine("platform/adjustments", "EUR", -1_00),
                JournalLine("sellers/seller-2", "EUR", 1_00),
            ],
        )
        assert found(client, account="sellers/seller-2")
        assert len(breaks_of(client, account="sellers/seller-1")) == 1


def test_a_ledger_that_does_not_balance_is_a_break(
    platform: ServedPlatform, client: Client
) -> None:
    """The sum of all accounts is not zero in a currency: a row was changed."""
    sale(client, "seller-1")
    with psycopg.connect(platform.databases.admin) as admin:
        admin.execute("set session_replication_role = replica")  # no triggers
        admin.execute(
            "update ledger.entry e set balance_after = balance_after + 7 from ledger.account a "
            "where a.account_id = e.account_id and a.account like 'psp/%'"
        )
    (only,) = found(client, kind=_LEDGER_UNBALANCED)
    assert (only.account, only.difference) == ("ledger", "0.07")
