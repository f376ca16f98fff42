"""The rules that classify breaks, as they are now, and their next versions."""

from __future__ import annotations

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.reconciliation.breaks import (
    BUILT_IN_RULES,
    KINDS_WITH_LIMIT,
    KINDS_WITH_REMEDY,
    MAX_LIMITS,
    BreakClass,
    BreakKind,
    BreakRule,
    Rules,
)
from tallystick_server.reconciliation import convert
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.sql import Connection


def load_rules(connection: Connection) -> Rules:
    """The present version of each rule."""
    rules = {rule.kind: rule for rule in BUILT_IN_RULES}
    for row in store.list_rules(connection):
        kind = BreakKind(row.kind)
        rules[kind] = BreakRule(kind, row.version, BreakClass(row.break_class), row.rule_limit)
    return rules


def set_rule(
    connection: Connection,
    kind: BreakKind,
    break_class: BreakClass,
    limit: int,
    caller: str,
    reason: str,
) -> tuple[reconciliation_pb2.BreakRule, bool]:
    """The next version of a rule, and whether it is the last one again. Raises CONFLICT."""
    stored = {row.kind: row for row in store.list_rules(connection)}
    last = stored.get(kind)
    version = last.version if last else 1
    if last and (last.break_class, last.rule_limit, last.caller, last.reason) == (
        break_class,
        limit,
        caller,
        reason,
    ):
        return convert.rule(BreakRule(kind, version, break_class, limit), last), True
    if not store.insert_rule(connection, kind, version + 1, break_class, limit, caller, reason):
        raise ApiError(
            ErrorReason.CONFLICT, "The rule was set at the same time; retry.", retry_after=1.0
        )
    row = next(row for row in store.list_rules(connection) if row.kind == kind)
    return convert.rule(BreakRule(kind, version + 1, break_class, limit), row), False


def list_rules(connection: Connection) -> list[reconciliation_pb2.BreakRule]:
    """The present version of each rule, by kind, with its author."""
    stored = {row.kind: row for row in store.list_rules(connection)}
    rules = []
    for built_in in BUILT_IN_RULES:
        row = stored.get(built_in.kind)
        rule = (
            BreakRule(built_in.kind, row.version, BreakClass(row.break_class), row.rule_limit)
            if row
            else built_in
        )
        rules.append(convert.rule(rule, row))
    return rules


def parse_class(number: int, kind: BreakKind) -> BreakClass:
    """The class of a rule. Raises FIELD_REQUIRED, FIELD_INVALID."""
    break_class = BreakClass(convert.CLASSES.parse(number, "break_class"))
    if break_class is BreakClass.AUTOMATIC and kind not in KINDS_WITH_REMEDY:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"break_class must be FINANCE or INVESTIGATION for {kind}: the platform cannot resolve "
            "such breaks.",
            field="break_class",
        )
    return break_class


def parse_limit(limit: int, kind: BreakKind) -> int:
    """The limit of a rule. Raises FIELD_INVALID."""
    if kind in KINDS_WITH_LIMIT:
        if 0 <= limit <= MAX_LIMITS[kind]:
            return limit
        expected = f"from 0 to {MAX_LIMITS[kind]} for {kind}"
    else:
        if limit == 0:
            return 0
        expected = f"0 for {kind}"
    raise ApiError(ErrorReason.FIELD_INVALID, f"limit must be {expected}.", field="limit")
