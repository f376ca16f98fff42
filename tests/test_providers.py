"""Adapters: whatever a provider answers is one of five outcomes."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_core.payment import Happening, happening
from tallystick_core.provider import Declined, NotSent, Pending, Succeeded, Trouble, Unknown
from tallystick_sandbox.rules import UNREACHED, Reply
from tallystick_server.providers.sandbox import outcome


@pytest.mark.parametrize(
    ("reply", "kind", "happens"),
    [
        (Reply(200, "r", 100, "EUR"), Succeeded, Happening.SUCCEEDED),
        (Reply(202, "r", 100, "EUR", "action"), Pending, Happening.PENDING),
        (Reply(402, "r", 100, "EUR", "insufficient_funds"), Declined, Happening.DECLINED),
        (Reply(400, code="amount_too_small"), Declined, Happening.DECLINED),
        (UNREACHED, NotSent, Happening.NOT_SENT),
        *((Reply(status, "r", 100, "EUR"), Unknown, Happening.UNKNOWN) for status in (0, 201, 204, 301, 400, 401, 404, 409, 429, 500, 503)),
    ],
)
def test_only_a_definite_answer_is_definite(reply: Reply, kind: type, happens: Happening) -> None:
    """Everything that is no clear success, decline or wait is Unknown, and the same key is sent again."""
    assert type(outcome(reply)) is kind
    assert happening(outcome(reply)) is happens


@pytest.mark.parametrize("status", [200, 202, 402])
@pytest.mark.parametrize(
    "values",
    [
        {"amount": None}, {"amount": "100"}, {"amount": 2**64}, {"amount": 0}, {"amount": True}, {"amount": 1.5}, {"reference": ""}, {"reference": None},
        {"reference": "\ud800"}, {"reference": "a\0b"}, {"reference": "x" * 256}, {"currency": 3}, {"code": []},
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_unknown(status: int, values: dict[str, Any]) -> None:
    """A malformed answer is no decline and no other amount: nothing definite was said."""
    given = {"reference": "r", "amount": 100, "currency": "EUR", "code": "", **values}
    assert isinstance(outcome(Reply(status, **given)), Unknown)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (500, "SERVER_ERROR"),
        (503, "SERVER_ERROR"),
        (204, "NO_ANSWER"),
        (0, "NO_ANSWER"),
        (409, "BUSY"),
        (429, "BUSY"),
        (400, "REJECTED"),
        (404, "REJECTED"),
        (401, "FORBIDDEN"),
        (403, "FORBIDDEN"),
    ],
)
def test_an_unknown_outcome_says_why(status: int, trouble: Trouble) -> None:
    """What is tried again how depends on why nobody knows; the provider's own wish goes with it."""
    found = outcome(Reply(status, retry_after=7.5))
    assert isinstance(found, Unknown)
    assert (found.trouble, found.retry_after) == (trouble, 7.5)
