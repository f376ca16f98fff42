"""The Stripe look-alike answers every request, whatever is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import quote

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tallystick_sandbox.stripe.routes import ROUTES
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.database import Database

_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            "true",
            "1000",
            "-1",
            "9" * 18,
            "eur",
            "jpy",
            "pm_card_visa",
            "pm_busy:" + "9" * 4900,
            "pm_pending:action-paid",
            "acct_ok",
            "acct_slow:" + "9" * 80,
            "pi_x",
            "payment",
            "https://shop.example/paid",
            "\0",
            "%",
            "[]",
            "data.latest_charge.balance_transaction",
            "payout_reconciliation.itemized.7",
            "metadata['a']:'b'",
        ]
    ),
)
_NAMES = st.sampled_from(
    [
        "amount",
        "currency",
        "payment_method",
        "confirm",
        "metadata",
        "metadata[a]",
        "metadata[a][b]",
        "expand[]",
        "limit",
        "starting_after",
        "created[gte]",
        "created",
        "query",
        "destination",
        "source_transaction",
        "payment_intent",
        "charge",
        "id",
        "status",
        "types[]",
        "type",
        "report_type",
        "parameters[columns][]",
        "parameters[interval_start]",
        "parameters[interval_end]",
        "parameters[timezone]",
        "mode",
        "success_url",
        "expires_at",
        "line_items",
        "line_items[0]",
        "line_items[0][quantity]",
        "line_items[0][price_data][currency]",
        "line_items[0][price_data][product_data]",
        "payment_intent_data[metadata][a]",
        "fault",
        "path",
        "count",
        "a[b",
        "]",
    ]
)
_ACCOUNTS = st.one_of(st.sampled_from(["", "acct_ok", "acct_slow", "acct_\udcff"]), st.text())


@pytest.fixture(scope="module")
def sandbox(database: DatabaseUrls) -> Iterator[StripeSandbox]:
    with closing(Database(database.service("sandbox"), connections=2)) as connected:
        yield StripeSandbox(connected)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(
    route=next(route for route in ROUTES if route.path == "/v1/payouts"),
    ids=[""],
    fields=[("amount", "100"), ("currency", "eur")],
    account="acct_slow:" + "9" * 80,
)
@given(
    route=st.sampled_from(ROUTES),
    ids=st.lists(_TEXT, min_size=2, max_size=2),
    fields=st.lists(st.tuples(_NAMES, _TEXT), max_size=6),
    account=_ACCOUNTS,
)
def test_every_request_is_answered(
    sandbox: StripeSandbox,
    route: object,
    ids: list[str],
    fields: list[tuple[str, str]],
    account: str,
) -> None:
    """No request raises an exception or a server error: each has an object, a file, or an error in
    Stripe's shape.
    """
    path: str = route.path  # type: ignore[attr-defined]
    method: str = route.method  # type: ignore[attr-defined]
    for name, id_ in zip(("{id}", "{reversal_id}"), ids, strict=False):
        path = path.replace(name, quote(id_, safe="", errors="replace"))
    query = "&".join(f"{name}={quote(value, errors='replace')}" for name, value in fields)
    target, body = (path, query.encode()) if method == "POST" else (f"{path}?{query}", b"")
    headers = {"Authorization": "Bearer sk_test_x", "Stripe-Account": account}
    if "fault" in path:  # it would change the answers to others
        return
    status, _, answer = asyncio.run(sandbox.handle(method, target, headers, body))
    assert status in (0, 200, 400, 401, 402, 403, 404, 429)
    if status >= 400:
        assert orjson.loads(answer)["error"]["message"]
