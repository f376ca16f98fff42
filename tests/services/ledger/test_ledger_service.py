"""LedgerService through the SDK."""

from __future__ import annotations

import itertools
import runpy
from base64 import b64encode
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import (
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TallystickError,
)
from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.ledger.v1 import ledger_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.ledger.events import LedgerEvents
from tallystick_server.outbox.relay import EventBatch, Relay
from tallystick_server.verify.run import verify
from tests.support.errors import from_status
from tests.support.platform import (
    ROOT,
    backup_database,
    database_of,
    eventually,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows

ADJUSTMENT = ledger_pb2.TRANSACTION_KIND_ADJUSTMENT


def ledger_entries(*lines: tuple[str, str], currency: str = "EUR") -> list[ledger_pb2.Entry]:
    """Entries from (account, amount), with "-" for a debit."""
    return [
        ledger_pb2.Entry(
            account=account,
            amount=amount.lstrip("-"),
            currency=currency,
            direction=ledger_pb2.DIRECTION_DEBIT
            if amount[0] == "-"
            else ledger_pb2.DIRECTION_CREDIT,
        )
        for account, amount in lines
    ]


def posting(source_id: str, *lines: tuple[str, str], **values: object) -> pb.Posting:
    return pb.Posting(
        kind=ADJUSTMENT,
        source_id=source_id,
        caller="test",
        entries=ledger_entries(*lines),
        **values,  # type: ignore[arg-type]
    )


def post(client: Client, *postings: pb.Posting) -> list[pb.PostResult]:
    return list(client.ledger.BatchPost(pb.BatchPostRequest(postings=postings)).results)


def error_reason(result: pb.PostResult) -> str:
    return from_status(result.error).reason


def test_balances_now_and_as_of_a_time(client: Client) -> None:
    """The answer contains the balances after each posting; a balance as of a time is the balance at
    that time.
    """
    a, b = unique_id("a"), unique_id("b")
    (first,) = post(client, posting(unique_id("j"), (f"x/{a}", "-10.00"), (f"x/{b}", "10.00")))
    (second,) = post(client, posting(unique_id("j"), (f"x/{a}", "-2.50"), (f"x/{b}", "2.50")))
    assert [e.balance_after for e in second.transaction.entries] == ["-12.50", "12.50"]
    current_account = client.ledger.GetAccount(
        pb.GetAccountRequest(account=f"x/{b}", currency="EUR")
    )
    assert (current_account.account.balance, current_account.account.entry_count) == ("12.50", 2)
    earlier_account = client.ledger.GetAccount(
        pb.GetAccountRequest(
            account=f"x/{b}", currency="EUR", as_of_time=first.transaction.post_time
        )
    )
    assert (earlier_account.account.balance, earlier_account.sequence) == (
        "10.00",
        first.transaction.sequence,
    )
    with pytest.raises(NotFoundError):
        client.ledger.GetAccount(
            pb.GetAccountRequest(account=f"x/{b}", currency="EUR", as_of_time=Timestamp(seconds=1))
        )


def test_after_a_restore_postings_reach_the_named_account(
    admin_url: str, scratch_database: DatabaseUrls
) -> None:
    """L2: account ids that were reassigned after a database restore are detected: each posting
    reaches the account it names.
    """
    with serve_platform(scratch_database) as platform, platform.client() as client:

        def is_posted(seller: str, source_id: str) -> bool:
            try:
                (result,) = post(
                    client, posting(source_id, ("x/other", "-10.00"), (f"x/{seller}", "10.00"))
                )
            except TallystickError:
                return False
            return result.WhichOneof("result") == "transaction"

        def balance(seller: str) -> str:
            return client.ledger.GetAccount(
                pb.GetAccountRequest(account=f"x/{seller}", currency="EUR")
            ).account.balance

        assert is_posted("zoe", "first")
        restore = backup_database(admin_url, scratch_database)
        assert is_posted("anna", "second")
        assert is_posted("bert", "third")
        restore()
        for source_id, seller in (("fourth", "carla"), ("fifth", "anna"), ("sixth", "bert")):
            assert eventually(lambda seller=seller, id_=source_id: is_posted(seller, id_))  # type: ignore[misc]
        assert [balance(seller) for seller in ("zoe", "carla", "anna", "bert")] == ["10.00"] * 4
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_a_transaction_lost_in_a_restore_has_no_event(
    admin_url: str, scratch_database: DatabaseUrls
) -> None:
    """A posted transaction that was lost in a database restore has no event; the transactions that
    now have its number have theirs.
    """
    with (
        serve_platform(scratch_database) as platform,
        platform.client() as client,
    ):
        service = platform.server.service("ledger")
        handlers: Any = service.servicer
        (relay,) = (task for task in service.running if isinstance(task, Relay))
        platform.run_in_loop(relay.stop)  # it publishes nothing

        def is_posted(source_id: str) -> bool:
            try:
                (result,) = post(client, posting(source_id, ("x/a", "-1.00"), ("x/z", "1.00")))
            except TallystickError:
                return False
            return result.WhichOneof("result") == "transaction"

        async def read() -> EventBatch:
            return await LedgerEvents(database_of(platform, "ledger"), handlers.recent)()

        def unpublished() -> list[str]:
            requests = [
                BatchPublishRequest.FromString(request)
                for request in cast("EventBatch", platform.run_in_loop(read)).requests
            ]
            return [event.transaction.source_id for request in requests for event in request.events]

        assert is_posted("first")
        restore = backup_database(admin_url, scratch_database)
        assert all(
            eventually(lambda source_id=source_id: is_posted(source_id))  # type: ignore[misc]
            for source_id in ("lost-1", "lost-2", "lost-3")
        )
        restore()
        assert eventually(lambda: is_posted("second"))
        assert unpublished() == ["first", "second"]


def test_outcome_only_results_contain_no_resource(client: Client) -> None:
    """outcome_only: results mark rejected and repeated items, and contain no transaction."""
    lines = ((f"x/{unique_id('a')}", "-1.00"), ("x/z", "1.00"))
    good, bad = posting(unique_id("j"), *lines), posting(unique_id("j"), lines[0])
    request = pb.BatchPostRequest(postings=[good, bad], outcome_only=True)
    first, repeated_results = (
        client.ledger.BatchPost(request).results,
        client.ledger.BatchPost(request).results,
    )
    assert (first[0], repeated_results[0]) == (pb.PostResult(), pb.PostResult(replayed=True))
    assert (error_reason(first[1]), error_reason(repeated_results[1])) == (
        "ENTRIES_UNBALANCED",
        "ENTRIES_UNBALANCED",
    )


def test_items_are_posted_or_rejected_individually(client: Client) -> None:
    """Invalid items are rejected with their path; the others of the batch are posted, and repeats
    return the first result.
    """
    source_id, a = unique_id("j"), unique_id("a")
    good = posting(source_id, (f"x/{a}", "-1.00"), ("x/z", "1.00"))
    results = post(
        client,
        good,
        posting(unique_id("j"), ("x/y", "-1.00"), ("x/z", "2.00")),
        posting(unique_id("j"), ("x/y", "1.00")),
        posting(unique_id("j"), ("x//y", "-1.00"), ("x/z", "1.00")),
        good,
        posting(source_id, (f"x/{a}", "-3.00"), ("x/z", "3.00")),
        pb.Posting(
            kind=ledger_pb2.TRANSACTION_KIND_REVERSAL,
            source_id="r",
            caller="t",
            entries=good.entries,
        ),
    )
    assert results[0].transaction.transaction_id
    assert [error_reason(r) for r in results[1:4]] == [
        "ENTRIES_UNBALANCED",
        "ENTRIES_UNBALANCED",
        "FIELD_INVALID",
    ]
    assert (
        from_status(results[3].error).field_violations[0].field == "postings[3].entries[0].account"
    )
    assert results[4].replayed
    assert results[4].transaction == results[0].transaction
    assert [error_reason(r) for r in results[5:]] == ["IDEMPOTENCY_KEY_REUSED", "FIELD_INVALID"]


def test_the_transactions_of_several_sources_are_listed(client: Client) -> None:
    """Newest first with their entries, page by page; too many sources are rejected."""
    ids = [unique_id("j") for _ in range(4)]
    lines = ((f"x/{unique_id('a')}", "-1.00"), ("x/z", "1.00"))
    post(client, *(posting(source_id, *lines) for source_id in ids))
    request = pb.ListTransactionsRequest(source_ids=[*ids[1:], "none"], page_size=2)
    items = list(client.pages(client.ledger.ListTransactions, request, "transactions"))
    assert [item.source_id for item in items] == ids[:0:-1]
    assert all(len(item.entries) == 2 for item in items)
    request = pb.ListTransactionsRequest(source_ids=ids, source_id=ids[0])
    (only,) = client.ledger.ListTransactions(request).transactions
    assert only.source_id == ids[0]
    with pytest.raises(InvalidArgumentError, match="source_ids must have at most 300 items"):
        client.ledger.ListTransactions(pb.ListTransactionsRequest(source_ids=["x"] * 301))


def test_a_reused_source_id_names_the_differing_field(client: Client) -> None:
    """IDEMPOTENCY_KEY_REUSED: the metadata names the first field in which the posting differs from
    the stored one.
    """
    source_id = unique_id("j")
    lines = (("x/a", "-1.00"), ("x/z", "1.00"))
    post(client, posting(source_id, *lines))
    described = posting(source_id, *lines)
    described.description = "another"
    other_postings = {
        "entries[0].account": posting(source_id, ("x/b", "-1.00"), lines[1]),
        "entries[0].amount": posting(source_id, ("x/a", "-2.00"), ("x/z", "2.00")),
        "entries[0].direction": posting(source_id, ("x/a", "1.00"), ("x/z", "-1.00")),
        "entries": posting(source_id, ("x/a", "-2.00"), ("x/y", "1.00"), ("x/z", "1.00")),
        "description": described,
    }
    for field, other_posting in other_postings.items():
        (result,) = post(client, other_posting)
        assert (error_reason(result), from_status(result.error).metadata) == (
            "IDEMPOTENCY_KEY_REUSED",
            {"field": field},
        )


@pytest.mark.parametrize("reason", ["", " "])
def test_a_reversal_requires_a_reason(client: Client, reason: str) -> None:
    """A reason is required, and must not be blank."""
    (posted_result,) = post(client, posting(unique_id("j"), ("x/y", "-7.00"), ("x/z", "7.00")))
    with pytest.raises(InvalidArgumentError) as error:
        client.ledger.ReverseTransaction(
            pb.ReverseTransactionRequest(
                transaction_id=posted_result.transaction.transaction_id, reason=reason
            )
        )
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "FIELD_REQUIRED",
        "reason",
    )


def test_a_transaction_is_reversed_once(client: Client) -> None:
    """L5: a reversal names the reversed transaction, happens once, and never changes a seller's
    account.
    """
    a = unique_id("a")
    (posted_result,) = post(client, posting(unique_id("j"), (f"x/{a}", "-7.00"), ("x/z", "7.00")))
    request = pb.ReverseTransactionRequest(
        transaction_id=posted_result.transaction.transaction_id, reason="typo"
    )
    reversal = client.ledger.ReverseTransaction(request).transaction
    assert reversal.reverses_transaction_id == posted_result.transaction.transaction_id
    assert (
        client.ledger.GetAccount(
            pb.GetAccountRequest(account=f"x/{a}", currency="EUR")
        ).account.balance
        == "0.00"
    )
    assert client.ledger.ReverseTransaction(request).transaction == reversal
    response = client.ledger.GetTransaction(
        pb.GetTransactionRequest(transaction_id=posted_result.transaction.transaction_id)
    ).transaction
    assert response.reversed_by_transaction_id == reversal.transaction_id
    (seller,) = post(
        client,
        posting(unique_id("j"), (f"sellers/{a}", "-1.00"), ("x/z", "1.00")),
    )
    for transaction, why, expected in (
        (posted_result.transaction.transaction_id, "other", "ALREADY_REVERSED"),
        (seller.transaction.transaction_id, "x", "INVALID_STATE"),
        (reversal.transaction_id, "x", "INVALID_STATE"),
    ):
        with pytest.raises(FailedPreconditionError) as error:
            client.ledger.ReverseTransaction(
                pb.ReverseTransactionRequest(transaction_id=transaction, reason=why)
            )
        assert error.value.reason == expected
    post(client, posting(unique_id("j"), (f"sellers/{a}", "1.00"), ("x/z", "-1.00")))


def test_the_trial_balance_is_zero_over_all_pages(client: Client) -> None:
    """L2: the sums are zero, and the pages contain every account once, all at one point of the
    ledger.
    """
    for currency in ("EUR", "JPY"):
        post(
            client,
            pb.Posting(
                kind=ADJUSTMENT,
                source_id=unique_id("j"),
                caller="t",
                entries=ledger_entries(
                    (unique_id("a"), "-5"), (unique_id("b"), "5"), currency=currency
                ),
            ),
        )
    page = first = client.ledger.GetTrialBalance(pb.GetTrialBalanceRequest(page_size=3))
    lines = list(first.lines)
    post(client, posting(unique_id("j"), (unique_id("a"), "-5.00"), (unique_id("b"), "5.00")))
    while page.next_page_token:
        page = client.ledger.GetTrialBalance(
            pb.GetTrialBalanceRequest(page_size=3, page_token=page.next_page_token)
        )
        assert (page.sequence, page.chain_head) == (first.sequence, first.chain_head)
        lines += page.lines
    assert {s.currency for s in page.sums} >= {"EUR", "JPY"}
    assert not any(s.amount.strip("0.") for s in page.sums)
    assert len({(line.account, line.currency) for line in lines}) == len(lines)
    assert sum(Decimal(line.balance) for line in lines if line.currency == "EUR") == 0


def test_entries_stream_in_ledger_order(client: Client) -> None:
    """The stream has every transaction after a sequence, linked by the hash chain; a prefix
    filters.
    """
    a = unique_id("a")
    posted_transactions = [
        post(client, posting(unique_id("j"), (f"{a}/{n}", "-1.00"), ("x/z", "1.00")))[0].transaction
        for n in range(3)
    ]
    request = pb.StreamEntriesRequest(
        after_sequence=posted_transactions[0].sequence - 1, account_prefix=f"{a}/"
    )
    assert [r.transaction.transaction_id for r in client.ledger.StreamEntries(request)] == [
        t.transaction_id for t in posted_transactions
    ]
    chain = [r.transaction for r in client.ledger.StreamEntries(pb.StreamEntriesRequest())]
    assert [t.sequence for t in chain] == list(range(1, len(chain) + 1))
    assert all(after.previous_hash == before.hash for before, after in itertools.pairwise(chain))


def test_lists_filter(client: Client) -> None:
    """Transactions are listed by account, kind, source id and time; accounts by prefix."""
    a, source_id = unique_id("a"), unique_id("j")
    (posted_result,) = post(client, posting(source_id, (f"{a}/1", "-1.00"), (f"{a}/2", "1.00")))
    for request in (
        pb.ListTransactionsRequest(account=f"{a}/1"),
        pb.ListTransactionsRequest(source_id=source_id),
        pb.ListTransactionsRequest(
            kind=ADJUSTMENT,
            account=f"{a}/2",
            currency="EUR",
            post_time_from=posted_result.transaction.post_time,
        ),
    ):
        assert [t.source_id for t in client.ledger.ListTransactions(request).transactions] == [
            source_id
        ]
    past = Timestamp()
    past.FromDatetime(datetime(2020, 1, 1, tzinfo=UTC))
    assert not client.ledger.ListTransactions(
        pb.ListTransactionsRequest(post_time_until=past)
    ).transactions
    accounts = client.pages(
        client.ledger.ListAccounts, pb.ListAccountsRequest(prefix=f"{a}/", page_size=1), "accounts"
    )
    assert [x.account for x in accounts] == [f"{a}/1", f"{a}/2"]


@pytest.mark.parametrize(
    "token", ["x", "AAAA", "WyJhIl0=", "ä", "W10=", b64encode(b"[" * 40_000).decode()]
)
def test_invalid_page_tokens_are_rejected(client: Client, token: str) -> None:
    """A page token that no call returned is rejected with its own reason."""
    with pytest.raises(TallystickError) as error:
        client.ledger.ListTransactions(pb.ListTransactionsRequest(page_token=token))
    assert error.value.reason == "PAGE_TOKEN_INVALID"


_RECOMPUTE_CHAIN = runpy.run_path(str(ROOT / "clients/python/examples/recompute_chain.py"))[
    "recompute"
]


def test_an_auditor_recomputes_the_chain_from_the_api(client: Client) -> None:
    """L6: the message contains every hashed field, as docs/reference/ledger-hash-chain.md defines,
    for every kind of transaction.
    """
    fixed_time = Timestamp(seconds=1_700_000_000, nanos=123_456_000)
    lines = (("x/a", "-1.00"), ("x/b", "0.01"), ("x/c", "0.99"))
    results = post(
        client,
        posting(unique_id("j"), *lines, description="Größe 💶: 1:2"),
        posting(unique_id("j"), *lines, effective_time=fixed_time),
        pb.Posting(
            kind=ADJUSTMENT,
            source_id=unique_id("j"),
            caller="test",
            entries=ledger_entries(("x/a", "-1500"), ("x/b", "1500"), currency="JPY"),
        ),
    )
    reversal = client.ledger.ReverseTransaction(
        pb.ReverseTransactionRequest(
            transaction_id=results[0].transaction.transaction_id, reason="wrong"
        )
    )
    for transaction in [*(result.transaction for result in results), reversal.transaction]:
        assert _RECOMPUTE_CHAIN(transaction.previous_hash, transaction) == transaction.hash


@pytest.mark.parametrize(
    "change",
    [
        {"transaction_id": "main-2"},
        {"kind": ledger_pb2.TRANSACTION_KIND_WRITE_OFF},
        {"source_id": "x"},
        {"caller": "x"},
        {"description": "x"},
        {"reverses_transaction_id": "main-1"},
        {"effective_time": Timestamp(seconds=1)},
        {"post_time": Timestamp(seconds=1)},
        {"entries": ledger_entries(("x/a", "-1.00"), ("x/y", "1.00"))},
        {"entries": ledger_entries(("x/a", "-1.01"), ("x/b", "1.01"))},
        {"entries": ledger_entries(("x/b", "1.00"), ("x/a", "-1.00"))},
        {"entries": ledger_entries(("x/a", "-1.00"), ("x/b", "1.00"), currency="USD")},
    ],
    ids=str,
)
def test_every_hashed_field_changes_the_hash(client: Client, change: dict[str, object]) -> None:
    """L6: a change of any hashed field of a transaction changes its hash."""
    (result,) = post(client, posting(unique_id("j"), ("x/a", "-1.00"), ("x/b", "1.00")))
    changed_transaction = ledger_pb2.Transaction.FromString(result.transaction.SerializeToString())
    for name, value in change.items():
        changed_transaction.ClearField(name)  # type: ignore[arg-type]
        changed_transaction.MergeFrom(ledger_pb2.Transaction(**{name: value}))  # type: ignore[arg-type]
    assert (
        _RECOMPUTE_CHAIN(changed_transaction.previous_hash, changed_transaction)
        != changed_transaction.hash
    )


@pytest.mark.parametrize("follow", [False, True])
def test_a_sequence_beyond_the_end_is_rejected(client: Client, follow: bool) -> None:
    """A sequence beyond the last one, as after a restore, is rejected with the last sequence,
    whether or not the stream follows.
    """
    with pytest.raises(InvalidArgumentError) as error:
        next(
            iter(
                client.ledger.StreamEntries(
                    pb.StreamEntriesRequest(after_sequence=10**12, follow=follow)
                )
            )
        )
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "FIELD_INVALID",
        "after_sequence",
    )
    assert int(error.value.metadata["last"]) < 10**12


def test_a_republished_transaction_is_unchanged(scratch_database: DatabaseUrls) -> None:
    """E2: a transaction is published as it was posted, even if it is published again after a
    restart and was reversed in between.
    """
    with serve_platform(scratch_database) as platform, platform.client() as client:
        (result,) = post(client, posting("j-1", ("x/a", "-10.00"), ("x/b", "10.00")))
        client.ledger.ReverseTransaction(
            pb.ReverseTransactionRequest(
                transaction_id=result.transaction.transaction_id, reason="wrong"
            )
        )
        assert eventually(
            lambda: len(list(client.events(types=[event_pb2.EVENT_TYPE_TRANSACTION_POSTED]))) == 2
        )
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        update_rows(admin, "update ledger.relayed set sequence = 0")
        relayed = (
            "select (select sequence from ledger.relayed), (select count(*) from "
            "ledger.rejected_aggregate)"
        )
        with serve_platform(scratch_database):
            assert eventually(lambda: (admin.execute(relayed).fetchone() or (0, 0))[0] == 2)
        assert admin.execute(relayed).fetchone() == (2, 0)
