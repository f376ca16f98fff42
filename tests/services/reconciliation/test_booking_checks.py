"""What orders and payouts say of their booking is compared with wallets and ledger; what differs
becomes a break.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tallystick import Client, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.reconciliation import booking_checks
from tallystick_server.reconciliation.booking_checks import BookingChecks
from tallystick_server.reconciliation.check_breaks import Difference, open_breaks
from tests.support.break_operator import Operator
from tests.support.payouts import create_destination, create_payout, get_payout, state_name
from tests.support.platform import FAST_RETRY, eventually, serve_platform
from tests.support.reconciliation import breaks_of, post

_KIND = BreakKind.ORDER_DIFFERS
_ORDER_DIFFERS = reconciliation_pb2.BREAK_KIND_ORDER_DIFFERS
_HOLD_DIFFERS = reconciliation_pb2.BREAK_KIND_HOLD_DIFFERS
_OPEN = reconciliation_pb2.BREAK_STATE_OPEN
_RESOLVED = reconciliation_pb2.BREAK_STATE_RESOLVED
_SETTINGS = Settings().replace(
    retry=FAST_RETRY,
    worker__scan_interval=0.1,
    release_delay=0,
    payout__approval_threshold={"EUR": 5_00},
)
_UNPUBLISHED = """
    select (select count(*) from payment.outbox) + (select count(*) from payout.outbox)
        + (select count(*) from wallet.outbox) + (select count(*) from ledger.tx)
        - (select coalesce(sum(sequence), 0) from ledger.relayed)
"""
_POSITION = "select coalesce(max(event_cursor), 0) from reconciliation.check_position"


@contextmanager
def _without_checks(databases: DatabaseUrls) -> Iterator[Client]:
    """All services; their first check finds nothing that is old enough."""
    with serve_platform(databases, _SETTINGS) as platform, platform.client() as client:
        yield client
        _wait_until_published(databases)


@contextmanager
def _serve_with_checks(databases: DatabaseUrls) -> Iterator[Client]:
    """All services, which check all the time."""
    settings = _SETTINGS.replace(reconciliation__check_interval=0.1)
    with serve_platform(databases, settings) as platform, platform.client() as client:
        yield client


@contextmanager
def _with_checks(databases: DatabaseUrls) -> Iterator[Client]:
    """All services, which have checked all events."""
    with _serve_with_checks(databases) as client:
        _wait_until_checked(databases, client)
        yield client


def _wait_until_published(databases: DatabaseUrls) -> None:
    """Events that come later than those of other services would be breaks for a moment."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        assert eventually(lambda: connection.execute(_UNPUBLISHED).fetchall() == [(0,)])


def _wait_until_checked(databases: DatabaseUrls, client: Client) -> None:
    """Until all that has happened is published and examined."""
    _wait_until_published(databases)
    request = event_service_pb2.StreamEventsRequest(types=booking_checks._TYPES)
    last = max(response.event.cursor for response in client.event.StreamEvents(request))
    assert eventually(lambda: _position(databases) >= last)


def _position(databases: DatabaseUrls) -> int:
    """The cursor of the last event that was examined."""
    with psycopg.connect(databases.admin) as connection:
        ((cursor,),) = connection.execute(_POSITION).fetchall()
    return int(cursor)


def _sale(client: Client, order_id: str, amount: str = "10.00") -> None:
    """An order of seller s, of which the seller has 10.00 less the fee of 1.00."""
    order = new_order(order_id, "buyer-1", "s", amount, "EUR", platform_fee="1.00")
    client.create_payment(f"c-{order_id}", [order], credit_card_info="tok_visa")


def _pay_out(client: Client, payout_id: str, amount: str, state: str) -> None:
    """A payout of seller s, once it is in a state and its wallet is up to date."""
    create_payout(client, "s", amount, payout_id=payout_id)
    assert eventually(lambda: _is_in(client, payout_id, state))


def _cancel(client: Client, payout_id: str) -> None:
    client.payout.CancelPayout(
        payout_service_pb2.CancelPayoutRequest(payout_id=payout_id, reason="x")
    )
    assert eventually(lambda: _is_in(client, payout_id, "CANCELLED"))


def _is_in(client: Client, payout_id: str, state: str) -> bool:
    payout = get_payout(client, payout_id).payout
    return state_name(payout) == state and (payout.wallet_updated or state == "AWAITING_APPROVAL")


def _edit(databases: DatabaseUrls, statement: str) -> None:
    """Changes rows by hand, without triggers."""
    with psycopg.connect(databases.admin) as admin:
        admin.execute("set session_replication_role = replica")
        assert admin.execute(statement).rowcount == 1


@pytest.mark.parametrize(("page_size", "max_listed"), [(200, 200), (3, 3)])
def test_bookings_that_agree_open_no_break(
    scratch_database: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
    page_size: int,
    max_listed: int,
) -> None:
    """A sale, a paid payout, one that waits and one that was cancelled agree, however many events
    are examined at once, and however few are listed.
    """
    monkeypatch.setattr(booking_checks, "_PAGE_SIZE", page_size)
    monkeypatch.setattr(booking_checks, "_MAX_LISTED_EVENTS", max_listed)
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1", "30.00")
        create_destination(client, "s")
        _pay_out(client, "paid", "1.00", "PAID")
        _pay_out(client, "waits", "6.00", "AWAITING_APPROVAL")
        _pay_out(client, "cancelled", "7.00", "AWAITING_APPROVAL")
        _cancel(client, "cancelled")
    with _with_checks(scratch_database) as client:
        assert breaks_of(client) == []


def test_an_order_without_its_credit_is_a_break_until_it_has_it(
    scratch_database: DatabaseUrls,
) -> None:
    """The order says that its seller was credited, and the wallet has no such entry."""
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1")
        _sale(client, "o-2")
    _edit(
        scratch_database,
        "update wallet.wallet_entry set source_id = 'PAY_IN/lost' where source_id = 'PAY_IN/o-1'",
    )
    with _with_checks(scratch_database) as client:
        (only,) = breaks_of(client, kind=_ORDER_DIFFERS)
        assert (only.account, only.difference, only.currency) == (
            "paymentOrders/o-1",
            "-9.00",
            "EUR",
        )
        assert only.detail == (
            "s should have 9.00 EUR by the order, and has 0.00 in the wallet and 9.00 in the ledger"
        )
        _sale(client, "o-3")
        _wait_until_checked(scratch_database, client)
        assert [item.state for item in breaks_of(client, account="paymentOrders/o-1")] == [_OPEN]
        _edit(
            scratch_database,
            "update wallet.wallet_entry set source_id = 'PAY_IN/o-1' "
            "where source_id = 'PAY_IN/lost'",
        )
        assert eventually(lambda: breaks_of(client, kind=_ORDER_DIFFERS, state=_RESOLVED))


def test_an_order_without_its_transaction_is_a_break(scratch_database: DatabaseUrls) -> None:
    """The order says that it is posted, and the ledger has it under another id."""
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1")
    _edit(scratch_database, "update ledger.tx set source_id = 'lost' where source_id = 'o-1'")
    with _with_checks(scratch_database) as client:
        (only,) = breaks_of(client, account="paymentOrders/o-1")
        assert (only.kind, only.difference) == (_ORDER_DIFFERS, "-9.00")


def test_a_break_whose_events_are_deleted_stays_open(scratch_database: DatabaseUrls) -> None:
    """Nothing says any more that the order is booked, but the money is still missing."""
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1")
    for table in ("wallet.wallet_entry", "ledger.tx"):
        prefix = "PAY_IN/" if table == "wallet.wallet_entry" else ""
        _edit(
            scratch_database,
            f"update {table} set source_id = '{prefix}lost' where source_id = '{prefix}o-1'",
        )
    with _with_checks(scratch_database) as client:
        assert [item.account for item in breaks_of(client)] == ["paymentOrders/o-1"]
        with psycopg.connect(scratch_database.admin) as admin:
            admin.execute("set session_replication_role = replica")
            admin.execute("delete from event.event where aggregate_id = 'paymentOrders/o-1'")
        _sale(client, "o-2")
        _wait_until_checked(scratch_database, client)
        assert [item.state for item in breaks_of(client, account="paymentOrders/o-1")] == [_OPEN]


def test_what_is_booked_for_no_order_is_a_break(scratch_database: DatabaseUrls) -> None:
    """The ledger has a pay-in, and no order says so. Accepted, it is no new break."""
    lines = [
        JournalLine("psp/p/clearing", "EUR", -5_00),
        JournalLine("sellers/s", "EUR", 5_00),
    ]
    with _serve_with_checks(scratch_database) as client:
        post(client, PostingKind.PAY_IN, "o-none", lines)
        (only,) = eventually(lambda: breaks_of(client, kind=_ORDER_DIFFERS))
        assert (only.account, only.difference) == ("paymentOrders/o-none", "5.00")
        Operator(client).resolve(only.break_id, "ACCEPT")
        post(client, PostingKind.PAY_IN, "o-other", lines)
        assert eventually(lambda: breaks_of(client, account="paymentOrders/o-other"))
        assert len(breaks_of(client, account="paymentOrders/o-none")) == 1


def test_a_credit_of_no_order_is_a_break(scratch_database: DatabaseUrls) -> None:
    """Nor has the ledger anything of it."""
    request = wallet_service_pb2.BatchCreditRequest()
    request.credits.add(
        source_id="PAY_IN/o-none", caller="x", seller_account="s", amount="4.00", currency="EUR"
    )
    with _serve_with_checks(scratch_database) as client:
        assert not client.wallet.BatchCredit(request).results[0].HasField("error")
        (only,) = eventually(lambda: breaks_of(client, kind=_ORDER_DIFFERS))
        assert (only.account, only.difference) == ("paymentOrders/o-none", "4.00")


def test_an_order_is_compared_again_once_its_credit_is_released() -> None:
    """Before, its wallet may have changed too lately to be compared, and it has no other event."""
    entry = wallet_pb2.WalletEntry(
        kind=wallet_pb2.WALLET_ENTRY_KIND_RELEASE, source_id="PAY_IN/o-1"
    )
    assert booking_checks._subjects([event_pb2.Event(wallet_entry=entry)]) == {"paymentOrders/o-1"}


def test_a_break_that_another_process_finds_meanwhile_is_not_ended(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process compares the breaks that it knows, and another opens one before that ends."""
    compare, opened = BookingChecks._compare, list[str]()

    async def compare_slowly(checks: BookingChecks, subjects: Sequence[str], until: int) -> Any:
        result = await compare(checks, subjects, until)
        if subjects == ["paymentOrders/o-1"] and opened == ["armed"]:
            other = Difference(_KIND, "paymentOrders/o-none", "EUR", 5_00, "found by the other")
            await checks._database.transact(lambda connection: open_breaks(connection, [other], ""))
            opened.append(other.account)
        return result

    monkeypatch.setattr(BookingChecks, "_compare", compare_slowly)
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1")
    _edit(scratch_database, "update ledger.tx set source_id = 'lost' where source_id = 'o-1'")
    with _with_checks(scratch_database) as client:
        opened.append("armed")
        lines = [
            JournalLine("psp/p/clearing", "EUR", -5_00),
            JournalLine("sellers/s", "EUR", 5_00),
        ]
        post(client, PostingKind.PAY_IN, "o-none", lines)
        assert eventually(lambda: len(opened) == 2)
        _wait_until_checked(scratch_database, client)
        (only,) = breaks_of(client, account="paymentOrders/o-none")
        assert (only.state, only.detail) == (_OPEN, "found by the other")


@pytest.mark.parametrize(
    ("payout_id", "statement", "difference", "detail"),
    [
        (
            "waits",
            "delete from wallet.wallet_entry where source_id = 'payouts/waits'",
            "-6.00",
            "6.00 EUR of s should be held for it, and 0.00 is held",
        ),
        (
            "cancelled",
            "delete from wallet.wallet_entry where source_id = 'payouts/cancelled' "
            "and kind = 'HOLD_RELEASED'",
            "7.00",
            "0.00 EUR of s should be held for it, and 7.00 is held",
        ),
    ],
)
def test_a_payout_with_another_hold_is_a_break(
    scratch_database: DatabaseUrls, payout_id: str, statement: str, difference: str, detail: str
) -> None:
    """One that waits has no hold, or one that was cancelled still has it."""
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1", "30.00")
        create_destination(client, "s")
        _pay_out(client, "waits", "6.00", "AWAITING_APPROVAL")
        _pay_out(client, "cancelled", "7.00", "AWAITING_APPROVAL")
        _cancel(client, "cancelled")
    _edit(scratch_database, statement)
    with _with_checks(scratch_database) as client:
        (only,) = breaks_of(client, kind=_HOLD_DIFFERS)
        assert (only.account, only.difference) == (f"payouts/{payout_id}", difference)
        assert only.detail == detail


@pytest.mark.parametrize("cursor", [10**9, 1])
def test_a_cursor_that_does_not_exist_stops_no_check(
    scratch_database: DatabaseUrls, cursor: int
) -> None:
    """The database of events was restored, or the next events are deleted: the check continues with
    those that are there.
    """
    with _without_checks(scratch_database) as client:
        _sale(client, "o-1")
    with psycopg.connect(scratch_database.admin) as admin:
        admin.execute("insert into reconciliation.check_position values ('bookings', %s)", [cursor])
        admin.execute("update event.horizon set cursor = 3, publish_time = now()")
    with _serve_with_checks(scratch_database) as client:
        _sale(client, "o-2")
        assert eventually(lambda: 3 < _position(scratch_database) < 10**9)
