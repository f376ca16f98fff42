"""Adapters map every provider answer to one of five outcomes."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_core.payment.charge import trigger_for
from tallystick_core.payment.state import PaymentTrigger
from tallystick_core.provider.outcome import (
    Declined,
    NotSent,
    Pending,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_sandbox.rules import CONNECTION_REFUSED, Reply
from tallystick_server.providers.sandbox.charges import to_outcome


@pytest.mark.parametrize(
    ("reply", "kind", "happens"),
    [
        (Reply(200, "r", 100, "EUR"), Succeeded, PaymentTrigger.SUCCEEDED),
        (Reply(202, "r", 100, "EUR", "action"), Pending, PaymentTrigger.PENDING),
        (Reply(402, "r", 100, "EUR", "insufficient_funds"), Declined, PaymentTrigger.DECLINED),
        (Reply(400, code="amount_too_small"), Declined, PaymentTrigger.DECLINED),
        (CONNECTION_REFUSED, NotSent, PaymentTrigger.NOT_SENT),
        *(
            (Reply(status, "r", 100, "EUR"), Unknown, PaymentTrigger.UNKNOWN)
            for status in (0, 201, 204, 301, 400, 401, 404, 409, 429, 500, 503)
        ),
    ],
)
def test_only_a_definite_answer_is_conclusive(
    reply: Reply, kind: type, happens: PaymentTrigger
) -> None:
    """Every answer that is not clearly a success, a decline or pending is Unknown, and the same key
    is sent again.
    """
    assert type(to_outcome(reply)) is kind
    assert trigger_for(to_outcome(reply)) is happens


@pytest.mark.parametrize("status", [200, 202, 402])
@pytest.mark.parametrize(
    "values",
    [
        {"amount": None},
        {"amount": "100"},
        {"amount": 2**64},
        {"amount": 0},
        {"amount": True},
        {"amount": 1.5},
        {"reference": ""},
        {"reference": None},
        {"reference": "\ud800"},
        {"reference": "a\0b"},
        {"reference": "x" * 256},
        {"currency": 3},
        {"code": []},
        {"fee": "1"},
        {"fee": -1},
        {"fee": 1.5},
        {"fee": True},
    ],
)
def test_a_malformed_answer_is_unknown(status: int, values: dict[str, Any]) -> None:
    """A malformed answer is neither a decline nor another amount: it is not conclusive."""
    reply_fields = {"reference": "r", "amount": 100, "currency": "EUR", "code": "", **values}
    assert isinstance(to_outcome(Reply(status, **reply_fields)), Unknown)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (500, "SERVER_ERROR"),
        (503, "SERVER_ERROR"),
        (204, "NO_ANSWER"),
        (0, "NO_ANSWER"),
        (409, "THROTTLED"),
        (429, "THROTTLED"),
        (400, "REJECTED"),
        (404, "REJECTED"),
        (401, "UNAUTHORIZED"),
        (403, "UNAUTHORIZED"),
    ],
)
def test_an_unknown_outcome_has_its_retry_reason(status: int, reason: RetryReason) -> None:
    """The retry reason follows from the cause of an Unknown outcome; it includes the provider's own
    retry time.
    """
    parsed_outcome = to_outcome(Reply(status, retry_after=7.5))
    assert isinstance(parsed_outcome, Unknown)
    assert (parsed_outcome.retry_reason, parsed_outcome.retry_after) == (reason, 7.5)
