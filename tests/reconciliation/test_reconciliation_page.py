"""The page for finance has every kind of break, with the class and the limit of its rule."""

from __future__ import annotations

import re

from tallystick_core.reconciliation.breaks import BUILT_IN_RULES, KINDS_OF_BALANCES
from tests.support.platform import ROOT

_PAGE = (ROOT / "docs" / "operations" / "reconciliation.md").read_text()
_ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]]
    for row in re.findall(r"^\| [A-Z_]+ \| [A-Z]+ \|.*\|.*\|$", _PAGE, re.MULTILINE)
]


def test_the_page_has_each_kind_with_its_class() -> None:
    """In the order of the rules, with a cause and what to do."""
    assert [(kind, break_class) for kind, break_class, *_ in _ROWS] == [
        (rule.kind, rule.break_class) for rule in BUILT_IN_RULES
    ]
    assert all(cause and remedy for *_, cause, remedy in _ROWS)


def test_the_page_has_the_limits_of_the_rules() -> None:
    """In the cause of a kind with a limit."""
    causes = {kind: cause for kind, _, cause, _ in _ROWS}
    for rule in BUILT_IN_RULES:
        if rule.limit:
            assert re.search(rf"\b{rule.limit} (minor unit|days|percent)", causes[rule.kind])


def test_the_page_names_the_kinds_that_can_only_be_accepted() -> None:
    assert {kind for kind, *_ in _ROWS[-6:]} == KINDS_OF_BALANCES
    assert "resolves the last six kinds" in _PAGE
