"""Files whose lines name entries in any way: nothing is lost, nothing counts twice."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from random import Random

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.money import parse_signed_amount
from tests.support.platform import ServedPlatform
from tests.support.reconciliation import (
    DAY,
    Provider,
    breaks_of,
    charge,
    lines_of,
    reconcile,
    require_verified,
    wait_until_posted,
)

REFERENCES = ("", "r-1", "r-2", "r-3")
MISSING = reconciliation_pb2.BREAK_KIND_MISSING_IN_FILE


def book(provider: Provider, seeded_random: Random) -> list[str]:
    """Charges and payouts, some with the same references, amounts and dates; the orders' ids."""
    order_ids = [f"{provider.name}-{number}" for number in range(6)]
    for order_id in order_ids:
        if seeded_random.random() < 0.8:
            provider.pay_in(
                seeded_random.choice([10_00, 10_00, 5_00]),
                seeded_random.choice(REFERENCES),
                order_id,
                seeded_random.choice(["EUR", "EUR", "EUR", "USD"]),
                DAY + timedelta(days=seeded_random.randint(0, 15)),
            )
    for _ in range(seeded_random.randint(0, 2)):
        time = DAY + timedelta(days=seeded_random.randint(0, 15))
        provider.payout(seeded_random.choice([10_00, 5_00]), seeded_random.choice(REFERENCES), time)
    return order_ids


def random_lines(
    order_ids: list[str], seeded_random: Random
) -> list[reconciliation_pb2.StatementLine]:
    """Lines about them, and about others."""
    lines: list[reconciliation_pb2.StatementLine] = []
    days = [(DAY + timedelta(days=number)).date().isoformat() for number in range(0, 16, 3)]
    for number in range(seeded_random.randint(1, 7)):
        line_type = seeded_random.choice(["CHARGE"] * 5 + ["PAYOUT", "REFUND"])
        amount = seeded_random.choice([10_00, 10_00, 5_00, 15_00, 10_01])
        line = charge(
            amount if line_type == "CHARGE" else -amount,
            seeded_random.choice(REFERENCES),
            line_type=line_type,
            reference=seeded_random.choice(["", "", "r-1", f"tx-{number}"]),
            client_reference=seeded_random.choice(["", "", *(f"o-{id_}" for id_ in order_ids)]),
            fee=seeded_random.choice([0, 0, 30, 9_00]),
            currency=seeded_random.choice(["EUR", "EUR", "USD"]),
            booking_date=seeded_random.choice(["", *days]),
        )
        lines.append(line)
        if seeded_random.random() < 0.15:
            copy = reconciliation_pb2.StatementLine()
            copy.CopyFrom(line)
            lines.append(copy)
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Four seeds, and twelve if thorough."""
    metafunc.parametrize("seed", range(12 if metafunc.config.getoption("--thorough") else 4))


def test_any_lines_are_explained(
    platform: ServedPlatform, client: Client, provider: Provider, seed: int
) -> None:
    """Each line is matched, repeated or in one break, the breaks have the differences of their
    lines and entries, the report explains all accounts, and all invariants hold.
    """
    seeded_random = Random(seed)
    order_ids = book(provider, seeded_random)
    in_breaks = Counter[str]()
    for number in range(3):
        lines = random_lines(order_ids, seeded_random)
        file = reconcile(client, provider.account, lines, file_name=f"file-{number}").statement_file
        stored = lines_of(client, file.statement_file_id)
        assert len(stored) == len(lines)
        in_breaks.update(line.break_id for line in stored if line.break_id)
    for found in breaks_of(client, account=provider.account):
        assert in_breaks[found.break_id] == len(found.lines)
        if found.kind == MISSING:  # its lines may have come later
            continue
        currency = found.currency
        of_lines = sum(
            parse_signed_amount(item.line.amount, currency)
            + (parse_signed_amount(item.line.fee, currency) if item.line.fee else 0)
            for item in found.lines
            if item.line.currency == currency
        )
        of_entries = sum(
            parse_signed_amount(item.amount, currency)
            for item in found.ledger_items
            if item.currency == currency
        )
        difference = parse_signed_amount(found.difference, currency)
        assert found.changes[-1].action != "FOUND" or difference == of_lines - of_entries
    wait_until_posted(platform.databases)
    require_verified(client, platform.databases)
