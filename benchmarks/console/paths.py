"""The addresses of pages that are asked for: at least one of each page of the console."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from urllib.parse import quote

from benchmarks.seed.monitoring import LARGE_TRACE_ID
from benchmarks.seed.templates import CLEARING_ACCOUNT, DEAD_LETTER_ID, LARGE_PAYMENT_ID
from tallystick_server.app.errors import StartupError
from tallystick_server.http.console.links import ROOT, with_query
from tallystick_server.rpc.pagination import PageToken
from tallystick_storage.ledger.queries import TransactionFilter
from tallystick_storage.payment.queries import PaymentFilter
from tallystick_storage.payout.queries import PayoutFilter

Queries = Mapping[str, Sequence[Mapping[str, str]]]
"""The queries that a page is asked for with, besides none."""
Ids = Mapping[str, Sequence[str]]
"""The values of a variable in the path of a page."""

SEEDED_IDS: Ids = {
    "checkout_id": [LARGE_PAYMENT_ID, "c-1", "c-7", "t-open"],
    "payment_order_id": ["o-1", f"{LARGE_PAYMENT_ID}-7"],
    "charge_id": ["o-o-1"],
    "payout_id": ["p-1", "t-failed", "t-awaiting_approval"],
    "seller_account": ["s-3", "s-1"],
    "transaction_id": ["main-1", "main-500"],
    "dead_letter_id": [DEAD_LETTER_ID],
    "break_id": ["f2-2", "f1-1"],
    "statement_file_id": ["file-2"],
    "trace_id": [LARGE_TRACE_ID],
    "entry_number": ["1"],
    "payout_destination_id": ["d-s-1"],
}
"""Ids of a seeded database: a payment of 200 orders, a seller with every ninth payment, a file of
1,000 lines with 200 breaks, and others.
"""

_NEED_QUERY = frozenset({"expected-entries"})
"""Pages that are an error without a query."""


def seeded_queries() -> Queries:
    """Filters, deep pages, and a search by each kind of id, of a seeded database."""
    ten_days_ago = datetime.now(UTC) - timedelta(days=10)
    payment_token = PageToken("ListPayments", *PaymentFilter(*[None] * 6))
    payout_token = PageToken("ListPayouts", *PayoutFilter())
    of_account = TransactionFilter("main", CLEARING_ACCOUNT, "EUR")
    transaction_token = PageToken("ListTransactions", *of_account)
    account = {"account": CLEARING_ACCOUNT, "currency": "EUR"}
    return {
        "search": [{"q": text} for text in _searches()],
        "payments": [
            {"state": "FAILED"},
            {"state": "PAID"},
            {"seller": "s-3"},
            {"seller": "s-3", "state": "FAILED"},
            {"buyer": "b-2"},
            {"page_token": payment_token.make(ten_days_ago, "c-1")},
        ],
        "payouts": [
            {"state": "FAILED"},
            {"seller": "s-3"},
            {"page_token": payout_token.make(ten_days_ago, "p-1")},
        ],
        "sellers": [{"currency": "EUR"}],
        "accounts": [account, {**account, "page_token": transaction_token.make(1000)}],
        "trial-balance": [
            {"as_of": ten_days_ago.strftime("%Y-%m-%d")},
            {"page_token": PageToken("GetTrialBalance", "main").make(900, "sellers/s-1", "", "")},
        ],
        "dead-letters": [{"state": "ALL"}, {"service": "payout"}],
        "breaks": [{"state": "ALL"}, {"class": "FINANCE"}, {"account": CLEARING_ACCOUNT}],
        "alerts": [{"ended": "true"}, {"service": "payment"}],
        "statement-files": [{"account": CLEARING_ACCOUNT}],
        "statement-files/{statement_file_id}": [
            {"page_token": PageToken("ListStatementLines", "file-2").make(900)}
        ],
        "clearing": [{"account": CLEARING_ACCOUNT}],
        "expected-entries": [account, {**account, "age": "2"}],
        "payments/{checkout_id}": [{"events": "1"}],
    }


def _searches() -> Sequence[str]:
    """An id of each kind, a buyer, a seller, a provider's references, an account, and nothing."""
    return (
        *(ids[0] for ids in SEEDED_IDS.values()),
        "b-2",
        "seed-1",
        "seed-p-1",
        CLEARING_ACCOUNT,
        "unknown-id",
    )


def paths_of(pages: Iterable[str], ids: Ids, queries: Queries) -> Iterator[str]:
    """The addresses of all pages, from their paths in the table of pages. Raises StartupError for a
    page whose variable has no ids, or that needs a query and has none.
    """
    for page in sorted(pages):
        segments = [_values_of(segment, page, ids) for segment in page.split("/")]
        of_page = [*([] if page in _NEED_QUERY else [{}]), *queries.get(page, ())]
        if not of_page:
            raise StartupError(f"The page {page} cannot be asked for: it has no queries.")
        for values in product(*segments):
            path = "/".join((ROOT, *values)) if page else ROOT
            for query in of_page:
                yield with_query(path, **query)


def _values_of(segment: str, page: str, ids: Ids) -> Sequence[str]:
    if not segment.startswith("{"):
        return [segment]
    variable = segment.strip("{}")
    if variable not in ids:
        raise StartupError(f"The page {page} cannot be asked for: {variable} has no ids.")
    return [quote(value, safe="") for value in ids[variable]]
