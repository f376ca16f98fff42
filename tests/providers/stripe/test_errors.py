"""Every error of Stripe is one outcome, by one table."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import stripe

from tallystick_core.provider.outcome import FailureReason, NotSent, RetryReason, Unknown
from tallystick_server.providers.stripe import errors
from tallystick_server.providers.stripe.client import Answer as ParsedAnswer
from tallystick_server.providers.stripe.errors import (
    RULES,
    Effect,
    ForeignAnswer,
    NoAnswer,
    NotConnected,
    Rejection,
    to_result,
)
from tests.providers.stripe.scripted_stripe import Answer, ScriptedTransport, api_of, error

Result = Rejection | NotSent | Unknown

RETRY_REASONS = {
    Effect.OUR_ERROR: RetryReason.REJECTED,
    Effect.UNAUTHORIZED: RetryReason.UNAUTHORIZED,
    Effect.THROTTLED: RetryReason.THROTTLED,
    Effect.SERVER_ERROR: RetryReason.SERVER_ERROR,
}


def result_of(answer: Answer | Exception) -> Result:
    """What a request is answered, through Stripe's library."""
    transport = ScriptedTransport()
    transport.script("GET /v1/payment_intents/pi_1", answer)

    async def call() -> Any:
        api = api_of(transport)
        return await api.call(
            api.v1.payment_intents.retrieve_async("pi_1"), lambda parsed: parsed.body
        )

    result: Result = asyncio.run(call())
    return result


def cases() -> Iterator[Any]:
    """Each row of the table, with each of its codes and parameters."""
    for index, rule in enumerate(RULES):
        for status in (rule.statuses[0], rule.statuses[-1]):
            for code in sorted(rule.codes) or [""]:
                for param in sorted(rule.params) or [""]:
                    yield pytest.param(
                        rule, status, code, param, id=f"{index} {status} {code} {param}"
                    )


@pytest.mark.parametrize(("rule", "status", "code", "param"), list(cases()))
def test_each_row_has_its_outcome(rule: errors.Rule, status: int, code: str, param: str) -> None:
    """An error that a row describes has the outcome of the first row that matches, and never that
    of another; an outcome of a retry names the request and has the time that Stripe asks for.
    """
    type_ = rule.type or ("card_error" if status == 402 else "invalid_request_error")
    expected = next(row for row in RULES if row.matches(status, type_, code, param))
    result = result_of(
        error(
            status,
            type_,
            code,
            param=param,
            headers={"Retry-After": "7", "Request-Id": "req_1"},
        )
    )
    if isinstance(result, Rejection):
        assert result.effect is expected.effect
        assert result.code == code
        assert expected.effect not in RETRY_REASONS
        return
    assert isinstance(result, Unknown)
    assert result.retry_reason is RETRY_REASONS[expected.effect]
    assert result.retry_after == 7
    assert "req_1" in result.detail


def test_every_row_is_used() -> None:
    """No row is hidden by those before it: each is the first for some error."""
    first_rows = {
        next(index for index, row in enumerate(RULES) if row.matches(status, type_, code, param))
        for rule in RULES
        for status in rule.statuses
        for type_ in (rule.type or "invalid_request_error", "card_error")
        for code in rule.codes or {""}
        for param in rule.params or {""}
    }
    assert first_rows == set(range(len(RULES)))


@pytest.mark.parametrize(
    ("status", "type_", "code", "effect"),
    [
        (402, "card_error", "card_declined", Effect.DECLINED),
        (400, "invalid_request_error", "amount_too_small", Effect.REJECTED),
        (400, "invalid_request_error", "parameter_unknown", Effect.OUR_ERROR),
        (400, "invalid_request_error", "resource_missing", Effect.OUR_ERROR),
        (404, "invalid_request_error", "resource_missing", Effect.NOT_FOUND),
        (404, "invalid_request_error", "", Effect.OUR_ERROR),
        (403, "invalid_request_error", "account_invalid", Effect.NO_ACCESS),
        (403, "invalid_request_error", "payouts_not_allowed", Effect.UNAUTHORIZED),
        (403, "invalid_request_error", "insufficient_funds", Effect.UNAUTHORIZED),
        (400, "invalid_request_error", "balance_insufficient", Effect.REJECTED),
        (400, "invalid_request_error", "payment_intent_unexpected_state", Effect.WRONG_STATE),
        (400, "idempotency_error", "", Effect.OUR_ERROR),
        (409, "idempotency_error", "idempotency_key_in_use", Effect.THROTTLED),
        (409, "invalid_request_error", "", Effect.THROTTLED),
        (429, "invalid_request_error", "lock_timeout", Effect.THROTTLED),
        (429, "api_error", "", Effect.THROTTLED),
        (401, "invalid_request_error", "", Effect.UNAUTHORIZED),
        (401, "invalid_request_error", "api_key_expired", Effect.UNAUTHORIZED),
        (403, "invalid_request_error", "", Effect.UNAUTHORIZED),
        (500, "api_error", "", Effect.SERVER_ERROR),
        (503, "api_error", "", Effect.SERVER_ERROR),
        (500, "card_error", "card_declined", Effect.SERVER_ERROR),
    ],
)
def test_known_errors_have_their_effects(
    status: int, type_: str, code: str, effect: Effect
) -> None:
    """The errors of Stripe's documentation."""
    result = result_of(error(status, type_, code))
    if isinstance(result, Rejection):
        assert result.effect is effect
    else:
        assert isinstance(result, Unknown)
        assert result.retry_reason is RETRY_REASONS[effect]


def test_the_decline_code_is_more_precise_than_the_code() -> None:
    """A rejection carries the code of the buyer's bank, and the PaymentIntent."""
    intent = {"id": "pi_1"}
    answer = error(
        402,
        "card_error",
        "card_declined",
        decline_code="lost_card",
        payment_intent=intent,
        headers={"Idempotent-Replayed": "true"},
    )
    expected = Rejection(Effect.DECLINED, "lost_card", "", intent, is_replayed=True)
    assert result_of(answer) == expected


def test_an_unstorable_code_is_no_decline() -> None:
    """A code that the database would reject makes the answer unreadable."""
    for code in ("a\0b", "x" * 300, "\u202e", 7):
        result = result_of(error(402, "card_error", decline_code=code))
        assert isinstance(result, Unknown), code


def exception_classes() -> list[type[stripe.StripeError]]:
    """Every exception of Stripe's library, and of the adapter."""
    classes: set[type[stripe.StripeError]] = set()
    queue: list[type[stripe.StripeError]] = [stripe.StripeError]
    while queue:
        class_ = queue.pop()
        classes.add(class_)
        queue += class_.__subclasses__()
    return sorted(classes, key=lambda class_: f"{class_.__module__}.{class_.__name__}")


@pytest.mark.parametrize("class_", exception_classes(), ids=lambda class_: class_.__name__)
def test_every_exception_without_an_answer_is_unknown(class_: type[stripe.StripeError]) -> None:
    """An exception of any class that has no answer of Stripe says nothing, except that nothing was
    sent.
    """
    required = [
        name
        for name, parameter in inspect.signature(class_.__init__).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and name != "self"
    ]
    values: dict[str, Any] = dict.fromkeys(required, "") | (
        {"status": 200, "headers": {}} if class_ is ForeignAnswer else {}
    )
    result = to_result(class_(**values))
    if class_ is NotConnected:
        assert isinstance(result, NotSent)
    else:
        assert result in (
            Unknown("no answer from Stripe"),
            Unknown("status 200 without a usable answer"),
        )


def test_the_library_raises_only_exceptions_that_the_table_covers() -> None:
    """Stripe's library makes an exception of every status; each has an outcome."""
    for status in range(300, 600):
        for body in ({"error": {"type": "new_error"}}, {"error": "invalid_grant"}, {}):
            result = result_of(Answer(status, body))
            assert isinstance(result, Rejection | Unknown), (status, body)
            if isinstance(result, Rejection):
                assert (status, body) == (402, {"error": {"type": "new_error"}})


def test_a_lost_connection_is_unknown_and_a_missing_one_is_not_sent() -> None:
    """Only a connection that was never made is the certainty that nothing was sent."""
    assert isinstance(result_of(NotConnected("no server")), NotSent)
    assert result_of(NoAnswer("reset")) == Unknown("no answer from Stripe")


def test_codes_are_codes_of_stripe() -> None:
    """Each code of the table is one that Stripe's library names, or its guide to transfers."""
    annotation = stripe.PaymentIntent.LastPaymentError.__annotations__["code"]
    codes = {code for type_ in get_args(annotation) for code in get_args(type_)}
    named = {code for rule in RULES for code in rule.codes}
    assert named - codes == {"insufficient_capabilities_for_transfer"}


def test_decline_codes_have_their_reasons() -> None:
    """Codes of declined cards become reasons; one that is not listed is a plain decline."""
    assert errors.decline_reason("insufficient_funds") is FailureReason.INSUFFICIENT_FUNDS
    assert errors.decline_reason("expired_card") is FailureReason.PAYMENT_METHOD_INVALID
    assert (
        errors.decline_reason("payment_intent_authentication_failure")
        is FailureReason.AUTHENTICATION_FAILED
    )
    assert errors.decline_reason("do_not_honor") is FailureReason.PROVIDER_DECLINED
    assert set(errors.DECLINE_REASONS.values()) == {
        FailureReason.INSUFFICIENT_FUNDS,
        FailureReason.PAYMENT_METHOD_INVALID,
        FailureReason.AUTHENTICATION_FAILED,
        FailureReason.BUYER_CANCELLED,
    }


def test_an_answer_without_an_object_is_unknown() -> None:
    """What the parser of a call rejects is Unknown, never an exception."""
    transport = ScriptedTransport()
    transport.script("GET /v1/payment_intents/pi_1", {"object": "payment_intent"})

    def parse(answer: ParsedAnswer) -> str:
        return str(answer.body["id"])

    async def call() -> Any:
        api = api_of(transport)
        return await api.call(api.v1.payment_intents.retrieve_async("pi_1"), parse)

    assert asyncio.run(call()) == Unknown("an answer that cannot be read: KeyError")
