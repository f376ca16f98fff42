"""The sandbox as a payout provider: its payouts, its answers, and the outcomes that the adapters
derive from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import psycopg
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotFound,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    PayoutOutcome,
    Pending,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Fault, Reply, next_transfer_state
from tallystick_sandbox.sandbox import Sandbox
from tallystick_sandbox.server import create_app
from tallystick_sandbox.store import LoggedRequest
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.sandbox.client import HttpPayouts
from tallystick_server.providers.sandbox.payouts import (
    SandboxPayoutProvider,
    to_payout_outcome,
    to_verification_outcome,
)
from tallystick_storage.database import Database
from tests.support.http import serve_app
from tests.support.platform import unique_id


def payout_request(
    token: str = "ba_ok", amount: int = 1000, payout_id: str = "", key: str = ""
) -> PayoutRequest:
    payout_id = payout_id or unique_id("p")
    return PayoutRequest(key or f"t-p-{payout_id}-1", payout_id, amount, "EUR", token)


def run_with_sandbox(
    databases: DatabaseUrls,
    work: Callable[[SandboxPayoutProvider], Awaitable[Any]],
    key_window: float = 3600.0,
) -> Any:
    """The result of work with a private sandbox."""

    async def run() -> Any:
        database = Database(databases.service("sandbox"), connections=2)
        sandbox = SandboxPayouts(database, key_window_seconds=key_window)
        sandbox.start()
        try:
            return await work(SandboxPayoutProvider("sandbox", sandbox, key_window))
        finally:
            await sandbox.stop()
            await asyncio.to_thread(database.close)

    return asyncio.run(run())


def transfer_log(databases: DatabaseUrls, payout_id: str) -> list[tuple[str, int, int | None]]:
    """A payout in the provider's own log: state, amount, returned amount."""
    with psycopg.connect(databases.reader("sandbox")) as connection:
        query = (
            "select state, amount, returned_amount from transfer where payout_id = %s order by "
            "generation"
        )
        return connection.execute(query, (payout_id,)).fetchall()


def test_a_key_pays_once_and_replays(database: DatabaseUrls) -> None:
    """The same key with the same values is paid once and answered alike; with another amount it is
    rejected, and nothing more is paid.
    """
    request = payout_request()

    async def work(port: SandboxPayoutProvider) -> list[Sequence[PayoutOutcome]]:
        other = payout_request(amount=999, payout_id=request.payout_id, key=request.key)
        return [
            await port.submit([request]),
            await port.submit([request, payout_request()]),
            await port.submit([other]),
        ]

    first, second, other_request = run_with_sandbox(database, work)
    assert first[0] == second[0] == Succeeded(first[0].reference, 1000, "EUR")
    assert isinstance(second[1], Succeeded)
    assert isinstance(other_request[0], Unknown)
    assert other_request[0].retry_reason is RetryReason.REJECTED
    assert transfer_log(database, request.payout_id) == [("PAID", 1000, None)]


def test_a_forgotten_key_pays_again(database: DatabaseUrls) -> None:
    """After its window a key is forgotten, and a repeat is paid again under another reference; this
    is why the platform never resends blindly.
    """
    request = payout_request()

    async def work(port: SandboxPayoutProvider) -> list[PayoutOutcome]:
        return [(await port.submit([request]))[0], (await port.submit([request]))[0]]

    first, second = run_with_sandbox(database, work, key_window=0.0)
    assert first.reference != second.reference
    assert len(transfer_log(database, request.payout_id)) == 2


@pytest.mark.parametrize(
    ("token", "first", "later"),
    [
        ("ba_ok", Succeeded, [Succeeded]),
        ("whatever", Succeeded, [Succeeded]),
        ("ba_decline:no_account", Declined, [Declined]),
        ("ba_amount_too_small", Declined, [NotFound]),
        ("ba_rejected", Unknown, [NotFound]),
        ("ba_unreachable", NotSent, [NotFound]),
        ("ba_busy", Unknown, [NotFound]),
        ("ba_lost_before", Unknown, [NotFound]),
        ("ba_lost_after", Unknown, [Succeeded]),
        ("ba_error_after", Unknown, [Succeeded]),
        ("ba_error_stored", Unknown, [Declined]),
        ("ba_batch_lost", Unknown, [Succeeded]),
        ("ba_slow", Submitted, [InTransit, Succeeded, Succeeded]),
        ("ba_returned", Succeeded, [Returned, Returned]),
        ("ba_paid_late", Declined, [Succeeded]),
    ],
)
def test_each_fault(database: DatabaseUrls, token: str, first: type, later: list[type]) -> None:
    """A bank account's token determines the outcome of the payout, and the answer of a later
    lookup.
    """
    request = payout_request(token)

    async def work(port: SandboxPayoutProvider) -> list[PayoutLookupOutcome]:
        return [*await port.submit([request]), *[await port.look_up(request) for _ in later]]

    assert [type(outcome) for outcome in run_with_sandbox(database, work)] == [first, *later]


def test_returns_are_in_the_log(database: DatabaseUrls) -> None:
    """A full return, a partial one, and one from a closed account: the reported amounts are those
    of the log.
    """
    requests = [
        payout_request("ba_returned", 7),
        payout_request("ba_returned_part", 7),
        payout_request("ba_returned_closed", 7),
    ]

    async def work(port: SandboxPayoutProvider) -> list[PayoutLookupOutcome]:
        await port.submit(requests)
        return [await port.look_up(request) for request in requests]

    full_outcome, part, closed_outcome = run_with_sandbox(database, work)
    assert (full_outcome.amount, part.amount, closed_outcome.amount) == (7, 3, 7)
    assert [outcome.account_rejected for outcome in (full_outcome, part, closed_outcome)] == [
        False,
        False,
        True,
    ]
    assert [transfer_log(database, request.payout_id) for request in requests] == [
        [("RETURNED", 7, 7)],
        [("RETURNED", 7, 3)],
        [("RETURNED", 7, 7)],
    ]


def test_a_second_transfer_has_its_own_reference(database: DatabaseUrls) -> None:
    """`twice`: a lookup reports a duplicate transfer; both transfers are in the log, and further
    lookups add nothing.
    """
    request = payout_request("ba_paid_twice")

    async def work(port: SandboxPayoutProvider) -> list[PayoutLookupOutcome]:
        return [
            *await port.submit([request]),
            await port.look_up(request),
            await port.look_up(request),
        ]

    first, second, third = run_with_sandbox(database, work)
    assert first.reference != second.reference == third.reference
    assert len(transfer_log(database, request.payout_id)) == 2


def test_a_batch_answers_for_each(database: DatabaseUrls) -> None:
    """Each payout of a submission has its own answer; when the whole answer is lost, every payout
    is Unknown, and all of them are paid.
    """
    mixed = [
        payout_request(),
        payout_request("ba_decline"),
        payout_request("ba_lost_before"),
        payout_request("ba_other_amount", 10),
    ]
    lost_requests = [payout_request(), payout_request("ba_batch_lost"), payout_request()]

    async def work(port: SandboxPayoutProvider) -> list[Sequence[PayoutOutcome]]:
        return [
            await port.submit(mixed),
            await port.submit(lost_requests),
            await port.submit(lost_requests),
        ]

    outcomes, forgotten_outcomes, repeated_outcomes = run_with_sandbox(database, work)
    assert [type(answer) for answer in outcomes] == [Succeeded, Declined, Unknown, Succeeded]
    assert outcomes[3].amount == 11
    assert [type(answer) for answer in forgotten_outcomes] == [Unknown] * 3
    assert [type(answer) for answer in repeated_outcomes] == [Succeeded] * 3
    assert [len(transfer_log(database, answer.payout_id)) for answer in lost_requests] == [1, 1, 1]


def test_accounts_are_verified(database: DatabaseUrls) -> None:
    """An account can be verified, rejected, or answered later."""
    review = unique_id("ba_review:")

    async def work(port: SandboxPayoutProvider) -> list[Any]:
        return [
            await port.verify(token, "EUR") for token in ("ba_ok", "ba_unverified", review, review)
        ]

    assert [type(outcome) for outcome in run_with_sandbox(database, work)] == [
        Verified,
        Declined,
        Pending,
        Verified,
    ]


@given(st.sampled_from(list(Fault)), st.floats(0, 1000), st.integers(0, 1000), st.integers(1, 5))
def test_a_transfer_never_goes_back(fault: Fault, age: float, seconds: int, looks: int) -> None:
    """A transfer's state never goes back, and a final state does not change over time."""
    order = ["SUBMITTED", "IN_TRANSIT", "DECLINED", "PAID", "RETURNED"]
    for state in order:
        entry = LoggedRequest("k", 1, "", "sandbox", "p", "r", state, 5, "EUR", fault, str(seconds))
        for _ in range(looks):
            after = next_transfer_state(entry, age)
            assert order.index(after) >= order.index(entry.state)
            entry.state = after


@pytest.mark.parametrize(
    "values",
    [
        {"amount": None},
        {"amount": "100"},
        {"amount": 2**64},
        {"amount": 0},
        {"reference": ""},
        {"reference": "a\0b"},
        {"currency": 3},
        {"code": []},
        {"state": "GONE"},
        {"state": None},
        {"state": []},
    ],
)
def test_a_malformed_answer_is_unknown(values: dict[str, Any]) -> None:
    """A malformed answer is neither a decline nor a payment: it is not conclusive."""
    reply_fields = {
        "reference": "r",
        "amount": 100,
        "currency": "EUR",
        "code": "",
        "state": "PAID",
        **values,
    }
    assert isinstance(to_payout_outcome(Reply(200, **reply_fields)), Unknown)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (500, "SERVER_ERROR"),
        (503, "SERVER_ERROR"),
        (204, "NO_ANSWER"),
        (409, "THROTTLED"),
        (429, "THROTTLED"),
        (400, "REJECTED"),
        (401, "UNAUTHORIZED"),
    ],
)
def test_an_unknown_outcome_has_its_retry_reason(status: int, reason: RetryReason) -> None:
    """An inconclusive answer is Unknown, with the retry reason that selects the policy, for payouts
    and verifications alike.
    """
    for outcome in (
        to_payout_outcome(Reply(status, retry_after=7.5)),
        to_verification_outcome(Reply(status, retry_after=7.5)),
    ):
        assert isinstance(outcome, Unknown)
        assert (outcome.retry_reason, outcome.retry_after) == (reason, 7.5)


@asynccontextmanager
async def http_provider(url: str) -> AsyncIterator[SandboxPayoutProvider]:
    """The adapter of a sandbox server."""
    client = HttpPayouts(url)
    try:
        yield SandboxPayoutProvider("sandbox", client, 3600)
    finally:
        await client.close()


def test_the_http_adapter_gives_the_same_outcomes(database: DatabaseUrls) -> None:
    """The adapter over HTTP gives the same outcomes as the one in the process, for a batch, a
    lookup and an account; an unreachable server is NotSent.
    """
    requests = [
        payout_request(),
        payout_request("ba_decline:no_account"),
        payout_request("ba_slow"),
        payout_request("ba_lost_after"),
    ]

    async def run() -> tuple[Any, ...]:
        db = Database(database.service("sandbox"), connections=2)
        async with (
            serve_app(create_app(Sandbox(db), SandboxPayouts(db))) as url,
            http_provider(url) as port,
        ):
            answers = await port.submit(requests)
            alone = await port.submit([payout_request("ba_lost_before")])
            looked = await port.look_up(requests[3])
            accounts = [
                await port.verify("ba_ok", "EUR"),
                await port.verify("ba_unverified", "EUR"),
            ]
        async with http_provider(url) as closed_provider:
            nobody = await closed_provider.submit(requests[:2])
        await asyncio.to_thread(db.close)
        return answers, alone, looked, accounts, nobody

    outcomes, single_outcome, lookup_outcomes, accounts, unreached_outcomes = asyncio.run(run())
    assert [type(answer) for answer in outcomes] == [Succeeded, Declined, Submitted, Unknown]
    assert outcomes[1].reason is PayoutFailure.DESTINATION_REJECTED
    assert isinstance(single_outcome[0], Unknown)
    assert isinstance(lookup_outcomes, Succeeded)
    assert [type(answer) for answer in accounts] == [Verified, Declined]
    assert [type(answer) for answer in unreached_outcomes] == [NotSent, NotSent]


def test_without_its_database_the_server_answers_503() -> None:
    """The answer is 503, which means an unknown outcome, without a traceback; malformed requests
    get another status.
    """

    async def run() -> Any:
        away = Database("postgresql://sandbox@127.0.0.1:1/away", connections=1)
        async with (
            serve_app(create_app(Sandbox(away), SandboxPayouts(away))) as url,
            http_provider(url) as port,
        ):
            answers = (
                await port.look_up(payout_request()),
                *await port.submit(
                    [replace(payout_request(), amount=None)]  # type: ignore[arg-type]
                ),
            )
        await asyncio.to_thread(away.close)
        return answers

    away, malformed = asyncio.run(run())
    assert (away.retry_reason, away.detail) == (RetryReason.SERVER_ERROR, "status 503 unavailable")
    assert (malformed.retry_reason, malformed.detail) == (
        RetryReason.REJECTED,
        "status 400 request_malformed",
    )


async def call_over_http(
    handler: Callable[[web.Request], Awaitable[web.Response]],
    call: Callable[[SandboxPayoutProvider], Awaitable[Any]],
) -> Any:
    """The adapter's outcomes for a server that gives the same answer to everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with serve_app(app) as url, http_provider(url) as provider:
        return await call(provider)


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"[{}]", b"{}", b"null", b'[{"status": 200}, 3]', b"x" * 2_000_000]
)
def test_malformed_http_answers_are_unknown(body: bytes) -> None:
    """HTML, huge answers, other shapes: every payout of the submission is Unknown, and nothing
    raises.
    """

    async def garbage(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def ask(port: SandboxPayoutProvider) -> list[Any]:
        return [
            *await port.submit([payout_request(), payout_request()]),
            await port.look_up(payout_request()),
            await port.verify("ba_ok", "EUR"),
        ]

    assert [type(outcome) for outcome in asyncio.run(call_over_http(garbage, ask))] == [Unknown] * 4


@pytest.mark.parametrize(
    ("expected", "wait"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (1e300, 86_400.0),
        ("3", None),
        (-1, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_a_retry_time_of_a_payout_is_bounded(expected: object, wait: float | None) -> None:
    """In each answer to a submission retry_after is a number of seconds, at most a day; any other
    value makes the outcomes Unknown, without a retry time.
    """
    busy = {
        "status": 429,
        "reference": "",
        "amount": 0,
        "currency": "",
        "code": "busy",
        "retry_after": expected,
    }

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(
            body=orjson.dumps([busy, {**busy, "retry_after": 1}]), content_type="application/json"
        )

    first, second = asyncio.run(
        call_over_http(answer, lambda port: port.submit([payout_request(), payout_request()]))
    )
    if wait is None:
        assert [(outcome.retry_reason, outcome.retry_after) for outcome in (first, second)] == [
            (RetryReason.NO_ANSWER, 0.0)
        ] * 2
    else:
        assert [(outcome.retry_reason, outcome.retry_after) for outcome in (first, second)] == [
            (RetryReason.THROTTLED, wait),
            (RetryReason.THROTTLED, 1.0),
        ]


def test_an_answer_that_comes_in_pieces_is_one(database: DatabaseUrls) -> None:
    """A body over HTTP is read to its end, however it is split."""
    response_body = orjson.dumps(
        {
            "status": 400,
            "reference": "",
            "amount": 0,
            "currency": "",
            "code": "gone",
            "state": "",
            "explanation": "x" * 200_000,
        }
    )

    async def pieces(_request: web.Request) -> web.Response:
        return web.Response(body=response_body, status=404, content_type="application/json")

    outcome = asyncio.run(call_over_http(pieces, lambda port: port.look_up(payout_request())))
    assert outcome.detail.startswith("status 404 gone")


@pytest.mark.parametrize("path", ["/payouts", "/accounts/verify", "/charges"])
@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "3",
        '{"amount": 1}',
        (
            '[{"key": "k", "payout_id": "p", "amount": true, "currency": "EUR", '
            '"bank_account_token": '
            '"t"}]'
        ),
    ],
)
def test_the_server_rejects_malformed_bodies(database: DatabaseUrls, path: str, body: str) -> None:
    """A malformed body is a 400, and nothing is stored."""

    async def run() -> tuple[int, Any]:
        db = Database(database.service("sandbox"), connections=2)
        async with (
            serve_app(create_app(Sandbox(db), SandboxPayouts(db))) as url,
            aiohttp.request(
                "POST", f"{url}{path}", data=body, headers={"Idempotency-Key": "k"}
            ) as response,
        ):
            answer = response.status, (await response.json())["code"]
        await asyncio.to_thread(db.close)
        return answer

    assert asyncio.run(run()) == (400, "request_malformed")
