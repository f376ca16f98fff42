"""The sandbox as a payout provider: what it pays, what it answers, and what the adapters make of it."""

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

from tallystick_core.provider import (
    Declined,
    InTransit,
    NotFound,
    NotSent,
    PayoutDemand,
    PayoutFailure,
    PayoutFound,
    PayoutOutcome,
    Pending,
    Returned,
    Submitted,
    Succeeded,
    Trouble,
    Unknown,
    Verified,
)
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Fault, Reply, next_state
from tallystick_sandbox.sandbox import Sandbox
from tallystick_sandbox.server import application
from tallystick_server.process.databases import Databases
from tallystick_server.providers.sandbox import PayoutsInProcess, PayoutsOverHttp, payout_outcome, verification
from tallystick_storage.database import Database
from tallystick_storage.sandbox import Entry

from .conftest import unique


def demand(token: str = "ba_ok", amount: int = 1000, payout_id: str = "", key: str = "") -> PayoutDemand:
    payout_id = payout_id or unique("p")
    return PayoutDemand(key or f"t-p-{payout_id}-1", payout_id, amount, "EUR", token)


def bank(databases: Databases, work: Callable[[PayoutsInProcess], Awaitable[Any]], window: float = 3600.0) -> Any:
    """What comes of work with a sandbox of one's own."""

    async def run() -> Any:
        database = Database(databases.service("sandbox"), connections=2)
        sandbox = SandboxPayouts(database, window=window)
        sandbox.start()
        try:
            return await work(PayoutsInProcess(sandbox, window))
        finally:
            await sandbox.stop()
            await asyncio.to_thread(database.close)

    return asyncio.run(run())


def paid(databases: Databases, payout_id: str) -> list[tuple[str, int, int | None]]:
    """What the provider's own log says of a payout: state, amount, what came back."""
    with psycopg.connect(databases.reader("sandbox").replace("+psycopg", "")) as connection:
        query = "select state, amount, returned_amount from transfer where payout_id = %s order by generation"
        return connection.execute(query, (payout_id,)).fetchall()


def test_a_key_pays_once_and_replays(database: Databases) -> None:
    """The same key with the same values is paid once and answered alike; with another amount it is refused, and nothing more is paid."""
    one = demand()

    async def work(port: PayoutsInProcess) -> list[Sequence[PayoutOutcome]]:
        other = demand(amount=999, payout_id=one.payout_id, key=one.key)
        return [await port.submit([one]), await port.submit([one, demand()]), await port.submit([other])]

    first, second, other = bank(database, work)
    assert first[0] == second[0] == Succeeded(first[0].reference, 1000, "EUR")
    assert isinstance(second[1], Succeeded)
    assert isinstance(other[0], Unknown)
    assert other[0].trouble is Trouble.REJECTED
    assert paid(database, one.payout_id) == [("PAID", 1000, None)]


def test_a_forgotten_key_pays_again(database: Databases) -> None:
    """Past its window a key is forgotten, and what comes again is paid again under another reference: why nothing is sent blindly."""
    one = demand()

    async def work(port: PayoutsInProcess) -> list[PayoutOutcome]:
        return [(await port.submit([one]))[0], (await port.submit([one]))[0]]

    first, second = bank(database, work, window=0.0)
    assert first.reference != second.reference
    assert len(paid(database, one.payout_id)) == 2


@pytest.mark.parametrize(
    ("token", "first", "later"),
    [
        ("ba_ok", Succeeded, [Succeeded]),
        ("whatever", Succeeded, [Succeeded]),
        ("ba_decline:no_account", Declined, [Declined]),
        ("ba_refused", Declined, [NotFound]),
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
def test_each_fault(database: Databases, token: str, first: type, later: list[type]) -> None:
    """A bank account's token says how the demand goes, and what a look-up tells of it afterwards."""
    one = demand(token)

    async def work(port: PayoutsInProcess) -> list[PayoutFound]:
        return [*await port.submit([one]), *[await port.look_up(one) for _ in later]]

    assert [type(outcome) for outcome in bank(database, work)] == [first, *later]


def test_what_comes_back_is_in_the_log(database: Databases) -> None:
    """A whole return, a part of it, and one from a closed account: the amounts that are told are those of the log."""
    demands = [demand("ba_returned", 7), demand("ba_returned_part", 7), demand("ba_returned_closed", 7)]

    async def work(port: PayoutsInProcess) -> list[PayoutFound]:
        await port.submit(demands)
        return [await port.look_up(one) for one in demands]

    whole, part, closed = bank(database, work)
    assert (whole.amount, part.amount, closed.amount) == (7, 3, 7)
    assert [one.account_refused for one in (whole, part, closed)] == [False, False, True]
    assert [paid(database, one.payout_id) for one in demands] == [[("RETURNED", 7, 7)], [("RETURNED", 7, 3)], [("RETURNED", 7, 7)]]


def test_a_second_transfer_has_its_own_reference(database: Databases) -> None:
    """`twice`: a look-up tells of money that was paid again; both transfers are in the log, and nothing grows by looking on."""
    one = demand("ba_twice")

    async def work(port: PayoutsInProcess) -> list[PayoutFound]:
        return [*await port.submit([one]), await port.look_up(one), await port.look_up(one)]

    first, second, third = bank(database, work)
    assert first.reference != second.reference == third.reference
    assert len(paid(database, one.payout_id)) == 2


def test_a_batch_answers_for_each(database: Databases) -> None:
    """Of a submission each demand is answered for itself; when its answer is lost as a whole, every demand is Unknown, and all of them are paid."""
    mixed = [demand(), demand("ba_decline"), demand("ba_lost_before"), demand("ba_other_amount", 10)]
    lost = [demand(), demand("ba_batch_lost"), demand()]

    async def work(port: PayoutsInProcess) -> list[Sequence[PayoutOutcome]]:
        return [await port.submit(mixed), await port.submit(lost), await port.submit(lost)]

    answers, gone, again = bank(database, work)
    assert [type(one) for one in answers] == [Succeeded, Declined, Unknown, Succeeded]
    assert answers[3].amount == 11
    assert [type(one) for one in gone] == [Unknown] * 3
    assert [type(one) for one in again] == [Succeeded] * 3
    assert [len(paid(database, one.payout_id)) for one in lost] == [1, 1, 1]


def test_accounts_are_verified(database: Databases) -> None:
    """An account can be paid to, cannot, or is told of later."""
    review = unique("ba_review:")

    async def work(port: PayoutsInProcess) -> list[Any]:
        return [await port.verify(token, "EUR") for token in ("ba_ok", "ba_unverified", review, review)]

    assert [type(one) for one in bank(database, work)] == [Verified, Declined, Pending, Verified]


@given(st.sampled_from(list(Fault)), st.floats(0, 1000), st.integers(0, 1000), st.integers(1, 5))
def test_a_transfer_only_goes_on(fault: Fault, age: float, seconds: int, looks: int) -> None:
    """A transfer never goes back, and what has come to its end by time stays there."""
    order = ["SUBMITTED", "IN_TRANSIT", "DECLINED", "PAID", "RETURNED"]
    for state in order:
        entry = Entry("k", 1, "", "p", "r", state, 5, "EUR", fault, str(seconds))
        for _ in range(looks):
            after = next_state(entry, age)
            assert order.index(after) >= order.index(entry.state)
            entry.state = after


@pytest.mark.parametrize(
    "values",
    [{"amount": None}, {"amount": "100"}, {"amount": 2**64}, {"amount": 0}, {"reference": ""}, {"reference": "a\0b"}, {"currency": 3}, {"code": []},
     {"state": "GONE"}, {"state": None}, {"state": []}],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_unknown(values: dict[str, Any]) -> None:
    """A malformed answer is no decline and no payment: nothing definite was said."""
    given_ = {"reference": "r", "amount": 100, "currency": "EUR", "code": "", "state": "PAID", **values}
    assert isinstance(payout_outcome(Reply(200, **given_)), Unknown)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [(500, "SERVER_ERROR"), (503, "SERVER_ERROR"), (204, "NO_ANSWER"), (409, "BUSY"), (429, "BUSY"), (400, "REJECTED"), (401, "FORBIDDEN")],
)
def test_an_unknown_outcome_says_why(status: int, trouble: Trouble) -> None:
    """What is no definite answer is Unknown, with the trouble that says how it is tried again; to a payout and to a verification alike."""
    for outcome in (payout_outcome(Reply(status, retry_after=7.5)), verification(Reply(status, retry_after=7.5))):
        assert isinstance(outcome, Unknown)
        assert (outcome.trouble, outcome.retry_after) == (trouble, 7.5)


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_over_http_it_is_the_same(database: Databases) -> None:
    """The adapter over HTTP says what the one in the process says, of a batch, of a look-up, of an account; nobody there is NotSent."""
    demands = [demand(), demand("ba_decline:no_account"), demand("ba_slow"), demand("ba_lost_after")]

    async def run() -> tuple[Any, ...]:
        db = Database(database.service("sandbox"), connections=2)
        async with served(application(Sandbox(db), SandboxPayouts(db))) as url:
            port = PayoutsOverHttp(url, 3600)
            try:
                answers = await port.submit(demands)
                alone = await port.submit([demand("ba_lost_before")])
                looked = await port.look_up(demands[3])
                accounts = [await port.verify("ba_ok", "EUR"), await port.verify("ba_unverified", "EUR")]
            finally:
                await port.close()
        gone = PayoutsOverHttp(url, 3600)
        nobody = await gone.submit(demands[:2])
        await gone.close()
        await asyncio.to_thread(db.close)
        return answers, alone, looked, accounts, nobody

    answers, alone, looked, accounts, nobody = asyncio.run(run())
    assert [type(one) for one in answers] == [Succeeded, Declined, Submitted, Unknown]
    assert answers[1].reason is PayoutFailure.DESTINATION_REFUSED
    assert isinstance(alone[0], Unknown)
    assert isinstance(looked, Succeeded)
    assert [type(one) for one in accounts] == [Verified, Declined]
    assert [type(one) for one in nobody] == [NotSent, NotSent]


def test_without_its_database_the_server_says_so() -> None:
    """503, which means an unknown outcome, and no traceback; what is malformed is told apart from it."""

    async def run() -> Any:
        away = Database("postgresql://sandbox@127.0.0.1:1/away", connections=1)
        async with served(application(Sandbox(away), SandboxPayouts(away))) as url:
            port = PayoutsOverHttp(url, 3600)
            try:
                return await port.look_up(demand()), *await port.submit([replace(demand(), amount=None)])  # type: ignore[arg-type]
            finally:
                await port.close()
                await asyncio.to_thread(away.close)

    away, malformed = asyncio.run(run())
    assert (away.trouble, away.detail) == (Trouble.SERVER_ERROR, "status 503 unavailable")
    assert (malformed.trouble, malformed.detail) == (Trouble.REJECTED, "status 400 request_malformed")


async def asked(answer: Callable[[web.Request], Awaitable[web.Response]], ask: Callable[[PayoutsOverHttp], Awaitable[Any]]) -> Any:
    """What the adapter makes of a server that answers everything in one way."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with served(app) as url:
        port = PayoutsOverHttp(url, 3600)
        try:
            return await ask(port)
        finally:
            await port.close()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[{}]", b"{}", b"null", b'[{"status": 200}, 3]', b"x" * 2_000_000])
def test_garbage_over_http_is_unknown(body: bytes) -> None:
    """HTML, huge answers, other shapes: every demand of the submission is Unknown, and nothing raises."""

    async def garbage(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def ask(port: PayoutsOverHttp) -> list[Any]:
        return [*await port.submit([demand(), demand()]), await port.look_up(demand()), await port.verify("ba_ok", "EUR")]

    assert [type(one) for one in asyncio.run(asked(garbage, ask))] == [Unknown] * 4


@pytest.mark.parametrize(("said", "wait"), [(3, 3.0), (2.5, 2.5), (1e300, 86_400.0), ("3", None), (-1, None), (True, None), (None, None), ([], None)])
def test_what_a_payout_of_many_is_to_wait_is_a_bounded_number(said: object, wait: float | None) -> None:
    """Of each answer to a submission retry_after is a number of seconds, at most a day; anything else makes the answers Unknown, which say nothing to wait for."""
    busy = {"status": 429, "reference": "", "amount": 0, "currency": "", "code": "busy", "retry_after": said}

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps([busy, {**busy, "retry_after": 1}]), content_type="application/json")

    first, second = asyncio.run(asked(answer, lambda port: port.submit([demand(), demand()])))
    if wait is None:
        assert [(one.trouble, one.retry_after) for one in (first, second)] == [(Trouble.NO_ANSWER, 0.0)] * 2
    else:
        assert [(one.trouble, one.retry_after) for one in (first, second)] == [(Trouble.BUSY, wait), (Trouble.BUSY, 1.0)]


def test_an_answer_that_comes_in_pieces_is_one(database: Databases) -> None:
    """A body over HTTP is read to its end, however it is cut."""
    said = orjson.dumps({"status": 400, "reference": "", "amount": 0, "currency": "", "code": "x" * 200_000, "state": ""})

    async def pieces(_request: web.Request) -> web.Response:
        return web.Response(body=said, status=404, content_type="application/json")

    found = asyncio.run(asked(pieces, lambda port: port.look_up(demand())))
    assert found.detail.startswith("status 404 xxx")


@pytest.mark.parametrize("path", ["/payouts", "/accounts/verify", "/charges"])
@pytest.mark.parametrize(
    "body", ["", "{", "[]", "3", '{"amount": 1}', '[{"key": "k", "payout_id": "p", "amount": true, "currency": "EUR", "bank_account_token": "t"}]']
)
def test_the_server_refuses_what_it_cannot_read(database: Databases, path: str, body: str) -> None:
    """A malformed body is a 400, and nothing is stored."""

    async def run() -> tuple[int, Any]:
        db = Database(database.service("sandbox"), connections=2)
        async with (
            served(application(Sandbox(db), SandboxPayouts(db))) as url,
            aiohttp.request("POST", f"{url}{path}", data=body, headers={"Idempotency-Key": "k"}) as response,
        ):
            answer = response.status, (await response.json())["code"]
        await asyncio.to_thread(db.close)
        return answer

    assert asyncio.run(run()) == (400, "request_malformed")
