"""Ledger entries of a clearing account that no statement and no break has yet."""

from __future__ import annotations

from tallystick_server.http.console.acts import REASON, Act, ActPage, Input
from tallystick_server.http.console.visit import Answer, Page, Visit


async def list_expected_entries(visit: Visit) -> Answer:
    """GET /console/expected-entries: those of the queries `account` and `currency`, oldest first,
    at least `age` days old.
    """
    query = visit.query
    account, currency = query.get("account", ""), query.get("currency", "")
    response = await visit.calls.call(
        "reconciliation.ListExpectedEntries",
        account=account,
        currency=currency,
        min_age_days=query.get("age", ""),
        **visit.list_fields(),
    )
    return Page(
        "expected_entries.html",
        f"Expected entries of {account} in {currency}",
        {"response": response},
    )


async def show_expected_entry(visit: Visit) -> Answer:
    """GET /console/expected-entries/{transaction_id}/{entry_number}: an entry of a transaction, and
    the form to open a break for it. The query `account` is of the statements that should have it.
    """
    transaction_id, number = visit.variables["transaction_id"], visit.variables["entry_number"]
    response = await visit.calls.call("ledger.GetTransaction", transaction_id=transaction_id)
    transaction = response["transaction"]
    values = {
        "transaction": transaction,
        "entries": [
            {**entry, "entry_number": index}
            for index, entry in enumerate(transaction["entries"], 1)
            if str(index) == number
        ],
        "acts": visit.allowed(ENTRY_ACTS.acts),
    }
    return Page("expected_entry.html", f"Entry {number} of {transaction_id}", values)


ENTRY_ACTS = ActPage(
    "expected-entries/{transaction_id}/{entry_number}",
    show_expected_entry,
    (
        Act(
            "open-break",
            "Open a break",
            "reconciliation.OpenBreak",
            (
                Input(
                    "account",
                    "Account of the statements",
                    "Whose statement should have it, such as psp/stripe/clearing or banks/main.",
                ),
                REASON,
            ),
            "A break is open for the entry.",
            hint="It can then be matched with other breaks of the account, or resolved.",
        ),
    ),
)
"""The act on an entry that no statement has."""
