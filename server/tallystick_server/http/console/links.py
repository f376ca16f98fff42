"""The paths of the console's pages, and which page shows a resource."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

ROOT = "/console"
SIGN_IN, SIGN_OUT = f"{ROOT}/sign-in", f"{ROOT}/sign-out"


def path_of(*segments: str) -> str:
    """The path of a page; each segment is one, whatever it contains."""
    return "/".join((ROOT, *(quote(segment, safe="") for segment in segments)))


def with_query(path: str, /, **query: str) -> str:
    """A path with the fields that are not empty."""
    text = urlencode({name: value for name, value in query.items() if value})
    return f"{path}?{text}" if text else path


def account_path(account: str, currency: str = "") -> str:
    return with_query(path_of("accounts"), account=account, currency=currency)


_BY_COLLECTION: Mapping[str, str] = {
    "payments": "payments",
    "paymentOrders": "orders",
    "charges": "charges",
    "payouts": "payouts",
    "payoutDestinations": "destinations",
    "sellers": "sellers",
    "breaks": "breaks",
    "statementFiles": "statement-files",
    "transactions": "transactions",
    "wallets": "sellers",
    "PAY_IN": "orders",
    "PAYOUT": "payouts",
}
"""The first segment of the page, by the collection of a resource name, or the kind of a source."""


def resource_path(resource_name: str) -> str:
    """The page of a resource such as payments/checkout-1; "": there is none."""
    collection, _, key = resource_name.partition("/")
    page = _BY_COLLECTION.get(collection)
    if page is None or not key:
        return ""
    return path_of(page, key.partition("/")[0] if collection == "wallets" else key)


def _account_or_resource(account: str) -> str:
    """The page of the account of a break, which for an internal check may be an order or a payout.
    Accounts of payouts have a name after their provider.
    """
    collection, _, key = account.partition("/")
    is_resource = collection in ("paymentOrders", "payouts") and key and "/" not in key
    return resource_path(account) if is_resource else account_path(account)


def _page(name: str) -> Callable[[str], str]:
    return lambda key: path_of(name, key)


_BY_FIELD: Mapping[str, Callable[[str], str]] = {
    "checkout_id": _page("payments"),
    "payment_order_id": _page("orders"),
    "charge_id": _page("charges"),
    "payout_id": _page("payouts"),
    "payout_destination_id": _page("destinations"),
    "seller_account": _page("sellers"),
    "break_id": _page("breaks"),
    "statement_file_id": _page("statement-files"),
    "first_statement_file_id": _page("statement-files"),
    "transaction_id": _page("transactions"),
    "reverses_transaction_id": _page("transactions"),
    "reversed_by_transaction_id": _page("transactions"),
    "account": _account_or_resource,
    "resource_name": resource_path,
    "source_id": resource_path,
}


def field_path(name: str, value: Any) -> str:
    """The page of what a field names; "": there is none."""
    find = _BY_FIELD.get(name)
    return find(value) if find is not None and isinstance(value, str) and value else ""
