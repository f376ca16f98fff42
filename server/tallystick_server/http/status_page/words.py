"""Which words of the catalogue describe a payment. A value that this version does not know is
described as UNSPECIFIED.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tallystick.payment.v1 import payment_pb2


class Tone(StrEnum):
    """What the page looks like. It adds no meaning to the words."""

    ACTION = "action"
    WAITING = "waiting"
    SUCCESS = "success"
    PARTIAL = "partial"
    FAILURE = "failure"


PENDING_WORDS: Mapping[int, str] = {
    payment_pb2.PENDING_REASON_UNSPECIFIED: "processing",
    payment_pb2.PENDING_REASON_BUYER_ACTION: "buyer_action",
    payment_pb2.PENDING_REASON_PROVIDER_REVIEW: "provider_review",
    payment_pb2.PENDING_REASON_RISK_REVIEW: "risk_review",
}
FAILURE_WORDS: Mapping[int, str] = {
    payment_pb2.FAILURE_REASON_UNSPECIFIED: "failed.unspecified",
    payment_pb2.FAILURE_REASON_PROVIDER_DECLINED: "failed.declined",
    payment_pb2.FAILURE_REASON_INSUFFICIENT_FUNDS: "failed.insufficient_funds",
    payment_pb2.FAILURE_REASON_PAYMENT_METHOD_INVALID: "failed.payment_method_invalid",
    payment_pb2.FAILURE_REASON_AUTHENTICATION_FAILED: "failed.authentication_failed",
    payment_pb2.FAILURE_REASON_PAGE_EXPIRED: "failed.page_expired",
    payment_pb2.FAILURE_REASON_EXPIRED: "failed.expired",
    payment_pb2.FAILURE_REASON_BUYER_CANCELLED: "failed.buyer_cancelled",
    payment_pb2.FAILURE_REASON_CALLER_CANCELLED: "failed.shop_cancelled",
    # why a risk rule rejects a payment is not shown: it would help to get around the rule
    payment_pb2.FAILURE_REASON_RISK_AMOUNT_LIMIT: "failed.not_accepted",
    payment_pb2.FAILURE_REASON_RISK_VELOCITY: "failed.not_accepted",
    payment_pb2.FAILURE_REASON_RISK_BLOCKED_ACCOUNT: "failed.not_accepted",
    payment_pb2.FAILURE_REASON_RISK_BLOCKED_COUNTRY: "failed.not_accepted",
    payment_pb2.FAILURE_REASON_RISK_PROVIDER: "failed.not_accepted",
    payment_pb2.FAILURE_REASON_PROVIDER_MISMATCH: "failed.mismatch",
    payment_pb2.FAILURE_REASON_PROVIDER_REJECTED: "failed.provider_failed",
    payment_pb2.FAILURE_REASON_PROVIDER_UNREACHABLE: "failed.provider_failed",
    payment_pb2.FAILURE_REASON_SIBLING_FAILED: "failed.other_part_failed",
    payment_pb2.FAILURE_REASON_CLOSED_BY_OPERATOR: "failed.closed",
}
_MAYBE_CHARGED = frozenset(
    {
        # of different reasons, one may be the mismatch
        payment_pb2.FAILURE_REASON_UNSPECIFIED,
        payment_pb2.FAILURE_REASON_PROVIDER_MISMATCH,
        # an operator may close a charge because its provider does not answer
        payment_pb2.FAILURE_REASON_CLOSED_BY_OPERATOR,
    }
)


def is_uncharged(status: payment_pb2.BuyerStatus) -> bool:
    """Whether it is certain that nothing was charged for what failed."""
    reason = status.failure_reason
    return (
        not status.has_unapplied_charge and reason in FAILURE_WORDS and reason not in _MAYBE_CHARGED
    )
