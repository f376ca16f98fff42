"""The page of the Stripe look-alike names what the code has."""

from __future__ import annotations

import re

from tallystick_sandbox.rules import Fault
from tallystick_sandbox.stripe.routes import ROUTES
from tallystick_sandbox.stripe.tokens import STRIPE_METHODS, account_behavior
from tests.support.platform import ROOT

_PAGE = (ROOT / "docs" / "concepts" / "stripe-look-alike.md").read_text()


def test_every_path_is_documented() -> None:
    """The page has the methods and paths of all routes, and no others."""
    documented = re.findall(r"`((?:GET|POST) /[^`]+)`", _PAGE)
    assert sorted(documented) == sorted(f"{route.method} {route.path}" for route in ROUTES)


def test_every_token_is_documented() -> None:
    """The page has all faults, and no others; the payment methods that it names exist."""
    table = _PAGE.partition("## Tokens")[2].partition("## Control surface")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    documented = [name.partition(":")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(documented) == sorted({*Fault, "ok"} - {Fault.NONE})
    methods = set(re.findall(r"`(pm_card_\w+)`", table))
    assert len(methods) >= 9
    assert methods <= STRIPE_METHODS.keys()
    for account in re.findall(r"`(acct_[a-z]\S*)`", table):
        assert account_behavior(account) is not None, account
