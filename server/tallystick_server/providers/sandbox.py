"""The sandbox behind the port: in this process, or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.payout import payout_demand
from tallystick_core.provider import (
    ChargeDemand,
    Declined,
    FailureReason,
    FinalNotFound,
    Found,
    InTransit,
    NotFound,
    NotSent,
    Outcome,
    PayoutDemand,
    PayoutFailure,
    PayoutFound,
    PayoutOutcome,
    Pending,
    PendingReason,
    Returned,
    Submitted,
    Succeeded,
    Trouble,
    Unknown,
    Verification,
    Verified,
)
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import NOT_FOUND, UNREACHED, Reply
from tallystick_sandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from tallystick_server.providers.http import Http

NAME = "sandbox"
MOST_AT_ONCE = 100
"""The most payouts of one submission."""

_DECLINES = {
    "insufficient_funds": FailureReason.INSUFFICIENT_FUNDS,
    "expired_card": FailureReason.PAYMENT_METHOD_INVALID,
    "authentication_failed": FailureReason.AUTHENTICATION_FAILED,
    "cancelled": FailureReason.CALLER_CANCELLED,
}


FINAL_NOT_FOUND = FinalNotFound(60.0, times=2)
"""No charge is on its way to the sandbox for as long as this."""
_REFUSALS = frozenset({"amount_too_small"})
"""Codes by which a provider surely charges nothing, however often it is asked."""


class InProcess:
    """The sandbox as an object of this process."""

    name = NAME

    def __init__(self, sandbox: Sandbox, key_window: float, final_not_found: FinalNotFound | None = FINAL_NOT_FOUND) -> None:
        self.key_window = key_window
        self.final_not_found = final_not_found
        self._sandbox = sandbox

    async def send(self, demand: ChargeDemand) -> Outcome:
        return outcome(await self._sandbox.charge(demand))

    async def look_up(self, demand: ChargeDemand) -> Found:
        return found(await self._sandbox.look_up(demand.charge_id))

    async def cancel(self, demand: ChargeDemand) -> Found:
        return found(await self._sandbox.cancel(demand.charge_id))


def _http(url: str) -> Http:
    from tallystick_server.providers.http import Http  # noqa: PLC0415 - slow to import, and needed only where the sandbox is a server of its own

    return Http(url)


def _read(status: int, body: Any, retry_after: float) -> Reply:
    """An answer to one demand. Raises KeyError, TypeError."""
    return Reply(
        status, body["reference"], body["amount"], body["currency"], body["code"], retry_after, body.get("state", ""), body.get("subject", "")
    )


def _seconds(value: Any) -> float:
    """What to wait after one answer of many, at most a day. Raises ValueError for what is no number of seconds."""
    if type(value) not in (int, float) or value < 0:
        raise ValueError("retry_after is no number of seconds")
    return min(float(value), 86_400.0)


class OverHttp:
    """The sandbox as a server of its own."""

    name = NAME

    def __init__(self, url: str, key_window: float, final_not_found: FinalNotFound | None = FINAL_NOT_FOUND) -> None:
        self.key_window = key_window
        self.final_not_found = final_not_found
        self._http = _http(url)
        self.close = self._http.close

    async def send(self, demand: ChargeDemand) -> Outcome:
        body = {
            "charge_id": demand.charge_id,
            "amount": demand.amount,
            "currency": demand.currency,
            "payment_token": demand.payment_token,
            "method": demand.method,
        }
        return await self._http.ask("POST", "/charges", _outcome, json=body, headers={"Idempotency-Key": demand.key})

    async def look_up(self, demand: ChargeDemand) -> Found:
        return await self._http.ask("GET", f"/charges/{demand.charge_id}", _found)

    async def cancel(self, demand: ChargeDemand) -> Found:
        return await self._http.ask("POST", f"/charges/{demand.charge_id}/cancel", _found)


def _outcome(status: int, body: Any, retry_after: float) -> Outcome:
    return outcome(_read(status, body, retry_after))


def _found(status: int, body: Any, retry_after: float) -> Found:
    return found(_read(status, body, retry_after))


class PayoutsInProcess:
    """The sandbox's payouts as an object of this process."""

    name = NAME
    most_at_once = MOST_AT_ONCE

    def __init__(self, sandbox: SandboxPayouts, key_window: float) -> None:
        self.key_window = key_window
        self._sandbox = sandbox

    async def submit(self, demands: Sequence[PayoutDemand]) -> Sequence[PayoutOutcome]:
        return [payout_outcome(reply) for reply in await self._sandbox.submit(demands)]

    async def look_up(self, demand: PayoutDemand) -> PayoutFound:
        return payout_found(await self._sandbox.look_up(demand.payout_id))

    async def verify(self, bank_account_token: str, currency: str) -> Verification:
        return verification(await self._sandbox.verify(bank_account_token))


class PayoutsOverHttp:
    """The sandbox's payouts by a server of its own."""

    name = NAME
    most_at_once = MOST_AT_ONCE

    def __init__(self, url: str, key_window: float) -> None:
        self.key_window = key_window
        self._http = _http(url)
        self.close = self._http.close

    async def submit(self, demands: Sequence[PayoutDemand]) -> Sequence[PayoutOutcome]:
        def read(status: int, body: Any, retry_after: float) -> Sequence[PayoutOutcome]:
            if status != 200:
                return [payout_outcome(_read(status, body, retry_after))] * len(demands)
            if len(body) != len(demands):
                raise ValueError("another number of answers than of demands")
            return [payout_outcome(_read(one["status"], one, _seconds(one["retry_after"]))) for one in body]

        items = [
            {
                "key": demand.key,
                "payout_id": demand.payout_id,
                "amount": demand.amount,
                "currency": demand.currency,
                "bank_account_token": demand.bank_account_token,
            }
            for demand in demands
        ]
        answer = await self._http.ask("POST", "/payouts", read, json=items)
        return [answer] * len(demands) if isinstance(answer, NotSent | Unknown) else answer

    async def look_up(self, demand: PayoutDemand) -> PayoutFound:
        return await self._http.ask("GET", f"/payouts/{demand.payout_id}", lambda *answer: payout_found(_read(*answer)))

    async def verify(self, bank_account_token: str, currency: str) -> Verification:
        body = {"bank_account_token": bank_account_token, "currency": currency}
        return await self._http.ask("POST", "/accounts/verify", lambda *answer: verification(_read(*answer)), json=body)


def outcome(reply: Reply) -> Outcome:
    """What an answer means. What is no definite and well-formed answer is Unknown, never a decline."""
    match reply.status:
        case 200 | 202 | 402:
            return _definite(reply) if _well_formed(reply) else Unknown(f"status {reply.status} with an answer that cannot be read")
        case 400 if reply.code in _REFUSALS:
            return Declined(FailureReason.PROVIDER_REFUSED, reply.code)
        case _:
            return _trouble(reply)


def found(reply: Reply) -> Found:
    """What an answer to a look-up, or a cancellation, means. That the sandbox does not know the charge is only what it says in so many words."""
    return NotFound() if _knows_nothing(reply) else outcome(reply)


def _knows_nothing(reply: Reply) -> bool:
    return reply.status == NOT_FOUND.status and reply.code == NOT_FOUND.code


def _trouble(reply: Reply) -> NotSent | Unknown:
    """What an answer means that says nothing of the demand."""
    if reply == UNREACHED:
        return NotSent("the connection was refused")
    other = Trouble.SERVER_ERROR if reply.status >= 500 else Trouble.NO_ANSWER
    return Unknown(f"status {reply.status} {reply.code}".strip(), _TROUBLES.get(reply.status, other), reply.retry_after)


def _definite(reply: Reply) -> Outcome:
    if reply.status == 200:
        return Succeeded(reply.reference, reply.amount, reply.currency, reply.subject)
    if reply.status == 402:
        return Declined(_DECLINES.get(reply.code, FailureReason.PROVIDER_DECLINED), reply.code, reply.reference, reply.subject)
    action = reply.code == "action"
    url = f"https://sandbox.invalid/act/{reply.reference}" if action else ""
    return Pending(PendingReason.BUYER_ACTION if action else PendingReason.PROVIDER_REVIEW, reply.reference, url, reply.subject)


_TROUBLES = {400: Trouble.REJECTED, 401: Trouble.FORBIDDEN, 403: Trouble.FORBIDDEN, 404: Trouble.REJECTED, 409: Trouble.BUSY, 429: Trouble.BUSY}


def _well_formed(reply: Reply) -> bool:
    """Whether the answer's values are of their kinds and can be stored. Over HTTP they are whatever was sent."""
    amount: object = reply.amount
    texts: tuple[object, ...] = (reply.reference, reply.currency, reply.code, reply.subject)
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT or not reply.reference:
        return False
    return all(isinstance(text, str) and len(text) <= 255 and text.isascii() and (text == "" or text.isprintable()) for text in texts)


def payout_outcome(reply: Reply) -> PayoutOutcome:
    """What an answer to a payout means. What is no definite and well-formed answer is Unknown, never a decline."""
    match reply.status:
        case 200 | 402:
            return _definite_payout(reply) if _well_formed(reply) else Unknown(f"status {reply.status} with an answer that cannot be read")
        case 400 if reply.code in _REFUSALS:
            return Declined(PayoutFailure.PROVIDER_REFUSED, reply.code)
        case _:
            return _trouble(reply)


def payout_found(reply: Reply) -> PayoutFound:
    """What an answer to a look-up means."""
    return NotFound() if _knows_nothing(reply) else payout_outcome(reply)


def _definite_payout(reply: Reply) -> PayoutOutcome:
    whose = payout_demand(reply.subject) if reply.subject else ""
    if reply.status == 402:
        account = reply.code in _ACCOUNT_REFUSED
        return Declined(PayoutFailure.DESTINATION_REFUSED if account else PayoutFailure.PROVIDER_DECLINED, reply.code, reply.reference, whose)
    match reply.state:
        case "SUBMITTED":
            return Submitted(reply.reference, whose)
        case "IN_TRANSIT":
            return InTransit(reply.reference, whose)
        case "PAID":
            return Succeeded(reply.reference, reply.amount, reply.currency, whose)
        case "RETURNED":
            return Returned(
                reply.reference, reply.amount, reply.currency, reply.code, account_refused=reply.code in _ACCOUNT_REFUSED, belongs_to=whose
            )
        case _:
            return Unknown("a state that is not known")


_ACCOUNT_REFUSED = frozenset({"account_closed", "no_account"})


def verification(reply: Reply) -> Verification:
    """Whether an account can be paid to."""
    match reply.status:
        case 200:
            return Verified()
        case 202:
            return Pending(PendingReason.PROVIDER_REVIEW)
        case 402 if isinstance(reply.code, str) and reply.code.isascii():
            return Declined(PayoutFailure.DESTINATION_REFUSED, reply.code[:255])
        case _:
            return _trouble(reply)
