"""A month of sales, fees, payouts, returns and settlements, reconciled day by day.

The test keeps its own account of what the provider and the bank have, and of what each
fault explains. The clearing report must say the same, to the minor unit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from random import Random

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_server.app.configuration import Settings
from tests.support.break_operator import state_of
from tests.support.platform import (
    ServedPlatform,
    fresh_database,
    serve_platform,
    unique_id,
)
from tests.support.reconciled_month import (
    CHARGE,
    DAYS,
    PAYOUT,
    Fault,
    Model,
    Movement,
    minor,
    new_model,
    new_month,
    run_month,
)
from tests.support.reconciliation import (
    breaks_of,
    clearing,
    require_explained,
    require_verified,
)


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPlatform]:
    """A platform that posts at once what reconciliation decides."""
    settings = Settings().replace(reconciliation__posting_interval=0.05)
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("month")) as databases,
        serve_platform(databases, settings) as served_platform,
    ):
        yield served_platform


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Months by seed: one for each test, and two if thorough."""
    if metafunc.function is test_a_month_without_faults_leaves_nothing_open:
        seeds = [1, 2]
    else:
        seeds = [3, 4]
    metafunc.parametrize("seed", seeds if metafunc.config.getoption("--thorough") else seeds[:1])


def test_a_month_without_faults_leaves_nothing_open(
    platform: ServedPlatform, client: Client, seed: int
) -> None:
    """Each clearing account has what the provider and the bank still hold, to the minor unit;
    nothing is a break, and nothing is unexplained.
    """
    seeded_random, model = Random(seed), new_model(client)
    movements = new_month(seeded_random)
    lines_of_day: dict[int, list[reconciliation_pb2.StatementLine]] = defaultdict(list)
    for movement in movements:
        lines_of_day[movement.reported].append(movement.line())
    transit_before = transit_balance(client)
    found = run_month(
        platform, client, seeded_random, model, movements, lines_of_day, has_balances=True
    )
    assert found == {}
    unreported = [item for item in movements if item.reported >= DAYS]
    provider_account = model.provider.account
    provider_has = model.statement_balance[provider_account, "EUR"]
    require_balance(
        client,
        provider_account,
        provider_has + sum(item.gross for item in unreported if item.line_type == CHARGE),
    )
    require_balance(
        client,
        model.provider.payouts_account,
        sum(item.gross for item in unreported if item.line_type != CHARGE),
    )
    require_balance(client, model.bank, model.statement_balance[model.bank, "EUR"])
    assert transit_balance(client) - transit_before == model.transit
    require_verified(client, platform.databases)


def transit_balance(client: Client) -> int:
    """What providers have paid to banks, and no bank has reported."""
    accounts = {item.account: item for item in require_explained(client)}
    found = accounts.get("banks/transit")
    return int(found.ledger_balance.replace(".", "")) if found else 0


def require_balance(client: Client, account: str, balance: int) -> None:
    """The ledger has this balance, and all of it is explained without breaks."""
    report = clearing(client, account)
    assert report.ledger_balance == format_amount(balance, "EUR")
    assert (report.unexplained, report.unposted, list(report.breaks)) == ("0.00", "0.00", [])


FAULTS = (
    "missing",
    "extra",
    "copied",
    "amount",
    "rounding",
    "currency",
    "sign",
    "fee",
    "late",
    "repeated",
    "corrected",
)
FAULTS_OF_PAYOUTS = tuple(name for name in FAULTS if name not in ("missing", "late"))
"""Nobody knows whether the provider or a bank reports a payout, so none is overdue."""


def plant(
    model: Model, name: str, movement: Movement, other: str
) -> Iterator[tuple[int, reconciliation_pb2.StatementLine]]:
    """The lines that the files have of a movement with a fault, each with its day. What the fault
    explains is added to the model.
    """
    day, account = movement.reported, model.provider.account
    entries = model.account_of(movement)
    gross, net = movement.gross, movement.gross - movement.fee
    fault: Fault
    match name:
        case "missing":
            model.explain(entries, gross)
            fault = Fault(BreakKind.MISSING_IN_FILE, -gross)
        case "late":
            yield day + 8, movement.line()
            fault = Fault(None)
        case "extra":
            yield day, movement.line()
            yield day, movement.line(reference=f"tx-{other}", charge_reference=other)
            model.explain(account, -net)
            unknown = BreakKind.CHARGE_UNKNOWN if movement.line_type == CHARGE else None
            fault = Fault(unknown or BreakKind.PAYOUT_UNKNOWN, gross, reference=other)
        case "copied":
            yield day, movement.line()
            yield day, movement.line()
            model.explain(account, -net)
            fault = Fault(BreakKind.DUPLICATE_LINE, gross)
        case "repeated":
            yield day, movement.line()
            yield day + 3, movement.line()
            fault = Fault(None)
        case "corrected":
            yield day, movement.line()
            yield day + 3, movement.line(gross=gross + 1_00)
            model.explain(account, -net - 1_00)
            fault = Fault(BreakKind.LINE_CORRECTED, gross + 1_00)
        case "amount":
            yield day, movement.line(gross=gross + 2)
            model.explain(entries, gross)
            model.explain(account, -net - 2)
            fault = Fault(BreakKind.AMOUNT_DIFFERS, 2)
        case "rounding":
            yield day, movement.line(gross=gross - 1)
            fault = Fault(BreakKind.ROUNDING, -1)
        case "sign":
            yield day, movement.line(gross=-gross)
            model.explain(entries, gross)
            model.explain(account, gross + movement.fee)
            fault = Fault(BreakKind.SIGN_DIFFERS, -2 * gross)
        case "fee":
            yield day, movement.line(fee=-1)
            model.explain(entries, gross)
            model.explain(account, -gross - 1)
            fault = Fault(BreakKind.FEE_DIFFERS, 0)
        case "currency":
            yield day, movement.line(currency="USD")
            model.explain(entries, gross)
            model.explain(account, -net, "USD")
            fault = Fault(BreakKind.CURRENCY_DIFFERS, gross, "USD")
        case _:
            raise AssertionError(name)
    model.faults[movement.reference] = fault


def test_each_fault_is_in_one_break(platform: ServedPlatform, client: Client, seed: int) -> None:
    """Lines are missing, too many, doubled, late, or have another amount, currency, sign or fee:
    each fault is one break of its kind. What each account has more than is expected and than the
    statements have is what the open breaks explain, to the minor unit. What is no exception ends
    by itself.
    """
    seeded_random, model = Random(seed), new_model(client)
    movements = new_month(seeded_random)
    faulty: dict[Movement, str] = {}
    for line_type, names in ((CHARGE, FAULTS), (PAYOUT, FAULTS_OF_PAYOUTS)):
        eligible = [
            item
            for item in movements
            if (item.line_type, len(item.amounts)) == (line_type, 1) and item.reported <= DAYS - 10
        ]
        faulty |= dict(zip(seeded_random.sample(eligible, len(names)), names, strict=True))
    lines_of_day: dict[int, list[reconciliation_pb2.StatementLine]] = defaultdict(list)
    for movement in movements:
        if movement not in faulty:
            lines_of_day[movement.reported].append(movement.line())
            continue
        for day, line in plant(model, faulty[movement], movement, unique_id("other")):
            lines_of_day[day].append(line)
            if (faulty[movement], day) == ("repeated", movement.reported + 3):
                model.statement_balance[model.provider.account, "EUR"] -= minor(line)
    found = run_month(
        platform, client, seeded_random, model, movements, lines_of_day, has_balances=False
    )
    expected = Counter(str(fault.kind) for fault in model.faults.values() if fault.kind)
    assert found == expected + Counter({"MISSING_IN_FILE": 1}), "the late line was missed first"
    listed = breaks_of(client, account=model.provider.account)
    by_name = {name_of(item, model): item for item in listed}
    assert len(by_name) == len(listed)
    for movement, name in faulty.items():
        fault = model.faults[movement.reference]
        item = by_name.pop(fault.reference or movement.reference, None)
        if name == "repeated":
            assert item is None
            continue
        assert item is not None, name
        is_open = fault.kind not in (None, BreakKind.ROUNDING)
        assert state_of(item) == ("OPEN" if is_open else "RESOLVED"), name
        if fault.kind is not None:
            assert item.kind == reconciliation_pb2.BreakKind.Value(f"BREAK_KIND_{fault.kind}")
            assert item.difference == format_amount(fault.difference, fault.currency), name
    assert by_name == {}
    unreported = [item for item in movements if item.reported >= DAYS]
    expected_amounts = Counter[str]()
    for movement in unreported:
        expected_amounts[model.account_of(movement)] += movement.gross
    for account, currency in {
        *model.statement_balance,
        *model.explained,
        (model.provider.payouts_account, "EUR"),
    }:
        report = clearing(client, account, currency)
        explained = model.explained[account, currency]
        assert sum(int(item.amount.amount.replace(".", "")) for item in report.breaks) == explained
        ledger_balance = int(report.ledger_balance.replace(".", ""))
        held = model.statement_balance[account, currency]
        held += expected_amounts[account] if currency == "EUR" else 0
        assert ledger_balance - held == explained, (account, currency)
        assert float(report.unexplained) == float(report.unposted) == 0
    require_verified(client, platform.databases)


def name_of(item: reconciliation_pb2.Break, model: Model) -> str:
    """The reference of the movement that a break is about: of its entry, else of its line."""
    if item.ledger_items:
        return item.ledger_items[0].external_reference
    return item.lines[0].line.reference.removeprefix("tx-")
