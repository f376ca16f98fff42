"""Audits the hosted pages of payments: by the look-alike's log of sessions, and by what callers and
buyers have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tallystick.payment.v1 import payment_pb2
from tests.simulation.load import PaymentResponses

_CLOSED_BY_PROVIDER = frozenset({"PAGE_EXPIRED", "CALLER_CANCELLED"})
"""Why an order has failed whose page nobody can pay any more."""
_CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"


@dataclass(frozen=True)
class SessionLogEntry:
    """A session in the look-alike's log."""

    session_id: str
    charge_id: str
    status: str


def audit_page(
    responses: PaymentResponses,
    payment: payment_pb2.Payment,
    sessions: Sequence[SessionLogEntry],
    *,
    is_key_short: bool,
) -> Iterator[str]:
    """The violations of a payment by hosted page, when nothing is in progress. `sessions`: those of
    its charge. `is_key_short`: the provider forgets a key while the page can be paid, so a page
    whose registration was never answered may have been registered again. Nobody has its URL.
    """
    name = payment.checkout_id
    urls = {
        *(reported.hosted_page.url for reported in (*responses.payments, payment)),
        *(status.next_action_url for status in responses.buyer_statuses),
    } - {""}
    if len(urls) > 1:
        yield f"{name} had the pages {sorted(urls)}"
    for status in responses.buyer_statuses:
        is_final = status.payment_state != payment_pb2.PAYMENT_STATE_OPEN
        if is_final and status.payment_state != payment.payment_state:
            yield f"the buyer of {name} saw {payment_pb2.PaymentState.Name(status.payment_state)}"
    pages = [item for item in sessions if any(url.endswith(item.session_id) for url in urls)]
    if len(pages) != len(urls):
        yield f"{name} had the pages {sorted(urls)}, and the provider has {sessions}"
    if len(sessions) > 1 and not is_key_short:
        yield f"{name} was registered as {sessions}"
    for session in pages if is_key_short else sessions:
        yield from _audit_session(payment, session)


def _audit_session(payment: payment_pb2.Payment, session: SessionLogEntry) -> Iterator[str]:
    """The end of a page and that of its orders agree. Whether money was taken, and for which
    orders, is in the log of charges.
    """
    reasons = {
        payment_pb2.FailureReason.Name(order.failure_reason).removeprefix("FAILURE_REASON_")
        for order in payment.payment_orders
    } - {"RISK_BLOCKED_ACCOUNT"}
    allowed = {
        "expired": reasons <= {*_CLOSED_BY_PROVIDER, _CLOSED_BY_OPERATOR},
        "complete": reasons.isdisjoint(_CLOSED_BY_PROVIDER),
        "open": reasons == {_CLOSED_BY_OPERATOR},
    }
    if not allowed[session.status]:
        yield (
            f"the page of {payment.checkout_id} is {session.status}, and its orders failed with "
            f"{sorted(reasons)}"
        )
