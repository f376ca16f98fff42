"""The behavior of the sandbox, as pure functions. The token selects it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class Fault(StrEnum):
    """A fault of the sandbox. "Once": only the first time a key is used, or as often as the token
    says. After that the key gets the correct reply.
    """

    NONE = "none"
    DECLINE = "decline"
    PENDING = "pending"
    DELAY = "delay"
    UNREACHABLE = "unreachable"
    """The connection is refused, once."""
    BUSY = "busy"
    """A 429 that asks to retry later, once."""
    FORBIDDEN = "forbidden"
    """A 401 that rejects the credentials, once."""
    REJECTED = "rejected"
    """A 400 that rejects the request, every time."""
    AMOUNT_TOO_SMALL = "amount_too_small"
    """A definite rejection: the amount is too small."""
    LOST_BEFORE = "lost_before"
    """The reply is lost before anything is executed, once."""
    LOST_AFTER = "lost_after"
    """The charge is made and the reply is lost, once."""
    ERROR_BEFORE = "error_before"
    """A 5xx before anything is executed, once."""
    ERROR_AFTER = "error_after"
    """The charge is made and the reply is a 5xx, once."""
    ERROR_STORED = "error_stored"
    """Nothing is charged, and the 5xx is replayed every time."""
    OTHER_AMOUNT = "other_amount"
    """One minor unit more than requested is charged or paid."""
    # payouts only
    SLOW = "slow"
    """The banks are slow: submitted, in transit, paid."""
    RETURNED = "returned"
    """Paid, then returned by the seller's bank."""
    RETURNED_PART = "returned_part"
    RETURNED_CLOSED = "returned_closed"
    """Returned because the account is closed."""
    PAID_LATE = "paid_late"
    """Declined, but paid later."""
    PAID_TWICE = "paid_twice"
    """Paid a second time, under another reference."""
    BATCH_LOST = "batch_lost"
    """The reply to the whole submission is lost, once."""
    UNVERIFIED = "unverified"
    """The account cannot be paid to."""
    REVIEW = "review"
    """The first verification is pending, a repeated one succeeds."""
    # the Stripe look-alike only
    FAILED = "failed"
    """A payout that is pending, and fails at the next lookup."""
    HTML = "html"
    """The answer is a page of HTML."""
    HUGE = "huge"
    """The answer is a text of 3 MB."""
    REDIRECT = "redirect"
    """The answer redirects to another server."""
    CUT = "cut"
    """The charge is made and the answer is cut after half of its body, once."""


_BY_NAME = {str(fault): fault for fault in Fault}


@dataclass(frozen=True, slots=True)
class Behavior:
    """What happens to one request."""

    fault: Fault
    delay_seconds: float = 0.0
    """Seconds before anything is executed."""
    code: str = ""
    times: int = 0
    """How many times a transient fault applies to the key."""


TRANSIENT_FAULTS = frozenset(
    {
        Fault.UNREACHABLE,
        Fault.BUSY,
        Fault.FORBIDDEN,
        Fault.LOST_BEFORE,
        Fault.ERROR_BEFORE,
        Fault.LOST_AFTER,
        Fault.ERROR_AFTER,
        Fault.BATCH_LOST,
        Fault.HTML,
        Fault.HUGE,
        Fault.REDIRECT,
        Fault.CUT,
    }
)
_NUMBER = re.compile("[0-9]{1,9}")
_TOKEN = re.compile(r"(?:tok|ba|pm|acct)_([a-z_]+)(?::(.*))?", re.DOTALL)


def is_fault_token(token: str) -> bool:
    """Whether a token selects a fault."""
    match = _TOKEN.fullmatch(token)
    return match is not None and match[1] in _BY_NAME


def behavior_for(token: str) -> Behavior:
    """The behavior that a token selects: "tok_{fault}:{argument}" of a buyer, or
    "ba_{fault}:{argument}" of a seller's bank account. Other tokens select no fault. The Stripe
    look-alike has the prefixes "pm_" and "acct_" too.

    The argument depends on the fault. `decline`: the decline code. `delay`: milliseconds. Transient
    faults: how many times they apply. `pending`: the reason (action or review), or the result of
    the lookup (paid or declined). Several values joined by "-" apply to one lookup after the other.
    `slow` and `returned`: seconds until the final state; without them the next lookup reaches it.
    """
    match = _TOKEN.fullmatch(token)
    fault = _BY_NAME.get(match[1]) if match else None
    if match is None or fault is None:
        return Behavior(Fault.NONE)
    argument = match[2] or ""
    number = int(argument) if _NUMBER.fullmatch(argument) else None
    if fault is Fault.DELAY:
        return Behavior(fault, 0.25 if number is None else min(number, 60_000) / 1000)
    if fault in TRANSIENT_FAULTS:
        return Behavior(fault, times=1 if number is None else number)
    return Behavior(fault, code=argument)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as it would be sent over HTTP."""

    status: int
    """0: no reply arrived."""
    reference: str = ""
    amount: int = 0
    currency: str = ""
    code: str = ""
    retry_after: float = 0.0
    """Seconds, with a 429."""
    state: str = ""
    """The state of a payout, with a 200."""
    subject: str = ""
    """The id of the charge or payout."""
    fee: int | None = None
    """What the sandbox takes for a charge, in minor units of its currency; None: not reported."""
    request_id: str = field(default="", compare=False)
    """Names the request that it answers; over HTTP, the header Request-Id."""

    def answering(self, request_id: str) -> Reply:
        """The reply to this request. A reply that does not arrive names none."""
        return replace(self, request_id=request_id) if self.status else self


def format_request_id(id_: UUID) -> str:
    """The id of a request."""
    return f"req_{id_.hex[:14]}"


class StoredRequest(Protocol):
    """A request as stored in the log."""

    @property
    def subject(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def currency(self) -> str: ...
    @property
    def fault(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def returned_amount(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class ChargeSnapshot:
    """The state of a charge at the time of a lookup."""

    subject: str
    reference: str
    state: str
    amount: int
    currency: str
    fault: str
    code: str
    returned_amount: int | None = None


def initial_charge_state(behavior: Behavior) -> str:
    """The initial state of a stored charge."""
    states = {Fault.DECLINE: "DECLINED", Fault.PENDING: "PENDING", Fault.ERROR_STORED: "ERROR"}
    return states.get(behavior.fault, "SUCCEEDED")


def build_charge_reply(stored: StoredRequest) -> Reply:
    """The reply to a stored charge, for the first request and for repeats. A pending charge gives
    the first reason of its code.
    """
    status = {"SUCCEEDED": 200, "PENDING": 202, "DECLINED": 402, "ERROR": 500}[stored.state]
    code = stored.code.partition("-")[0] if stored.state == "PENDING" else stored.code
    return Reply(
        status, stored.reference, stored.amount, stored.currency, code, subject=stored.subject
    )


def resolve_pending(stored_state: str, code: str) -> tuple[str, str]:
    """The state and code of a charge after a lookup. A pending charge may be final now, or pending
    for the next reason.
    """
    if stored_state != "PENDING":
        return stored_state, code
    remaining_code = code.partition("-")[2] or code
    return {"paid": "SUCCEEDED", "declined": "DECLINED"}.get(
        remaining_code, stored_state
    ), remaining_code


NO_RESPONSE = Reply(0, code="lost")
CONNECTION_REFUSED = Reply(0, code="unreachable")
NOT_FOUND = Reply(404, code="not_found")
KEY_IN_USE = Reply(409, code="idempotency_key_in_use")
KEY_MISMATCH = Reply(400, code="idempotency_key_reused")
SERVER_ERROR = Reply(500, code="server_error")

FAULTS_BEFORE_COMMIT = {
    Fault.UNREACHABLE: CONNECTION_REFUSED,
    Fault.LOST_BEFORE: NO_RESPONSE,
    Fault.ERROR_BEFORE: SERVER_ERROR,
    Fault.BUSY: Reply(429, code="rate_limited", retry_after=0.3),
    Fault.FORBIDDEN: Reply(401, code="credentials_invalid"),
    Fault.REJECTED: Reply(400, code="request_malformed"),
    Fault.AMOUNT_TOO_SMALL: Reply(400, code="amount_too_small"),
}
"""Replies that replace the correct one; nothing is charged."""
FAULTS_AFTER_COMMIT = {Fault.LOST_AFTER: NO_RESPONSE, Fault.ERROR_AFTER: SERVER_ERROR}
"""Replies that replace the correct one after it is committed."""


def initial_transfer_state(behavior: Behavior) -> str:
    """The initial state of a stored transfer."""
    states = {
        Fault.DECLINE: "DECLINED",
        Fault.PAID_LATE: "DECLINED",
        Fault.SLOW: "SUBMITTED",
        Fault.ERROR_STORED: "ERROR",
    }
    return states.get(behavior.fault, "PAID")


def next_transfer_state(stored: StoredRequest, age_seconds: float) -> str:
    """The state of a transfer at a lookup, `age_seconds` seconds after the request."""
    fault, is_timed = Fault(stored.fault), stored.code.isdecimal()
    seconds = float(stored.code) if is_timed else 0.0
    match stored.state:
        case "SUBMITTED":
            return (
                "SUBMITTED"
                if age_seconds * 2 < seconds
                else "PAID"
                if is_timed and age_seconds >= seconds
                else "IN_TRANSIT"
            )
        case "IN_TRANSIT":
            return "PAID" if age_seconds >= seconds else "IN_TRANSIT"
        case "PAID" if fault in _RETURN_FAULTS and age_seconds >= seconds:
            return "RETURNED"
        case "DECLINED" if fault is Fault.PAID_LATE:
            return "PAID"
        case _:
            return stored.state


_RETURN_FAULTS = frozenset({Fault.RETURNED, Fault.RETURNED_PART, Fault.RETURNED_CLOSED})


def compute_returned_amount(stored: StoredRequest) -> int:
    """The returned amount of a transfer, in minor units."""
    return max(stored.amount // 2, 1) if stored.fault == Fault.RETURNED_PART else stored.amount


def build_transfer_reply(stored: StoredRequest) -> Reply:
    """The reply to a stored transfer in its current state."""
    match stored.state:
        case "DECLINED":
            code = stored.code if stored.fault == Fault.DECLINE else "declined"
            return Reply(
                402, stored.reference, stored.amount, stored.currency, code, subject=stored.subject
            )
        case "ERROR":
            return Reply(500, code="server_error")
        case "RETURNED":
            code = "account_closed" if stored.fault == Fault.RETURNED_CLOSED else "returned"
            return Reply(
                200,
                stored.reference,
                stored.returned_amount or 0,
                stored.currency,
                code,
                state=stored.state,
                subject=stored.subject,
            )
        case _:
            return Reply(
                200,
                stored.reference,
                stored.amount,
                stored.currency,
                state=stored.state,
                subject=stored.subject,
            )


def build_verification_reply(token: str, previous_checks: int) -> Reply:
    """Whether an account can be paid to. `previous_checks`: the number of earlier verifications."""
    match behavior_for(token).fault:
        case Fault.UNVERIFIED:
            return Reply(402, code="no_account")
        case Fault.REVIEW if not previous_checks:
            return Reply(202, code="review")
        case _:
            return Reply(200)
