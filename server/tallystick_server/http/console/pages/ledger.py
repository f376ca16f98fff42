"""The ledger: accounts, their transactions, and the trial balance."""

from __future__ import annotations

from tallystick_server.http.console.calls import gather_results
from tallystick_server.http.console.visit import Answer, Page, Visit


async def show_accounts(visit: Visit) -> Answer:
    """GET /console/accounts: the accounts, or the one of the queries `account` and `currency`."""
    account = visit.query.get("account", "")
    if not account:
        return await _list_accounts(visit)
    currency = visit.query.get("currency", "")
    if not currency:
        response = await visit.calls.call("ledger.ListAccounts", prefix=account, page_size=100)
        lines = [line for line in response["accounts"] if line["account"] == account]
        if len(lines) != 1:  # one in several currencies, or the beginning of others
            return Page("accounts.html", f"Accounts {account}", {"response": response})
        currency = lines[0]["currency"]
    balance, transactions = await gather_results(
        visit.calls.attempt("ledger.GetAccount", account=account, currency=currency),
        visit.calls.attempt(
            "ledger.ListTransactions", account=account, currency=currency, **visit.list_fields()
        ),
    )
    if balance.error:
        raise balance.error
    values = {
        "account": account,
        "currency": currency,
        "balance": balance.values,
        "transactions": transactions,
    }
    return Page("account.html", f"Account {account}", values)


async def _list_accounts(visit: Visit) -> Answer:
    response = await visit.calls.call(
        "ledger.ListAccounts", prefix=visit.query.get("prefix", ""), **visit.list_fields()
    )
    return Page("accounts.html", "Accounts", {"response": response})


async def show_transaction(visit: Visit) -> Answer:
    """GET /console/transactions/{transaction_id}: its entries and its place in the hash chain."""
    transaction_id = visit.variables["transaction_id"]
    response = await visit.calls.call("ledger.GetTransaction", transaction_id=transaction_id)
    return Page("transaction.html", f"Transaction {transaction_id}", response)


async def show_trial_balance(visit: Visit) -> Answer:
    """GET /console/trial-balance: now, or as of a time."""
    response = await visit.calls.call(
        "ledger.GetTrialBalance", as_of_time=_as_of(visit), **visit.list_fields()
    )
    return Page("trial_balance.html", "Trial balance", {"response": response})


def _as_of(visit: Visit) -> str:
    """A date or a time in UTC as the API has it; what is neither is left for the API to reject."""
    text = visit.query.get("as_of", "").strip().replace(" ", "T")
    if len(text) == len("2026-01-31"):
        text += "T00:00:00"
    return f"{text}Z" if text and not text.endswith("Z") else text
