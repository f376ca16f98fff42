"""Books: chains of their own, opened by a row."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tallystick import Client
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick_core.ledger.hash_chain import GENESIS
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.services.ledger.test_ledger_service import error_reason, post, posting
from tests.support.charges import event_versions
from tests.support.errors import expect_error_reason
from tests.support.platform import ServedPlatform, eventually, serve_platform
from tests.support.rows import update_rows

LINES = (("x/a", "-1.00"), ("x/b", "1.00"))


def open_book(databases: DatabaseUrls, name: str) -> None:
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute("select ledger.open_book(%s)", (name,))


@pytest.fixture
def two_books(scratch_database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform with the books main and second."""
    with serve_platform(scratch_database) as platform:
        open_book(scratch_database, "second")
        yield platform


def test_a_second_book_is_data(two_books: ServedPlatform) -> None:
    """Two books take the same source id, number their transactions from 1, begin their chains at
    genesis, and have accounts of the same names with balances of their own. Every transaction has
    its event, and verify passes.
    """
    with two_books.client() as client:
        first, second, repeated = post(
            client,
            posting("j-1", *LINES),
            posting("j-1", *LINES, book="second"),
            posting("j-2", *LINES, book="second"),
        )
        assert [result.transaction.transaction_id for result in (first, second, repeated)] == [
            "main-1",
            "second-1",
            "second-2",
        ]
        assert second.transaction.previous_hash == first.transaction.previous_hash == GENESIS
        assert second.transaction.hash != first.transaction.hash
        (replay,) = post(client, posting("j-1", *LINES, book="second"))
        assert (replay.replayed, replay.transaction) == (True, second.transaction)
        for book, balance in (("", "1.00"), ("second", "2.00")):
            request = pb.GetAccountRequest(account="x/b", currency="EUR", book=book)
            account = client.ledger.GetAccount(request).account
            assert (account.book, account.balance) == (book or "main", balance)
            accounts = client.ledger.ListAccounts(pb.ListAccountsRequest(book=book)).accounts
            assert [item.balance for item in accounts] == ["-" + balance, balance]
            trial_balance = client.ledger.GetTrialBalance(pb.GetTrialBalanceRequest(book=book))
            assert [item.balance for item in trial_balance.lines] == ["-" + balance, balance]
            assert [item.amount for item in trial_balance.sums] == ["0.00"]
        streamed = client.ledger.StreamEntries(pb.StreamEntriesRequest(book="second"))
        assert [item.transaction.transaction_id for item in streamed] == ["second-1", "second-2"]
        listed = client.ledger.ListTransactions(pb.ListTransactionsRequest(source_id="j-1"))
        assert [item.transaction_id for item in listed.transactions] == ["main-1"]
        names = [f"transactions/{name}" for name in ("main-1", "second-1", "second-2")]
        assert eventually(lambda: [event_versions(client, name) for name in names] == [[1]] * 3)
    report = verify(two_books.databases)
    assert report.passed, report.as_text()


def test_a_reversal_is_of_its_book(two_books: ServedPlatform) -> None:
    """L5: transactions with the same number in two books are reversed independently; each names its
    own reversal.
    """
    with two_books.client() as client:
        post(client, posting("j-1", *LINES), posting("j-1", *LINES, book="second"))
        for name in ("second-1", "main-1"):
            book = name.partition("-")[0]
            reversal = client.ledger.ReverseTransaction(
                pb.ReverseTransactionRequest(transaction_id=name, reason="wrong")
            ).transaction
            assert (reversal.transaction_id, reversal.reverses_transaction_id) == (
                f"{book}-2",
                name,
            )
            original = client.ledger.GetTransaction(pb.GetTransactionRequest(transaction_id=name))
            assert original.transaction.reversed_by_transaction_id == f"{book}-2"
    assert verify(two_books.databases).passed


def test_a_clearing_account_is_locked_within_its_book_only(two_books: ServedPlatform) -> None:
    """Postings to one book wait at its head, before they reach any account. A posting to another
    book waits for neither the head nor the clearing account.
    """
    lines = (("psp/p/clearing", "-1.00"), ("x/b", "1.00"))
    with two_books.client() as client, psycopg.connect(two_books.databases.admin) as holder:
        post(client, posting("j-1", *lines), posting("j-1", *lines, book="second"))
        holder.execute("select ledger.lock_head('main')")
        holder.execute(
            "select from ledger.account where book = 'main' and account = 'psp/p/clearing' "
            "for update"
        )
        (result,) = post(client, posting("j-2", *lines, book="second"))
        assert result.transaction.transaction_id == "second-2"
        with psycopg.connect(two_books.databases.admin, autocommit=True) as other:
            # a posting to main cannot get past the head, so no account lock is contended
            other.execute("set lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("select ledger.lock_head('main')")


def test_an_unknown_book_is_named(client: Client) -> None:
    """Posting to or reading from a book that does not exist is NOT_FOUND, never an empty answer; a
    name that no book can have is FIELD_INVALID. Nothing is stored.
    """
    (result, valid) = post(client, posting("j-1", *LINES, book="nowhere"), posting("j-1", *LINES))
    assert error_reason(result) == "NOT_FOUND"
    assert result.error.message == "There is no book nowhere."
    assert valid.transaction.transaction_id
    (invalid,) = post(client, posting("j-2", *LINES, book="No-Book"))
    assert error_reason(invalid) == "FIELD_INVALID"
    reads = (
        (client.ledger.GetAccount, pb.GetAccountRequest(account="x/a", currency="EUR")),
        (client.ledger.ListAccounts, pb.ListAccountsRequest()),
        (client.ledger.ListTransactions, pb.ListTransactionsRequest()),
        (client.ledger.GetTrialBalance, pb.GetTrialBalanceRequest()),
    )
    for call, request in reads:
        request.book = "nowhere"
        assert expect_error_reason(call, request) == "NOT_FOUND"
    stream = client.ledger.StreamEntries(pb.StreamEntriesRequest(book="nowhere"))
    assert expect_error_reason(lambda: next(iter(stream))) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("edit", "violation"),
    [
        (
            "update ledger.account set book = 'other' where book = 'second'",
            "ledger.entry second-1/1: is in another book than its account",
        ),
        (
            "update ledger.head set sequence = 0 where book = 'second'",
            "ledger.head second: is at 0, but the book ends at 1",
        ),
        (
            "delete from ledger.relayed where book = 'second'",
            "ledger.relayed: has no row of the book second",
        ),
        (
            "update ledger.tx set book = 'other' where book = 'second'",
            "ledger.head: has no row of the book other",
        ),
    ],
)
def test_verify_checks_each_book(two_books: ServedPlatform, edit: str, violation: str) -> None:
    """L6 L7: an edit in one of two books is reported with the name of the book."""
    with two_books.client() as client:
        post(client, posting("j-1", *LINES), posting("j-1", *LINES, book="second"))
    with psycopg.connect(two_books.databases.admin, autocommit=True) as admin:
        admin.execute("set session_replication_role = replica")  # no triggers
        update_rows(admin, edit)
    assert violation in verify(two_books.databases).violations
