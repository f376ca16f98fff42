"""Helpers for tests of reconciliation: entries of the ledger, and files about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import psycopg

from tallystick import Client
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.ledger.posting_rules import (
    JournalLine,
    PostingKind,
    pay_in_lines,
    payout_lines,
    payout_return_lines,
)
from tallystick_core.money import format_amount
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_server.verify.run import verify
from tests.support.platform import eventually, unique_id

DAY = datetime(2026, 3, 10, 12, tzinfo=UTC)
"""When money moves, unless a test says otherwise."""


def post(
    client: Client,
    kind: PostingKind,
    source_id: str,
    lines: Sequence[JournalLine],
    reference: str = "",
    time: datetime = DAY,
) -> None:
    """Posts to the ledger."""
    request = ledger_service_pb2.BatchPostRequest()
    add_posting(request, kind, source_id, "test", lines, reference, to_timestamp(time))
    (result,) = client.ledger.BatchPost(request).results
    assert not result.HasField("error"), result.error


@dataclass
class Provider:
    """A provider of one test, with what the ledger has of it."""

    client: Client
    name: str = field(default_factory=lambda: unique_id("p"))

    @property
    def account(self) -> str:
        return f"psp/{self.name}/clearing"

    @property
    def payouts_account(self) -> str:
        return f"payouts/{self.name}/clearing"

    def pay_in(
        self,
        amount: int,
        reference: str = "",
        order_id: str = "",
        currency: str = "EUR",
        time: datetime = DAY,
    ) -> str:
        """An order that was paid; returns its id. `amount` in minor units."""
        order_id = order_id or unique_id("po")
        lines = pay_in_lines(self.name, "buyer", "seller", currency, amount, 0)
        post(self.client, PostingKind.PAY_IN, order_id, lines, reference, time)
        return order_id

    def pay_in_all(self, amount: int, references: Sequence[str], time: datetime = DAY) -> None:
        """Orders that were paid, each with its reference."""
        for start in range(0, len(references), 500):
            request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
            for reference in references[start : start + 500]:
                lines = pay_in_lines(self.name, "buyer", "seller", "EUR", amount, 0)
                add_posting(
                    request,
                    PostingKind.PAY_IN,
                    unique_id("po"),
                    "test",
                    lines,
                    reference,
                    to_timestamp(time),
                )
            results = self.client.ledger.BatchPost(request).results
            assert not any(result.HasField("error") for result in results)

    def payout(self, amount: int, reference: str = "", time: datetime = DAY) -> str:
        """A payout that was paid; returns its id."""
        payout_id = unique_id("pay")
        lines = payout_lines(self.name, "seller", "EUR", amount, 0)
        post(self.client, PostingKind.PAYOUT, payout_id, lines, reference, time)
        return payout_id

    def payouts(self, amounts: Iterable[int]) -> None:
        """Payouts that were paid, posted together: reconciliation reads all of them or none."""
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for amount in amounts:
            lines = payout_lines(self.name, "seller", "EUR", amount, 0)
            id_, time = unique_id("pay"), to_timestamp(DAY)
            add_posting(request, PostingKind.PAYOUT, id_, "test", lines, "", time)
        results = self.client.ledger.BatchPost(request).results
        assert not any(result.HasField("error") for result in results)

    def payout_return(self, amount: int, reference: str = "", time: datetime = DAY) -> str:
        """A payout that was returned; returns the id of the return."""
        return_id = unique_id("ret")
        lines = payout_return_lines(self.name, "seller", "EUR", amount)
        post(self.client, PostingKind.PAYOUT_RETURN, return_id, lines, reference, time)
        return return_id


def charge(
    amount: int,
    charge_reference: str = "",
    *,
    fee: int = 0,
    line_type: str = "CHARGE",
    **values: Any,
) -> reconciliation_pb2.StatementLine:
    """A line about a charge of `amount`, before the fee. `values`: its other fields."""
    currency = values.pop("currency", "EUR")
    return reconciliation_pb2.StatementLine(
        line_type=reconciliation_pb2.LineType.Value(f"LINE_TYPE_{line_type}"),
        code=values.pop("code", line_type.lower()),
        amount=format_amount(amount - fee, currency),
        fee=format_amount(fee, currency) if fee else "",
        currency=currency,
        booking_date=values.pop("booking_date", DAY.date().isoformat()),
        charge_reference=charge_reference,
        **values,
    )


def statement(
    lines: Iterable[reconciliation_pb2.StatementLine], **balances: str
) -> list[pb.StatementItem]:
    """The items of a file with one statement for each currency. `balances`: fields of its start and
    end.
    """
    by_currency: dict[str, list[reconciliation_pb2.StatementLine]] = {}
    for number, line in enumerate(lines, 2):
        line.line_number = line.line_number or number
        by_currency.setdefault(line.currency, []).append(line)
    items = []
    opening = {name: value for name, value in balances.items() if name.startswith("opening")}
    closing = {name: value for name, value in balances.items() if name.startswith("closing")}
    for currency, found in (by_currency or {"EUR": []}).items():
        items.append(
            pb.StatementItem(
                start=reconciliation_pb2.StatementStart(line_number=1, currency=currency, **opening)
            )
        )
        items += [pb.StatementItem(line=line) for line in found]
        total = sum(_minor(line.amount, currency) for line in found)
        items.append(
            pb.StatementItem(
                end=reconciliation_pb2.StatementEnd(
                    line_number=len(found) + 2,
                    line_count=len(found),
                    total=format_amount(total, currency),
                    **closing,
                )
            )
        )
    return items


def _minor(text: str, currency: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("-").replace(".", "")
    assert format_amount(sign * int(digits), currency) == text
    return sign * int(digits)


def file_request(
    account: str,
    items: Sequence[pb.StatementItem],
    *,
    file_name: str = "",
    format_: str = "test",
    difference_reason: str = "",
) -> pb.CreateStatementFileRequest:
    """The file with these items. The same items are the same file, unless it has a name."""
    content = b"".join(item.SerializeToString(deterministic=True) for item in items)
    digest = sha256(content + account.encode()).hexdigest()
    return pb.CreateStatementFileRequest(
        statement_file_id=sha256(f"{digest} {file_name}".encode()).hexdigest()[:32],
        file_name=file_name or f"{digest[:12]}.csv",
        content_sha256=digest,
        format=format_,
        account=account,
        difference_reason=difference_reason,
    )


def reconcile(
    client: Client,
    account: str,
    lines: Iterable[reconciliation_pb2.StatementLine],
    *,
    preview: bool = False,
    file_name: str = "",
    format_: str = "test",
    difference_reason: str = "",
    **balances: str,
) -> pb.ReconcileStatementFileResponse:
    """Sends a file with these lines and compares it, as `file_request` makes it."""
    items = statement(lines, **balances)
    request = file_request(
        account,
        items,
        file_name=file_name,
        format_=format_,
        difference_reason=difference_reason,
    )
    return client.reconcile_statement_file(request, items, preview=preview)


def lines_of(client: Client, statement_file_id: str) -> list[reconciliation_pb2.ReconciledLine]:
    """The lines of a reconciled file."""
    request = pb.ListStatementLinesRequest(statement_file_id=statement_file_id)
    return list(client.pages(client.reconciliation.ListStatementLines, request, "lines"))


def outcomes_of(client: Client, statement_file_id: str) -> list[str]:
    """What became of each line of a file."""
    return [
        reconciliation_pb2.LineOutcome.Name(line.outcome).removeprefix("LINE_OUTCOME_")
        for line in lines_of(client, statement_file_id)
    ]


def stored_rows(databases: DatabaseUrls) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of ReconciliationService by table, except for the markers of commits. Waits until
    its events are published.
    """
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        assert eventually(
            lambda: not connection.execute("select from reconciliation.outbox").fetchall()
        )
        names = connection.execute(
            "select table_name from information_schema.tables where table_schema = "
            "'reconciliation' and table_name <> 'commit_marker' order by 1"
        ).fetchall()
        return {
            name: sorted(
                connection.execute(f"select t::text from reconciliation.{name} t").fetchall()
            )
            for (name,) in names
        }


def kinds_of(file: reconciliation_pb2.StatementFile) -> dict[str, int]:
    """The breaks of a file: how many there are of each kind."""
    return {
        reconciliation_pb2.BreakKind.Name(item.kind).removeprefix("BREAK_KIND_"): item.count
        for item in file.break_counts
    }


def breaks_of(client: Client, **filters: Any) -> list[reconciliation_pb2.Break]:
    """The breaks of a list, oldest first, each as a whole."""
    found = client.pages(
        client.reconciliation.ListBreaks, pb.ListBreaksRequest(**filters), "breaks"
    )
    return [
        client.reconciliation.GetBreak(
            pb.GetBreakRequest(break_id=item.break_id)
        ).reconciliation_break
        for item in reversed(list(found))
    ]


def only_break(client: Client, account: str) -> reconciliation_pb2.Break:
    """The only break of an account."""
    (found,) = breaks_of(client, account=account)
    return found


def clearing(
    client: Client, account: str, currency: str = "EUR"
) -> reconciliation_pb2.ClearingAccount:
    """What the report has of an account."""
    response = client.reconciliation.GetClearingReport(pb.GetClearingReportRequest(account=account))
    (found,) = [item for item in response.accounts if item.currency == currency]
    return found


def require_explained(client: Client) -> list[reconciliation_pb2.ClearingAccount]:
    """The clearing report of all accounts, each of which must be explained."""
    response = client.reconciliation.GetClearingReport(pb.GetClearingReportRequest())
    assert {float(item.unexplained) for item in response.accounts} <= {0.0}, response
    return list(response.accounts)


def wait_until_posted(databases: DatabaseUrls) -> None:
    """Waits until the ledger has all that reconciliation has decided."""
    with psycopg.connect(databases.reader("reconciliation"), autocommit=True) as connection:
        query = "select from ledger_posting where not is_posted"
        assert eventually(lambda: not connection.execute(query).fetchall())


def require_verified(client: Client, databases: DatabaseUrls) -> None:
    """All accounts are explained, and all invariants hold, but for those of payments, payouts and
    wallets: tests post to the ledger without them.
    """
    require_explained(client)
    violations = [
        violation
        for violation in verify(databases).violations
        if not violation.startswith(("payment.", "payout.", "wallet."))
    ]
    assert violations == []


def posted_clearing(
    client: Client, account: str, currency: str = "EUR"
) -> reconciliation_pb2.ClearingAccount:
    """What the report has of an account once all is posted."""
    found = eventually(
        lambda: (
            item
            if _minor((item := clearing(client, account, currency)).unposted, currency) == 0
            else None
        )
    )
    assert found is not None, "the ledger does not have what reconciliation posts"
    return found


def ledger_balance(client: Client, account: str, currency: str = "EUR") -> str:
    """The balance of an account in the ledger."""
    request = ledger_service_pb2.GetAccountRequest(account=account, currency=currency)
    return client.ledger.GetAccount(request).account.balance


def transactions_of(client: Client, account: str) -> list[ledger_pb2.Transaction]:
    """The transactions of an account, oldest first."""
    request = ledger_service_pb2.ListTransactionsRequest(account=account)
    return list(
        reversed(list(client.pages(client.ledger.ListTransactions, request, "transactions")))
    )


def entries_of(transaction: ledger_pb2.Transaction) -> dict[str, str]:
    """The entries of a transaction by account: decimal text, with "-" for a credit."""
    return {
        entry.account: ("" if entry.direction == ledger_pb2.DIRECTION_DEBIT else "-") + entry.amount
        for entry in transaction.entries
    }
