"""Search: what an id, a buyer, a seller or a reference names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.rpc import code_pb2

from tallystick_core.operations.kind import COLLECTIONS
from tallystick_server.http.console.calls import CallFailed, Result, gather_results
from tallystick_server.http.console.links import account_path, path_of, resource_path, with_query
from tallystick_server.http.console.values import Values
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit

_ANY = re.compile(".*", re.DOTALL)
_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FEW = 5
"""How many items of each list are shown."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that was found. `is_exact`: the text is its id."""

    kind: str
    name: str
    path: str
    is_exact: bool = False


Hits = Iterator[Hit]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A call that may find something. `key`: the field that gets the text. `read`: the hits in its
    response, for the text. `form`: the call is made for texts of this form only.
    """

    call: str
    key: str
    read: Callable[[Values, str], Hits]
    fields: Mapping[str, Any] = field(default_factory=dict)
    form: re.Pattern[str] = _ANY


def _resource(kind: str, page: str, part: str, id_field: str) -> Callable[[Values, str], Hits]:
    """The hit of a call that returns one resource."""

    def read(values: Values, _text: str) -> Hits:
        resource = values[part]
        if resource is not None:
            yield Hit(kind, resource[id_field], path_of(*page.split("/"), resource[id_field]), True)

    return read


def _explained(kind: str) -> Callable[[Values, str], Hits]:
    """The hit of an explanation, which finds a resource by any id that belongs to it."""

    def read(values: Values, _text: str) -> Hits:
        name = values["explanation"]["resource_name"]
        path = resource_path(name)
        if path:
            yield Hit(kind, name.partition("/")[2], path, is_exact=True)

    return read


def _payments_of(role: str) -> Callable[[Values, str], Hits]:
    def read(values: Values, text: str) -> Hits:
        if values["payments"]:
            path = with_query(path_of("payments"), **{role: text})
            yield Hit(f"Payments of the {role}", text, path)
        for payment in values["payments"]:
            checkout_id = payment["checkout_id"]
            yield Hit(f"Payment of the {role}", checkout_id, path_of("payments", checkout_id))

    return read


def _seller(values: Values, text: str) -> Hits:
    if values["wallets"]:
        currencies = ", ".join(wallet["currency"] for wallet in values["wallets"])
        yield Hit("Seller", f"{text} ({currencies})", path_of("sellers", text), is_exact=True)


def _payouts_of_seller(values: Values, _text: str) -> Hits:
    for payout in values["payouts"]:
        payout_id = payout["payout_id"]
        yield Hit("Payout of the seller", payout_id, path_of("payouts", payout_id))


def _transactions(values: Values, _text: str) -> Hits:
    for transaction in values["transactions"]:
        transaction_id = transaction["transaction_id"]
        yield Hit("Transaction", transaction_id, path_of("transactions", transaction_id))


def _accounts(values: Values, text: str) -> Hits:
    for line in values["accounts"]:
        name, currency = line["account"], line["currency"]
        yield Hit("Account", f"{name} {currency}", account_path(name, currency), name == text)


def _events(service: str) -> Callable[[Values, str], Hits]:
    def read(values: Values, _text: str) -> Hits:
        for event in values["webhook_events"]:
            path = resource_path(event["resource_name"])
            if path:
                yield Hit(f"Webhook event of {service}", event["event_id"], path)

    return read


_FIRST = {"page_size": _FEW}
_NAME = {"name_only": True}
_DEAD_LETTER_ID = re.compile(f"(?:{'|'.join(COLLECTIONS.values())})-.*", re.DOTALL)
LOOKUPS = (
    Lookup("payment.ExplainPayment", "id", _explained("Payment"), _NAME),
    Lookup(
        "payment.GetPaymentOrder",
        "payment_order_id",
        _resource("Order", "orders", "payment_order", "payment_order_id"),
    ),
    Lookup("payout.ExplainPayout", "id", _explained("Payout"), _NAME),
    Lookup("payment.ListPayments", "buyer_account", _payments_of("buyer"), _FIRST),
    Lookup("payment.ListPayments", "seller_account", _payments_of("seller"), _FIRST),
    Lookup("wallet.ListWallets", "seller_account", _seller, _FIRST),
    Lookup("payout.ListPayouts", "seller_account", _payouts_of_seller, _FIRST),
    Lookup(
        "ledger.GetTransaction",
        "transaction_id",
        _resource("Transaction", "transactions", "transaction", "transaction_id"),
    ),
    Lookup("ledger.ListTransactions", "external_reference", _transactions, _FIRST),
    Lookup("ledger.ListTransactions", "source_id", _transactions, _FIRST),
    Lookup("ledger.ListAccounts", "prefix", _accounts, _FIRST),
    Lookup(
        "reconciliation.GetBreak",
        "break_id",
        _resource("Break", "breaks", "reconciliation_break", "break_id"),
    ),
    Lookup(
        "reconciliation.GetStatementFile",
        "statement_file_id",
        _resource("Statement file", "statement-files", "statement_file", "statement_file_id"),
    ),
    Lookup(
        "payment.GetDeadLetter",
        "dead_letter_id",
        _resource("Dead letter", "dead-letters/payment", "dead_letter", "dead_letter_id"),
        form=_DEAD_LETTER_ID,
    ),
    Lookup(
        "payout.GetDeadLetter",
        "dead_letter_id",
        _resource("Dead letter", "dead-letters/payout", "dead_letter", "dead_letter_id"),
        form=_DEAD_LETTER_ID,
    ),
    Lookup("payment.ListWebhookEvents", "reference", _events("payment"), _FIRST),
    Lookup("payout.ListWebhookEvents", "reference", _events("payout"), _FIRST),
    Lookup(
        "monitoring.GetTrace",
        "trace_id",
        _resource("Trace", "traces", "trace", "trace_id"),
        form=_TRACE_ID,
    ),
)


async def search(visit: Visit) -> Answer:
    """GET /console/search?q=: what the text names. Leads to the page of it, if there is only one,
    and the text is its id.
    """
    text = visit.query.get("q", "").strip()
    if not text:
        return Page("search.html", "Search", {"search_text": "", "hits": [], "failures": []})
    lookups = [item for item in LOOKUPS if item.form.fullmatch(text)]
    results = await gather_results(
        *(visit.calls.attempt(item.call, **{item.key: text}, **item.fields) for item in lookups)
    )
    hits = _distinct_hits(lookups, results, text)
    exact = [hit for hit in hits if hit.is_exact]
    failures = _failures(results)
    if len(exact) == 1 and not failures:
        return Redirect(exact[0].path)
    values = {"search_text": text, "hits": hits, "failures": failures}
    return Page("search.html", f"Search for {text}", values)


def _distinct_hits(lookups: Sequence[Lookup], results: list[Result], text: str) -> list[Hit]:
    """The hits in the order of the lookups, each page once: first what the text is the id of."""
    hits: dict[str, Hit] = {}
    for lookup, result in zip(lookups, results, strict=True):
        if result.error is None:
            for hit in lookup.read(result.values, text):
                hits.setdefault(hit.path, hit)
    return sorted(hits.values(), key=lambda hit: not hit.is_exact)


def _failures(results: list[Result]) -> list[CallFailed]:
    """What could not be searched. A token without the role for a call is no failure."""
    return [
        result.error
        for result in results
        if result.error is not None
        and not result.error.is_missing
        and result.error.code != code_pb2.PERMISSION_DENIED
    ]
