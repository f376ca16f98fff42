"""The paths of the look-alike, and the function that serves each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tallystick_sandbox.stripe import (
    accounts,
    balances,
    charges,
    checkout_sessions,
    control,
    events,
    payment_intents,
    payouts,
    refunds,
    reports,
    topups,
    transfers,
)
from tallystick_sandbox.stripe.context import Advance
from tallystick_sandbox.stripe.errors import unknown_path
from tallystick_sandbox.stripe.lists import list_page, search_page
from tallystick_sandbox.stripe.parameters import Parameters

Handler = Callable[..., Any]
"""Takes the context, the parameters and the ids of the path; returns the body."""


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path. `{id}` in it is one segment."""

    method: str
    path: str
    handler: Handler

    def match(self, method: str, path: str) -> list[str] | None:
        """The ids of a path, or None if this is another route."""
        pattern = re.sub(r"\{\w+\}", "([^/]+)", self.path)
        match = re.fullmatch(pattern, path) if method == self.method else None
        return None if match is None else [unquote(id_) for id_ in match.groups()]


def _no_filter(_parameters: Parameters) -> dict[str, Any]:
    return {}


ROUTES = [
    Route(
        "GET",
        "/v1/payment_intents/search",
        search_page("payment_intent", "/v1/payment_intents/search", payment_intents.search_filter),
    ),
    Route("POST", "/v1/payment_intents", payment_intents.create),
    Route(
        "GET",
        "/v1/payment_intents",
        list_page("payment_intent", "/v1/payment_intents", payment_intents.list_filter),
    ),
    Route("GET", "/v1/payment_intents/{id}", payment_intents.retrieve),
    Route("POST", "/v1/payment_intents/{id}/confirm", payment_intents.confirm),
    Route("POST", "/v1/payment_intents/{id}/cancel", payment_intents.cancel),
    Route("POST", "/v1/checkout/sessions", checkout_sessions.create),
    Route(
        "GET",
        "/v1/checkout/sessions",
        list_page(checkout_sessions.TYPE, "/v1/checkout/sessions", checkout_sessions.list_filter),
    ),
    Route("GET", "/v1/checkout/sessions/{id}", checkout_sessions.retrieve),
    Route("POST", "/v1/checkout/sessions/{id}/expire", checkout_sessions.expire),
    Route("GET", "/v1/charges", list_page("charge", "/v1/charges", charges.list_filter)),
    Route("GET", "/v1/charges/{id}", charges.retrieve),
    Route("POST", "/v1/refunds", refunds.create),
    Route("GET", "/v1/refunds", list_page("refund", "/v1/refunds", refunds.list_filter)),
    Route("GET", "/v1/refunds/{id}", refunds.retrieve),
    Route("GET", "/v1/balance", balances.retrieve_balance),
    Route(
        "GET",
        "/v1/balance_transactions",
        list_page(
            "balance_transaction",
            "/v1/balance_transactions",
            balances.list_filter,
            balances.list_options,
        ),
    ),
    Route("GET", "/v1/balance_transactions/{id}", balances.retrieve),
    Route("POST", "/v1/topups", topups.create),
    Route("GET", "/v1/topups/{id}", topups.retrieve),
    Route("POST", "/v1/transfers", transfers.create),
    Route("GET", "/v1/transfers", list_page("transfer", "/v1/transfers", transfers.list_filter)),
    Route("GET", "/v1/transfers/{id}", transfers.retrieve),
    Route("POST", "/v1/transfers/{id}/reversals", transfers.create_reversal),
    Route("GET", "/v1/transfers/{id}/reversals", transfers.list_reversals),
    Route("GET", "/v1/transfers/{id}/reversals/{reversal_id}", transfers.retrieve_reversal),
    Route("POST", "/v1/accounts", accounts.create),
    Route("GET", "/v1/account", accounts.retrieve),
    Route("GET", "/v1/accounts/{id}", accounts.retrieve),
    Route("GET", "/v1/balance_settings", accounts.balance_settings),
    Route("POST", "/v1/balance_settings", accounts.balance_settings),
    Route("POST", "/v1/payouts", payouts.create),
    Route(
        "GET",
        "/v1/payouts",
        list_page("payout", "/v1/payouts", payouts.list_filter, look_up=payouts.look_up),
    ),
    Route("GET", "/v1/payouts/{id}", payouts.retrieve),
    Route("POST", "/v1/payouts/{id}/cancel", payouts.cancel),
    Route(
        "GET",
        "/v1/events",
        list_page("event", "/v1/events", _no_filter, events.list_options),
    ),
    Route("GET", "/v1/events/{id}", events.retrieve),
    Route("POST", "/v1/reporting/report_runs", reports.create),
    Route(
        "GET",
        "/v1/reporting/report_runs",
        list_page(reports.TYPE, "/v1/reporting/report_runs", _no_filter),
    ),
    Route("GET", "/v1/reporting/report_runs/{id}", reports.retrieve),
    Route("GET", "/v1/files/{id}", reports.retrieve_file),
    Route("GET", "/v1/files/{id}/contents", reports.file_contents),
    Route("POST", "/sandbox/advance", control.advance),
    Route("POST", "/sandbox/request_fault", control.set_request_fault),
    Route("POST", "/sandbox/webhook_faults", control.set_webhook_faults),
    Route("POST", "/sandbox/automatic_payout", control.pay_out_automatically),
    Route("POST", "/sandbox/events/{id}/resend", control.deliver_again),
]

ADVANCES: dict[str, Advance] = {
    "balance_transaction": balances.advance,
    "charge": charges.advance,
    checkout_sessions.TYPE: checkout_sessions.advance,
    "payout": payouts.advance,
    reports.TYPE: reports.advance,
}
"""How an object of each type advances when it is due."""


def find_route(method: str, path: str) -> tuple[Route, list[str]]:
    """The route of a path, and the ids in it. Raises StripeFailure."""
    for route in ROUTES:
        ids = route.match(method, path)
        if ids is not None:
            return route, ids
    raise unknown_path(method, path)
