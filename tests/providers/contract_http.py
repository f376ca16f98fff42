"""The contract of adapters that use HTTP: answers that are not the provider's own, redirects, and
connections that break. They do not exist for an adapter in the process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeAlias

from tallystick_core.provider.outcome import (
    Declined,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tests.providers.contract import Answer, ChargeHarness
from tests.providers.contract_calls import (
    SHORT_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
    has_reason,
    through_gateway,
)
from tests.providers.contract_payouts import PayoutHarness
from tests.providers.faulty_server import FaultyServer


class HttpHarness(ChargeHarness, PayoutHarness, Protocol):
    """A provider whose HTTP server is under the test's control."""

    @property
    def server(self) -> FaultyServer:
        """The provider's server."""
        ...

    def declining_with(self, code: str) -> AbstractContextManager[None]:
        """Every request is declined with this code until the block ends."""
        ...


Call: TypeAlias = Callable[[], Awaitable[ProviderOutcome]]
HttpCase: TypeAlias = Callable[[HttpHarness], Awaitable[None]]


def calls(harness: HttpHarness) -> dict[str, Call]:
    """Every call of the adapter, for new operations."""
    charge, payout = harness.new_charge(Answer.SUCCEEDS), harness.new_payout(Answer.SUCCEEDS)

    async def submit() -> ProviderOutcome:
        first, *others = await harness.payouts.submit([payout])
        assert not others
        return first

    return {
        "send": partial(harness.charges.send, charge),
        "look up charge": partial(harness.charges.look_up, charge),
        "cancel": partial(harness.charges.cancel, charge),
        "submit": submit,
        "look up payout": partial(harness.payouts.look_up, payout),
        "verify": partial(harness.payouts.verify, harness.account(Answer.SUCCEEDS), "EUR"),
    }


async def outcomes_of_all(
    harness: HttpHarness, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, ProviderOutcome]:
    """The outcome of every call, through the gateway."""
    return {
        name: await through_gateway("", "", call, timeout_seconds)
        for name, call in calls(harness).items()
    }


_FOREIGN_BODIES = {
    "HTML": b"<html><body>It works!</body></html>",
    "nothing": b"",
    "half of a JSON object": b'{"reference": "r", "amou',
    "null": b"null",
    "a number": b"7",
    "a text": b'"paid"',
    "an empty list": b"[]",
    "a list of nothing": b"[{}]",
    "an empty object": b"{}",
    "deep nesting": b"[" * 100_000,
    "bytes": bytes(range(256)),
    "a huge text": b'"' + b"x" * 3_000_000 + b'"',
    "huge HTML": b"<html>" + b"x" * 3_000_000,
}


async def foreign_bodies_are_unknown(harness: HttpHarness) -> None:
    """HTML, huge and broken bodies say nothing, whatever the status is: never a success, a decline
    or "not found".
    """
    for status in (200, 201, 202, 204, 400, 402, 404, 409):
        for name, body in _FOREIGN_BODIES.items():
            with harness.server.answering(status, b"" if status == 204 else body):
                for call, outcome in (await outcomes_of_all(harness)).items():
                    assert has_reason(outcome, RetryReason.NO_ANSWER), (status, name, call)
    outcome = await calls(harness)["send"]()
    assert isinstance(outcome, Succeeded), "the adapter works afterwards"


async def error_pages_count_by_status(harness: HttpHarness) -> None:
    """The error page of a proxy or a gateway has no body that an adapter can read; its status alone
    says why to retry, and Retry-After when.
    """
    for status, reason in (
        (401, RetryReason.UNAUTHORIZED),
        (403, RetryReason.UNAUTHORIZED),
        (429, RetryReason.THROTTLED),
        (500, RetryReason.SERVER_ERROR),
        (502, RetryReason.SERVER_ERROR),
        (503, RetryReason.SERVER_ERROR),
        (504, RetryReason.SERVER_ERROR),
    ):
        for body in (b"<html>no</html>", b"", b"{}"):
            with harness.server.answering(status, body, {"Retry-After": "7"}):
                for call, outcome in (await outcomes_of_all(harness)).items():
                    assert has_reason(outcome, reason), (status, body, call)
                    assert isinstance(outcome, Unknown)
                    assert outcome.retry_after == 7, (status, body, call)


async def retry_after_may_be_a_date(harness: HttpHarness) -> None:
    """Retry-After as a date counts from the Date of the answer; what is invalid or past is no wait,
    and no wait is longer than a day.
    """
    now = "Sun, 29 Nov 2026 12:00:00 GMT"
    for value, seconds in (
        ("Sun, 29 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 29 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 29 Dec 2026 12:00:00 GMT", 86_400.0),
        ("2.5", 2.5),
        ("99999999999999999999", 86_400.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ):
        with harness.server.answering(429, b"busy", {"Retry-After": value, "Date": now}):
            outcome = await calls(harness)["send"]()
        assert isinstance(outcome, Unknown)
        assert outcome.retry_after == seconds, value


async def every_text_can_be_stored(harness: HttpHarness) -> None:
    """A decline whose code is too long or has characters that the database rejects is unknown, or
    is a decline without them.
    """
    for code in ("a\0b", "a\nb", "\u202e", "x" * 300):
        with harness.declining_with(code):
            for call, outcome in (await outcomes_of_all(harness)).items():
                assert isinstance(outcome, Unknown | Declined), call
                if isinstance(outcome, Declined):
                    assert outcome.code.isprintable(), (code, call)
                    assert outcome.code.isascii(), (code, call)
                    assert len(outcome.code) <= 255, call
    with harness.declining_with("declined"):
        assert {type(outcome) for outcome in (await outcomes_of_all(harness)).values()} == {
            Declined
        }


async def redirects_are_not_followed(harness: HttpHarness) -> None:
    """A redirect is unknown, and the server that it names never gets the request, with its
    credentials and its money.
    """
    for status in (301, 302, 303, 307, 308):
        for body in (b"", harness.server.success_body):
            headers = {"Location": f"{harness.server.other_url}/charges"}
            with harness.server.answering(status, body, headers):
                for call, outcome in (await outcomes_of_all(harness)).items():
                    assert isinstance(outcome, Unknown), (status, call)
    assert harness.server.other_requests == 0


async def a_cut_answer_is_unknown(harness: HttpHarness) -> None:
    """A connection that ends within the answer is a lost answer."""
    with harness.server.cutting_answers():
        for call, outcome in (await outcomes_of_all(harness)).items():
            assert has_reason(outcome, RetryReason.NO_ANSWER), call
            assert not isinstance(outcome, NotSent), call
    assert isinstance(await calls(harness)["send"](), Succeeded)


async def an_endless_answer_is_unknown(harness: HttpHarness) -> None:
    """An answer that begins and never ends takes no longer than the timeout."""
    with harness.server.stalling_answers():
        outcomes = await outcomes_of_all(harness, SHORT_TIMEOUT_SECONDS)
        for call, outcome in outcomes.items():
            assert has_reason(outcome, RetryReason.NO_ANSWER), call
    assert isinstance(await calls(harness)["send"](), Succeeded)


HTTP_CASES: Sequence[HttpCase] = (
    foreign_bodies_are_unknown,
    error_pages_count_by_status,
    retry_after_may_be_a_date,
    every_text_can_be_stored,
    redirects_are_not_followed,
    a_cut_answer_is_unknown,
    an_endless_answer_is_unknown,
)
"""The cases that every adapter over HTTP passes, in addition to the others."""
