"""The HTTP rules of the contract, and the routes made of them."""

from __future__ import annotations

import pytest

from tallystick._settings import DEFAULT_DEADLINE, DEFAULT_DEADLINES
from tallystick_core.access import Role
from tallystick_server.app.services import SERVICES
from tallystick_server.app.wiring import implementation_of
from tallystick_server.http.binding import RequestBinder
from tallystick_server.http.errors import HttpError
from tallystick_server.http.http_rules import HttpRule, http_rules
from tallystick_server.http.message_encoder import encoder
from tallystick_server.http.routing import Route, Router
from tallystick_server.http.transcoder import DEFAULT_TIMEOUT, DEFAULT_TIMEOUTS

RULES = http_rules(spec.descriptor for spec in SERVICES)


def test_each_call_of_a_person_or_a_team_has_a_route() -> None:
    """The calls that a team, an operator or an auditor may make have a rule, and no other has."""
    expected = {
        f"{spec.descriptor.full_name}.{name}"
        for spec in SERVICES
        for name, roles in implementation_of(spec).access.items()
        if roles - {Role.SERVICE}
    }
    assert {rule.method.full_name for rule in RULES} == expected


def test_no_two_routes_collide() -> None:
    """The router accepts all rules, and finds each call by a path made of its own rule."""

    async def unused(_request: object) -> None:
        raise AssertionError

    routes = [Route(rule.http_method, rule.path, unused) for rule in RULES]  # type: ignore[arg-type]
    router = Router(routes)
    for route in routes:
        path = route.path
        for name in route.variables:
            path = path.replace(f"{{{name}}}", f"a%2F{name}")
        found, values = router.find(route.method, path)
        assert found is route
        assert values == {name: f"a/{name}" for name in route.variables}
    with pytest.raises(ValueError, match="two routes"):
        Router([*routes, Route("GET", "/v1/payments/{other}", unused)])  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.method.name)
def test_each_rule_can_be_bound(rule: HttpRule) -> None:
    """Every message has a JSON form, and a read has no body, unless it reads a list of requests."""
    RequestBinder(rule)
    encoder(rule.method.output_type)
    is_get = rule.is_read and not rule.method.name.startswith("BatchGet")
    assert is_get == (rule.http_method == "GET")
    assert rule.has_body == (not is_get)
    assert rule.path.startswith("/v1/")


def test_each_stream_can_be_resumed() -> None:
    """Last-Event-ID resumes every stream."""
    cursors = {rule.method.name: rule.cursor for rule in RULES if rule.method.server_streaming}
    assert cursors == {
        "WatchPayment": ("after_version", "payment", "version"),
        "WatchPayout": ("after_version", "payout", "version"),
        "StreamEntries": ("after_sequence", "transaction", "sequence"),
        "StreamEvents": ("after_cursor", "event", "cursor"),
    }


def test_the_idempotency_key_is_the_id_of_the_call() -> None:
    """The field that an Idempotency-Key must equal is an id of the request, or `request_id`."""
    fields = {rule.method.name: rule.key_field for rule in RULES if not rule.is_read}
    assert fields["CreatePayment"] == "checkout_id"
    assert fields["CancelPayment"] == "checkout_id"
    assert fields["RetryPayout"] == "request_id"
    assert {name for name, field in fields.items() if not field} == {
        "SetPayoutSchedule",
        "SetWalletPolicy",
        "RetryDeadLetters",
        "CloseDeadLetters",
        "OpenBreak",
        "MatchBreaks",
        "SetBreakRule",
    }


def test_the_timeouts_are_those_of_the_sdk() -> None:
    """A call over HTTP has the SDK's default deadline."""
    assert dict(DEFAULT_TIMEOUTS) == DEFAULT_DEADLINES
    assert DEFAULT_TIMEOUT == DEFAULT_DEADLINE


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/a/x", "/a/{id}"),
        ("HEAD", "/a/x", "/a/{id}"),
        ("GET", "/a/fixed", "/a/fixed"),
        ("POST", "/a/x:go", "/a/{id}:go"),
        ("GET", "/a/x:other", "/a/{id}"),
        ("GET", "/a/x%3Ago", "/a/{id}"),
        ("GET", "/a:go", "/a:go"),
        ("POST", "/a/fixed", 405),
        ("GET", "/a/x:go", 405),
        ("GET", "/a/", 404),
        ("GET", "/a/x/", 404),
        ("GET", "/a", 404),
        ("GET", "", 404),
        ("GET", "/A/x", 404),
        ("GET", "/a/%ff", 400),
    ],
)
def test_routing(method: str, path: str, expected: object) -> None:
    """A fixed segment goes before a variable, a verb before an id with a colon."""

    async def unused(_request: object) -> None:
        raise AssertionError

    paths = [("GET", "/a/{id}"), ("GET", "/a/fixed"), ("POST", "/a/{id}:go"), ("GET", "/a:go")]
    router = Router([Route(name, template, unused) for name, template in paths])  # type: ignore[arg-type]
    if isinstance(expected, str):
        assert router.find(method, path)[0].path == expected
        return
    with pytest.raises(HttpError) as error:
        router.find(method, path)
    statuses = {"NOT_FOUND": 404, "FIELD_INVALID": 400, "METHOD_UNKNOWN": 405}
    assert statuses[error.value.error.reason] == expected
