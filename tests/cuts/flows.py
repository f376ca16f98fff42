"""The payments and payouts whose HTTP calls are cut, and the cases: each cut of each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tests.cuts.provider import ERRORS, KILLS, Cut

_CREATE = "POST /v1/payment_intents"
_READ = "GET /v1/payment_intents/{id}"
_CANCEL = "POST /v1/payment_intents/{id}/cancel"
_SEARCH = "GET /v1/payment_intents/search"
_TRANSFER = "POST /v1/transfers"
_PAYOUT = "POST /v1/payouts"
_REVERSAL = "POST /v1/transfers/{id}/reversals"
_LIST_TRANSFERS = "GET /v1/transfers"
_READ_TRANSFER = "GET /v1/transfers/{id}"
_LIST_PAYOUTS = "GET /v1/payouts"
_EVENTS = "GET /v1/events"
_REGISTER = "POST /v1/checkout/sessions"
READ_PAGE = "GET /v1/checkout/sessions/{id}"
CLOSE_PAGE = "POST /v1/checkout/sessions/{id}/expire"


class Page(StrEnum):
    """What becomes of a hosted page."""

    PAID = "paid"
    """Its buyer sends it just before the platform reads it."""
    LEFT = "left"
    """Its buyer leaves, and it expires."""
    CANCELLED = "cancelled"
    """Its buyer leaves, and the caller cancels the payment."""
    PAID_LATE = "paid late"
    """The caller cancels the payment, and its buyer sends it just before it is closed."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A payment or a payout. `token`: the payment method or the account of the look-alike, or the
    card with which the buyer pays on its page; `calls`: the HTTP calls without a cut, without those
    that read once more; `end`: the final state without a cut; `page`: None: it has no page.
    """

    name: str
    token: str
    calls: tuple[str, ...]
    end: str
    is_payout: bool = False
    page: Page | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller cancels the payment."""
        return self.page in (Page.CANCELLED, Page.PAID_LATE)


FLOWS = (
    Flow("paid", "pm_card_visa", (_CREATE,), "SUCCESS"),
    Flow("declined", "pm_decline:insufficient_funds", (_CREATE, _CANCEL), "FAILED"),
    Flow("authenticated, paid", "pm_pending:action-paid", (_CREATE, _READ), "SUCCESS"),
    Flow(
        "authenticated, declined",
        "pm_pending:action-declined",
        (_CREATE, _READ, _CANCEL),
        "FAILED",
    ),
    Flow("delayed, paid", "pm_pending:review-paid", (_CREATE, _READ), "SUCCESS"),
    Flow("delayed, declined", "pm_pending:review-declined", (_CREATE, _READ, _CANCEL), "FAILED"),
    Flow("found by search", "pm_lost_after:2", (_CREATE, _CREATE, _SEARCH, _READ), "SUCCESS"),
    Flow("paid on a page", "success", (_REGISTER, READ_PAGE), "SUCCESS", page=Page.PAID),
    Flow("authenticated on a page", "3d_secure", (_REGISTER, READ_PAGE), "SUCCESS", page=Page.PAID),
    Flow(
        "delayed on a page, paid",
        "delayed_success",
        (_REGISTER, READ_PAGE),
        "SUCCESS",
        page=Page.PAID,
    ),
    Flow(
        "delayed on a page, declined",
        "delayed_failure",
        (_REGISTER, READ_PAGE),
        "FAILED",
        page=Page.PAID,
    ),
    Flow("page expired", "none", (_REGISTER, READ_PAGE), "FAILED", page=Page.LEFT),
    Flow(
        "page cancelled",
        "none",
        (_REGISTER, READ_PAGE, CLOSE_PAGE),
        "FAILED",
        page=Page.CANCELLED,
    ),
    Flow(
        "page paid as it is cancelled",
        "success",
        (_REGISTER, READ_PAGE, CLOSE_PAGE, READ_PAGE),
        "SUCCESS",
        page=Page.PAID_LATE,
    ),
    Flow("paid out", "acct_ok", (_TRANSFER, _PAYOUT, _READ_TRANSFER, _LIST_PAYOUTS), "PAID", True),
    Flow(
        "payout rejected",
        "acct_decline:balance_insufficient",
        (_TRANSFER, _PAYOUT, _LIST_PAYOUTS, _REVERSAL),
        "FAILED",
        True,
    ),
    Flow(
        "payout failed",
        "acct_failed",
        (_TRANSFER, _PAYOUT, _READ_TRANSFER, _LIST_PAYOUTS, _EVENTS, _REVERSAL),
        "FAILED",
        True,
    ),
    Flow(
        "payout returned",
        "acct_returned",
        (
            _TRANSFER,
            _PAYOUT,
            _READ_TRANSFER,
            _LIST_PAYOUTS,
            _READ_TRANSFER,
            _LIST_PAYOUTS,
            _EVENTS,
            _REVERSAL,
        ),
        "RETURNED",
        True,
    ),
    Flow(
        "payout found by list",
        "acct_lost_before:2",
        (_TRANSFER, _TRANSFER, _LIST_TRANSFERS, _TRANSFER, _PAYOUT),
        "PAID",
        True,
    ),
)


class Expiry(StrEnum):
    """What may have to expire before a case ends."""

    NOTHING = "NOTHING"
    LEASE = "LEASE"
    KEY = "KEY"


@dataclass(frozen=True, slots=True)
class Case:
    """A flow of which one call is cut. `cut` None: no call is."""

    id: str
    flow: Flow
    index: int = -1
    cut: Cut | None = None

    @property
    def call(self) -> str:
        return self.flow.calls[self.index] if self.cut else ""

    @property
    def expiry(self) -> Expiry:
        """What may have to expire before it ends."""
        if self.flow.page is Page.LEFT:  # the page does, before the key
            return Expiry.KEY
        if self.cut in KILLS:
            return Expiry.LEASE
        has_key = self.call.startswith("POST")  # an answer without a key is not stored
        return Expiry.KEY if self.cut in ERRORS and has_key else Expiry.NOTHING

    def __str__(self) -> str:
        return f"{self.flow.name}: {self.index + 1}. {self.call}: {self.cut or 'no cut'}"


def all_cases() -> Iterator[Case]:
    """Every flow without a cut, and with each cut of each call. A payout's process does not die:
    its task is shared; the simulation has that.
    """
    for number, flow in enumerate(FLOWS):
        yield Case(f"cut-{number}", flow)
        for index, call in enumerate(flow.calls):
            for cut in Cut:
                changes_nothing = call.startswith("GET") and cut is Cut.ERROR_AFTER
                if not changes_nothing and not (flow.is_payout and cut in KILLS):
                    yield Case(f"cut-{number}-{index}-{cut.name.lower()}", flow, index, cut)
