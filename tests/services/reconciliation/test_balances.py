"""The balances of statements: each begins where the one before it ends."""

from __future__ import annotations

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tests.support.platform import unique_id
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    file_request,
    kinds_of,
    reconcile,
    statement,
)

BALANCES = ("opening_balance", "opening_date", "closing_balance", "closing_date")


def day(number: int, opening: int, closing: int, opening_day: int = 0) -> list[pb.StatementItem]:
    """The statement of a day of March, with one line; balances in major units. `opening_day`: of
    the opening balance; 0: the same day.
    """
    amount = (closing - opening) * 100
    lines = [
        charge(
            amount,
            line_type="FEE",
            reference=unique_id("fee"),
            booking_date=f"2026-03-{number:02}",
        )
    ]
    return statement(
        lines if amount else [],
        opening_balance=f"{opening}.00",
        opening_date=f"2026-03-{opening_day or number:02}",
        closing_balance=f"{closing}.00",
        closing_date=f"2026-03-{number:02}",
    )


def send(
    client: Client, provider: Provider, *days: list[pb.StatementItem]
) -> reconciliation_pb2.StatementFile:
    """Reconciles a file with these statements."""
    items = [item for items in days for item in items]
    return client.reconcile_statement_file(
        file_request(provider.account, items), items
    ).statement_file


def gaps(client: Client, provider: Provider) -> list[str]:
    """The differences of the BALANCE_GAP breaks of an account, oldest first."""
    return [
        found.difference
        for found in breaks_of(
            client, account=provider.account, kind=reconciliation_pb2.BREAK_KIND_BALANCE_GAP
        )
    ]


@pytest.mark.parametrize("opening_day", [2, 1], ids=["of the day", "of the day before"])
def test_a_statement_begins_where_the_last_one_ends(
    client: Client, provider: Provider, opening_day: int
) -> None:
    """If it does not, a file is missing: a break has the difference."""
    send(client, provider, day(1, 0, -100))
    file = send(client, provider, day(2, -100, -150, opening_day))
    assert (kinds_of(file), gaps(client, provider)) == ({}, [])
    file = send(client, provider, day(4, -170, -180, 3))
    assert (kinds_of(file), gaps(client, provider)) == ({"BALANCE_GAP": 1}, ["-20.00"])
    (found,) = breaks_of(client, account=provider.account)
    assert (found.statement_file_id, list(found.lines)) == (file.statement_file_id, [])
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_file_may_have_several_days(client: Client, provider: Provider) -> None:
    """Each of its statements follows the one before it in the file."""
    send(client, provider, day(1, 0, -100))
    send(client, provider, day(2, -100, -150), day(3, -150, -175), day(4, -175, -175))
    assert gaps(client, provider) == []
    send(client, provider, day(5, -175, -180), day(7, -190, -200))
    assert gaps(client, provider) == ["-10.00"]


def test_a_day_may_have_several_statements(client: Client, provider: Provider) -> None:
    """A bank may report a day in parts."""
    send(client, provider, day(1, 0, -100))
    send(client, provider, day(2, -100, -150))
    send(client, provider, day(2, -150, -175))
    assert gaps(client, provider) == []
    send(client, provider, day(2, -190, -195))
    assert gaps(client, provider) == ["-15.00"]


@pytest.mark.parametrize("has_day_before", [True, False])
def test_the_same_day_again_is_no_gap(
    client: Client, provider: Provider, has_day_before: bool
) -> None:
    """A corrected statement of a day begins as the first one did, not where that ended."""
    if has_day_before:
        send(client, provider, day(1, 0, -100))
    send(client, provider, day(2, -100, -150))
    send(client, provider, day(2, -100, -155))
    assert gaps(client, provider) == []
    send(client, provider, day(3, -155, -160))
    assert gaps(client, provider) == []


def test_files_may_come_in_any_order(client: Client, provider: Provider) -> None:
    """A gap is found when the later file comes first; the late one fits."""
    send(client, provider, day(1, 0, -100))
    send(client, provider, day(3, -150, -175))
    assert gaps(client, provider) == ["-50.00"]
    assert kinds_of(send(client, provider, day(2, -100, -150))) == {}


def test_each_currency_has_its_own_balances(client: Client, provider: Provider) -> None:
    """Balances of another currency or account are not compared."""
    send(client, provider, day(1, 0, -100))
    lines = [charge(-7_00, line_type="FEE", currency="USD")]
    dollars = statement(lines, opening_balance="50.00", opening_date="2026-03-02")
    other = Provider(client)
    assert kinds_of(send(client, provider, dollars)) == {}
    assert kinds_of(send(client, other, day(2, 50, 40))) == {}


def test_statements_without_balances_have_no_gap(client: Client, provider: Provider) -> None:
    """What is not known is not compared."""
    send(client, provider, day(1, 0, -100))
    file = reconcile(client, provider.account, [charge(-1, line_type="FEE")]).statement_file
    assert kinds_of(file) == {}
    assert kinds_of(send(client, provider, day(2, -100, -150))) == {}


def plain(
    number: int, opening: int, amounts: list[int], *, closing_day: int = 0, text: str = "fee"
) -> list[pb.StatementItem]:
    """A statement whose lines have no reference, and are booked on the day of the opening balance;
    amounts and balance in major units.
    """
    date_ = f"2026-03-{number:02}"
    lines = [
        charge(amount * 100, line_type="FEE", booking_date=date_, text=text) for amount in amounts
    ]
    return statement(
        lines,
        opening_balance=f"{opening}.00",
        opening_date=date_,
        closing_balance=f"{opening + sum(amounts)}.00",
        closing_date=f"2026-03-{closing_day or number:02}",
    )


def differences(client: Client, provider: Provider) -> list[str]:
    """The differences of the BALANCE_DIFFERS breaks of an account, oldest first."""
    kind = reconciliation_pb2.BREAK_KIND_BALANCE_DIFFERS
    return [item.difference for item in breaks_of(client, account=provider.account, kind=kind)]


def test_equal_lines_of_two_statements_are_not_lost(client: Client, provider: Provider) -> None:
    """The second statement begins where the first ends, so its line is another one. It has no
    reference, and is taken for a repeat: a break has its amount.
    """
    send(client, provider, plain(1, 100, [-20]))
    file = send(client, provider, plain(1, 80, [-20]))
    assert (file.repeated_count, kinds_of(file)) == (1, {"BALANCE_DIFFERS": 1})
    assert differences(client, provider) == ["-20.00"]
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_corrected_line_without_a_reference_is_not_booked_twice_unseen(
    client: Client, provider: Provider
) -> None:
    """Nothing says that it replaces the first, so both are booked. The account has less than the
    statement by the first.
    """
    send(client, provider, day(1, 0, 50))
    send(client, provider, plain(2, 50, [-10]))
    file = send(client, provider, plain(2, 50, [-12]))
    assert kinds_of(file) == {"BALANCE_DIFFERS": 1}
    assert differences(client, provider) == ["10.00"]


@pytest.mark.parametrize(
    "statements",
    [
        [plain(1, 100, [-20, -5]), plain(1, 100, [-20, -5, -7])],
        [plain(1, 100, [-20, -5, -7]), plain(1, 100, [-20])],
        [plain(1, 100, [-20]), plain(1, 80, [-5]), plain(1, 100, [-20, -5])],
        [plain(1, 100, [-20, -5]), plain(1, 100, [-20]), plain(1, 80, [-5])],
        [plain(1, 100, [-20]), plain(3, 75, [-9]), plain(2, 80, [-5])],
        [plain(1, 100, [-20]), plain(1, 100, [-20, -5], closing_day=2), plain(3, 75, [])],
        [plain(3, 75, [-9]), plain(2, 80, [-5])],
    ],
    ids=["more", "less", "whole day", "parts", "late", "overlap", "only a later one"],
)
def test_statements_that_have_the_same_lines_fit_their_balances(
    client: Client, provider: Provider, statements: list[list[pb.StatementItem]]
) -> None:
    """The closing balance changes by the lines that are new, whichever file has a line first."""
    for number, items in enumerate(statements):
        request = file_request(provider.account, items, file_name=f"file-{number}")
        client.reconcile_statement_file(request, items)
    assert differences(client, provider) == []


def test_lines_of_a_file_without_balances_are_new_once(client: Client, provider: Provider) -> None:
    """The next statement has them again, as repeats, and its balances include them."""
    send(client, provider, plain(1, 100, [-20]))
    line = charge(-5_00, line_type="FEE", booking_date="2026-03-02", text="fee")
    reconcile(client, provider.account, [line])
    send(client, provider, plain(2, 80, [-5, -7]))
    assert (gaps(client, provider), differences(client, provider)) == ([], [])


def test_a_missing_file_is_a_gap_alone(client: Client, provider: Provider) -> None:
    """What the gap explains is no second break."""
    send(client, provider, plain(1, 100, [-20]))
    file = send(client, provider, plain(3, 70, [-5]))
    assert kinds_of(file) == {"BALANCE_GAP": 1}
