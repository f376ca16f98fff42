"""Rules as data: who deals with which breaks, and what may differ."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.reconciliation.breaks import BUILT_IN_RULES, MAX_LIMITS, BreakKind
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.errors import expect_error_reason
from tests.support.platform import is_replayed
from tests.support.reconciliation import (
    DAY,
    Provider,
    breaks_of,
    charge,
    entries_of,
    kinds_of,
    only_break,
    posted_clearing,
    reconcile,
    transactions_of,
)


def rules(client: Client) -> dict[str, reconciliation_pb2.BreakRule]:
    """The present rules by kind."""
    listed = client.reconciliation.ListBreakRules(pb.ListBreakRulesRequest()).rules
    return {
        reconciliation_pb2.BreakKind.Name(rule.kind).removeprefix("BREAK_KIND_"): rule
        for rule in listed
    }


def request_of(
    kind: str, break_class: str = "FINANCE", limit: int = 0, reason: str = "decided"
) -> pb.SetBreakRuleRequest:
    return pb.SetBreakRuleRequest(
        kind=reconciliation_pb2.BreakKind.Value(f"BREAK_KIND_{kind}"),
        break_class=reconciliation_pb2.BreakClass.Value(f"BREAK_CLASS_{break_class}"),
        limit=limit,
        reason=reason,
    )


def set_rule(client: Client, *arguments: object) -> reconciliation_pb2.BreakRule:
    request = request_of(*arguments)  # type: ignore[arg-type]
    return client.reconciliation.SetBreakRule(request).rule


@pytest.fixture(autouse=True)
def built_in_rules(client: Client) -> Iterator[None]:
    """Sets the rules back to what is built in."""
    yield
    present = rules(client)
    for rule in BUILT_IN_RULES:
        found = present[rule.kind]
        name = reconciliation_pb2.BreakClass.Name(found.break_class)
        if (name, found.limit) != (f"BREAK_CLASS_{rule.break_class}", rule.limit):
            set_rule(client, rule.kind, rule.break_class, rule.limit, "as built in")


def test_each_kind_has_a_rule(client: Client) -> None:
    """Those that nobody has set are version 1, of the platform."""
    listed = rules(client)
    assert set(listed) == set(BreakKind)
    rule = listed["CHARGE_UNKNOWN"]
    assert (rule.version, rule.caller, rule.HasField("create_time")) == (1, "tallystick", False)


def test_a_rule_has_versions_with_an_author(client: Client) -> None:
    """The next version has its author, reason and time; a repeat has no effect."""
    before = rules(client)["ROUNDING"].version
    rule = set_rule(client, "ROUNDING", "FINANCE", 7, "rounding of shares")
    assert (rule.version, rule.limit, rule.reason) == (before + 1, 7, "rounding of shares")
    assert rule.caller
    assert rule.HasField("create_time")
    assert rules(client)["ROUNDING"] == rule
    repeat = request_of("ROUNDING", "FINANCE", 7, "rounding of shares")
    assert is_replayed(client.reconciliation.SetBreakRule, repeat)
    assert rules(client)["ROUNDING"] == rule
    assert set_rule(client, "ROUNDING", "FINANCE", 7, "another reason").version == before + 2


@pytest.mark.parametrize("kind", BreakKind)
def test_limits_are_checked(client: Client, kind: BreakKind) -> None:
    """Only kinds with a limit have one, and none is so large that it switches a check off."""
    for limit in (-1, MAX_LIMITS.get(kind, 0) + 1):
        assert expect_error_reason(set_rule, client, kind, "FINANCE", limit) == "FIELD_INVALID"
    assert expect_error_reason(set_rule, client, kind, "FINANCE", 0, " ") == "FIELD_REQUIRED"


def test_breaks_have_the_class_of_their_time(client: Client, provider: Provider) -> None:
    """A rule counts for breaks that are found later; the earlier ones keep class and version."""
    reconcile(client, provider.account, [charge(1_00, "ch-8")])
    version = set_rule(client, "CHARGE_UNKNOWN", "FINANCE").version
    reconcile(client, provider.account, [charge(2_00, "ch-9")])
    found = breaks_of(client, account=provider.account)
    assert [(item.break_class, item.rule_version) for item in found] == [
        (reconciliation_pb2.BREAK_CLASS_INVESTIGATION, version - 1),
        (reconciliation_pb2.BREAK_CLASS_FINANCE, version),
    ]


@pytest.mark.parametrize(
    ("kind", "limit", "amount", "values", "expected"),
    [
        ("ROUNDING", 0, 10_01, {}, "AMOUNT_DIFFERS"),
        ("ROUNDING", 5, 10_05, {}, "ROUNDING"),
        ("ROUNDING", 5, 10_06, {}, "AMOUNT_DIFFERS"),
        ("FEE_DIFFERS", 5, 10_00, {"fee": 50}, ""),
        ("FEE_DIFFERS", 5, 10_00, {"fee": 51}, "FEE_DIFFERS"),
        ("FEE_DIFFERS", 0, 10_00, {"fee": 1}, "FEE_DIFFERS"),
        ("DATE_DIFFERS", 0, 10_00, {"booking_date": "2026-03-11"}, "DATE_DIFFERS"),
        ("DATE_DIFFERS", 1, 10_00, {"booking_date": "2026-03-11"}, ""),
        ("DATE_DIFFERS", 1, 10_00, {"booking_date": "2026-03-09"}, ""),
    ],
)
def test_limits_are_what_may_differ(
    client: Client,
    provider: Provider,
    kind: str,
    limit: int,
    amount: int,
    values: dict[str, object],
    expected: str,
) -> None:
    """The ledger has 10.00 of the tenth of March."""
    set_rule(client, kind, "FINANCE", limit)
    provider.pay_in(10_00, "ch-1")
    file = reconcile(client, provider.account, [charge(amount, "ch-1", **values)]).statement_file  # type: ignore[arg-type]
    assert kinds_of(file) == ({expected: 1} if expected else {})


@pytest.mark.parametrize(("limit", "missing"), [(3, 2), (4, 1), (5, 0)])
def test_the_rule_decides_when_an_entry_is_missing(
    client: Client, provider: Provider, limit: int, missing: int
) -> None:
    """Entries of the tenth and of the eleventh of March; the file reaches to the fourteenth."""
    set_rule(client, "MISSING_IN_FILE", "INVESTIGATION", limit)
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(10_00, "ch-2", time=DAY + timedelta(days=1))
    file = reconcile(client, provider.account, [], closing_date="2026-03-14").statement_file
    assert kinds_of(file) == ({"MISSING_IN_FILE": missing} if missing else {})


def test_a_rounding_is_adjusted_by_the_platform(client: Client, provider: Provider) -> None:
    """At once, with its fee; the ledger has the rule as the reason."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [charge(10_01, "ch-1", fee=30)])
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("9.71", "0.00")
    found = only_break(client, provider.account)
    assert (state_of(found), resolution_of(found)) == ("RESOLVED", "ADJUST")
    transaction = transactions_of(client, provider.account)[-1]
    assert entries_of(transaction) == {
        provider.account: "-0.29",
        f"psp/{provider.name}/fees": "0.30",
        "platform/adjustments": "-0.01",
    }
    assert transaction.caller == "tallystick"
    assert transaction.description == f"rule ROUNDING {found.rule_version}"
    operator = Operator(client)
    operator.reopen(found.break_id)
    operator.resolve(found.break_id, "WRITE_OFF")
    assert posted_clearing(client, provider.account).ledger_balance == "9.71"


def test_a_rounding_of_finance_is_not_adjusted(client: Client, provider: Provider) -> None:
    """The class of the rule decides who resolves it."""
    set_rule(client, "ROUNDING", "FINANCE", 1)
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [charge(10_01, "ch-1")])
    assert state_of(only_break(client, provider.account)) == "OPEN"


def test_only_what_the_platform_can_resolve_is_automatic(client: Client) -> None:
    """Nobody would deal with other breaks."""
    request = request_of("AMOUNT_DIFFERS", "AUTOMATIC")
    reason = expect_error_reason(lambda: client.reconciliation.SetBreakRule(request))
    assert reason == "FIELD_INVALID"
    assert rules(client)["AMOUNT_DIFFERS"].version == 1
