"""The sandbox under the control of the contract, in this process and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import psycopg
from aiohttp import web

from tallystick_core.provider.outcome import FinalNotFound
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox
from tallystick_sandbox.server import create_app
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.provider_type import BuiltProvider, CallLimits, ProviderTerms
from tallystick_server.providers.registry import PROVIDER_TYPES
from tallystick_server.providers.sandbox.charges import SandboxCharges
from tallystick_server.providers.sandbox.payouts import SandboxPayoutProvider
from tallystick_server.providers.sandbox.settings import SandboxSettings
from tallystick_storage.database import Database
from tests.providers.contract import Answer
from tests.providers.faulty_server import FaultyServer
from tests.support.platform import free_address, unique_id

TERMS = ProviderTerms("tested", CallLimits(30.0, 100), 86_400.0, FinalNotFound(60.0, 2))

_FAULTS = {
    Answer.SUCCEEDS: "ok",
    Answer.DECLINES: "decline",
    Answer.REJECTS: "amount_too_small",
    Answer.PENDING: "pending:review",
    Answer.PENDING_THEN_SUCCEEDS: "pending:paid",
    Answer.PENDING_THEN_DECLINES: "pending:declined",
    Answer.LOST_BEFORE: "lost_before",
    Answer.LOST_AFTER: "lost_after",
    Answer.ERROR_BEFORE: "error_before",
    Answer.ERROR_AFTER: "error_after",
    Answer.ERROR_REPLAYED: "error_stored",
    Answer.THROTTLED: "busy",
    Answer.UNAUTHORIZED: "forbidden",
    Answer.MALFORMED: "rejected",
    Answer.OTHER_AMOUNT: "other_amount",
    Answer.OTHER_CURRENCY: "ok",
    Answer.OTHER_OPERATION: "ok",
    Answer.SILENT: "delay:60000",
    Answer.ACCOUNT_REJECTED: "decline:no_account",
    Answer.IN_PROGRESS: "slow",
    Answer.RETURNED: "returned",
    Answer.BATCH_LOST: "batch_lost",
}
"""The fault of the sandbox for each answer."""
_ACCOUNTS = {
    Answer.SUCCEEDS: "ba_ok",
    Answer.ACCOUNT_REJECTED: "ba_unverified",
    Answer.PENDING_THEN_SUCCEEDS: "ba_review",
}
_CHANGES: Mapping[Answer, Callable[[Reply], Reply]] = {
    Answer.OTHER_CURRENCY: lambda reply: replace(reply, currency="USD"),
    Answer.OTHER_OPERATION: lambda reply: replace(reply, subject="another"),
}
"""The answers for which the sandbox has no fault: what is changed in its reply."""


def _changed(reply: Reply, answer: Answer | None) -> Reply:
    change = _CHANGES.get(answer) if answer else None
    return change(reply) if change else reply


class _ChangedCharges(Sandbox):
    """A sandbox that changes its replies to some charges."""

    changes: dict[str, Answer]

    async def charge(self, request: ChargeRequest) -> Reply:
        return _changed(await super().charge(request), self.changes.get(request.charge_id))


class _ChangedPayouts(SandboxPayouts):
    """A sandbox that changes its replies to some payouts."""

    changes: dict[str, Answer]

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[Reply]:
        replies = await super().submit(requests)
        return [
            _changed(reply, self.changes.get(request.payout_id))
            for request, reply in zip(requests, replies, strict=True)
        ]


@dataclass
class SandboxHarness:
    """A sandbox in this process."""

    databases: DatabaseUrls
    sandbox: _ChangedCharges
    sandbox_payouts: _ChangedPayouts
    charges: PaymentProvider
    payouts: PayoutProvider
    changes: dict[str, Answer]

    def new_charge(self, answer: Answer) -> ChargeRequest:
        charge_id = unique_id("o")
        self.changes[charge_id] = answer
        token = f"tok_{_FAULTS[answer]}"
        return ChargeRequest(f"test-{charge_id}-1", charge_id, 1000, "EUR", token, "CARD")

    def new_payout(self, answer: Answer) -> PayoutRequest:
        payout_id = unique_id("pay")
        self.changes[payout_id] = answer
        token = f"ba_{_FAULTS[answer]}"
        return PayoutRequest(f"test-p-{payout_id}-1", payout_id, 1000, "EUR", token)

    def account(self, answer: Answer) -> str:
        return unique_id(f"{_ACCOUNTS[answer]}:")

    async def taken(self, charge: ChargeRequest) -> list[int]:
        return await asyncio.to_thread(
            self._amounts, "charge", "charge_id", charge.charge_id, ["SUCCEEDED"]
        )

    async def paid(self, payout: PayoutRequest) -> list[int]:
        states = ["SUBMITTED", "IN_TRANSIT", "PAID", "RETURNED"]
        return await asyncio.to_thread(
            self._amounts, "transfer", "payout_id", payout.payout_id, states
        )

    def _amounts(self, table: str, column: str, id_: str, states: list[str]) -> list[int]:
        """The amounts that the sandbox has moved, from its log."""
        url = self.databases.reader("sandbox")
        query = f"select amount from {table} where {column} = %s and state = any (%s)"
        with psycopg.connect(url) as connection:
            return [amount for (amount,) in connection.execute(query, (id_, states))]

    @asynccontextmanager
    async def unreachable_charges(self) -> AsyncIterator[PaymentProvider]:
        self.sandbox.down = True
        yield self.charges
        self.sandbox.down = False

    @asynccontextmanager
    async def unreachable_payouts(self) -> AsyncIterator[PayoutProvider]:
        self.sandbox_payouts.down = True
        yield self.payouts
        self.sandbox_payouts.down = False


@dataclass
class HttpSandboxHarness(SandboxHarness):
    """A sandbox over HTTP, on a server under the control of the contract."""

    server: FaultyServer = field(kw_only=True)

    def declining_with(self, code: str) -> AbstractContextManager[None]:
        async def answer(request: web.Request) -> web.StreamResponse:
            is_submission = request.method == "POST" and request.path == "/payouts"
            item = _answer_of(402, code)
            return web.Response(
                status=200 if is_submission else 402,
                body=orjson.dumps([item] if is_submission else item),
            )

        return self.server.replacing_answers(answer)

    @asynccontextmanager
    async def unreachable_charges(self) -> AsyncIterator[PaymentProvider]:
        built = _build_charges(f"http://{free_address()}")
        yield built.adapter
        await _close(built)

    @asynccontextmanager
    async def unreachable_payouts(self) -> AsyncIterator[PayoutProvider]:
        built = _build_payouts(f"http://{free_address()}")
        yield built.adapter
        await _close(built)


def _answer_of(status: int, code: str) -> dict[str, Any]:
    """The sandbox's answer to any operation."""
    return {
        "reference": "sb_1",
        "amount": 1000,
        "currency": "EUR",
        "code": code,
        "state": "PAID",
        "subject": "",
        "status": status,
        "retry_after": 0,
    }


@asynccontextmanager
async def sandbox_in_process(databases: DatabaseUrls) -> AsyncIterator[SandboxHarness]:
    """A sandbox in this process, through the adapters that the platform uses."""
    async with _sandboxes(databases) as (sandbox, payouts, changes):
        sandbox.start()
        payouts.start()
        charge_adapter = SandboxCharges("tested", sandbox, 86_400.0, TERMS.final_not_found)
        payout_adapter = SandboxPayoutProvider("tested", payouts, 86_400.0)
        yield SandboxHarness(databases, sandbox, payouts, charge_adapter, payout_adapter, changes)
        await payouts.stop()
        await sandbox.stop()


@asynccontextmanager
async def sandbox_over_http(databases: DatabaseUrls) -> AsyncIterator[HttpSandboxHarness]:
    """A sandbox on a server of its own, and its adapters."""
    async with _sandboxes(databases) as (sandbox, payouts, changes):
        server = FaultyServer(orjson.dumps(_answer_of(200, "")))
        async with server.serve(create_app(sandbox, payouts)) as url:
            built_charges, built_payouts = _build_charges(url), _build_payouts(url)
            harness = HttpSandboxHarness(
                databases,
                sandbox,
                payouts,
                built_charges.adapter,
                built_payouts.adapter,
                changes,
                server=server,
            )
            yield harness
            await _close(built_charges)
            await _close(built_payouts)


@asynccontextmanager
async def _sandboxes(
    databases: DatabaseUrls,
) -> AsyncIterator[tuple[_ChangedCharges, _ChangedPayouts, dict[str, Answer]]]:
    database = Database(databases.service("sandbox"), connections=2)
    changes: dict[str, Answer] = {}
    sandbox, payouts = _ChangedCharges(database), _ChangedPayouts(database)
    sandbox.changes = payouts.changes = changes
    yield sandbox, payouts, changes
    await asyncio.to_thread(database.close)


def _no_database(_schema: str) -> Database:
    raise AssertionError("a sandbox over HTTP needs no database")


def _build_charges(url: str) -> BuiltProvider[PaymentProvider]:
    build = PROVIDER_TYPES["sandbox"].build_charges
    assert build is not None
    return build(TERMS, SandboxSettings(url=url), _no_database)


def _build_payouts(url: str) -> BuiltProvider[PayoutProvider]:
    build = PROVIDER_TYPES["sandbox"].build_payouts
    assert build is not None
    return build(TERMS, SandboxSettings(url=url), _no_database)


async def _close(built: BuiltProvider[Any]) -> None:
    for hook in built.close_hooks:
        await hook()
