"""A month of sales, fees, payouts, returns and settlements, which is reconciled day by day.

The model keeps its own account of what the provider and the bank have, and of what each fault
explains.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from random import Random
from typing import Any

from tallystick import Client
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.ledger.posting_rules import (
    PostingKind,
    pay_in_lines,
    payout_lines,
    payout_return_lines,
)
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.timestamps import to_timestamp
from tests.support.platform import (
    ServedPlatform,
    unique_id,
)
from tests.support.reconciliation import (
    DAY,
    Provider,
    charge,
    kinds_of,
    reconcile,
    wait_until_posted,
)

DAYS = 30
CHARGE, PAYOUT, PAYOUT_RETURN = "CHARGE", "PAYOUT", "PAYOUT_RETURN"


@dataclass(frozen=True)
class Movement:
    """Money that moved at the provider: what the ledger has of it, and the line about it."""

    line_type: str
    reference: str
    source_ids: tuple[str, ...]
    """Of the entries in the ledger; a charge may be about several orders."""
    amounts: tuple[int, ...]
    """Of the entries: from the view of the provider's account."""
    fee: int
    booked: int
    """The day on which it moved, from 0."""
    reported: int
    """The day whose file has it."""
    currency: str = "EUR"

    @property
    def gross(self) -> int:
        return sum(self.amounts)

    def line(self, **changes: object) -> reconciliation_pb2.StatementLine:
        values = {
            "fee": self.fee,
            "line_type": self.line_type,
            "currency": self.currency,
            "reference": f"tx-{self.reference}",
            "booking_date": day_of(self.booked).isoformat(),
            **changes,
        }
        amount = values.pop("gross", self.gross)
        reference = values.pop("charge_reference", self.reference)
        return charge(amount, reference, **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a movement, and the break that must say so."""

    kind: BreakKind | None
    """None: it is no exception, or its break ends by itself."""
    difference: int = 0
    currency: str = "EUR"
    reference: str = ""
    """Of the line, if it has another than the movement."""


def day_of(number: int) -> date:
    return (DAY + timedelta(days=number)).date()


def time_of(number: int) -> datetime:
    return DAY + timedelta(days=number)


def new_month(seeded_random: Random) -> list[Movement]:
    """The movements of a month. The last ones are not reported in it."""
    movements = []
    for day in range(DAYS):
        for _ in range(seeded_random.randint(3, 9)):
            amounts = [seeded_random.randint(5_00, 500_00)]
            if seeded_random.random() < 0.15:
                amounts.append(seeded_random.randint(5_00, 500_00))
            fee = 30 + sum(amounts) * 2 // 100
            movements.append(new_movement(CHARGE, amounts, fee, day, seeded_random))
        for _ in range(seeded_random.randint(0, 3)):
            amounts = [-seeded_random.randint(5_00, 50_00)]
            fee = seeded_random.choice([0, 25])
            movements.append(new_movement(PAYOUT, amounts, fee, day, seeded_random))
        if seeded_random.random() < 0.2:
            amounts = [seeded_random.randint(5_00, 50_00)]
            movements.append(new_movement(PAYOUT_RETURN, amounts, 0, day, seeded_random))
    return movements


def new_movement(
    line_type: str, amounts: list[int], fee: int, day: int, seeded_random: Random
) -> Movement:
    source_ids = tuple(unique_id("s") for _ in amounts)
    reported = day + seeded_random.randint(0, 2)
    return Movement(line_type, unique_id("ref"), source_ids, tuple(amounts), fee, day, reported)


def book(client: Client, provider: Provider, movements: Iterable[Movement]) -> None:
    """Posts the movements to the ledger, as the platform's services do."""
    request = ledger_service_pb2.BatchPostRequest()
    for movement in movements:
        for source_id, amount in zip(movement.source_ids, movement.amounts, strict=True):
            name = provider.name
            kind, lines = {
                CHARGE: (PostingKind.PAY_IN, pay_in_lines(name, "b", "s", "EUR", amount, 0)),
                PAYOUT: (PostingKind.PAYOUT, payout_lines(name, "s", "EUR", -amount, 0)),
                PAYOUT_RETURN: (
                    PostingKind.PAYOUT_RETURN,
                    payout_return_lines(name, "s", "EUR", amount),
                ),
            }[movement.line_type]
            time = to_timestamp(time_of(movement.booked))
            add_posting(request, kind, source_id, "test", lines, movement.reference, time)
    if request.postings:
        results = client.ledger.BatchPost(request).results
        assert not any(result.HasField("error") for result in results)


@dataclass
class Model:
    """What the provider, its bank and a bank that pays sellers should have."""

    provider: Provider
    paying_provider: Provider
    """Its payouts are lines of the bank: one for the payouts of a day."""
    bank: str
    statement_balance: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The sums of all lines that files had, by account and currency."""
    transit: int = 0
    """What the provider has paid, and the bank has not reported."""
    explained: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What open breaks explain: entries less lines."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By the reference of a movement."""

    def send(
        self,
        client: Client,
        account: str,
        lines: list[reconciliation_pb2.StatementLine],
        day: int,
        *,
        has_balances: bool,
    ) -> reconciliation_pb2.StatementFile:
        """Reconciles the file of a day."""
        before = self.statement_balance[account, "EUR"]
        for line in lines:
            self.statement_balance[account, line.currency] += minor(line)
        balances: dict[str, Any] = {"closing_date": day_of(day).isoformat()}
        if has_balances:
            balances |= {
                "opening_balance": format_amount(before, "EUR"),
                "opening_date": day_of(day).isoformat(),
                "closing_balance": format_amount(self.statement_balance[account, "EUR"], "EUR"),
            }
        name = f"{account.replace('/', '-')}-{day}"
        return reconcile(client, account, lines, file_name=name, **balances).statement_file

    def explain(self, account: str, amount: int, currency: str = "EUR") -> None:
        self.explained[account, currency] += amount

    def account_of(self, movement: Movement) -> str:
        """The account on which the ledger has a movement before a statement has it."""
        is_charge = movement.line_type == CHARGE
        return self.provider.account if is_charge else self.provider.payouts_account


def minor(line: reconciliation_pb2.StatementLine) -> int:
    return int(line.amount.replace(".", ""))


def run_month(
    platform: ServedPlatform,
    client: Client,
    seeded_random: Random,
    model: Model,
    movements: list[Movement],
    lines_of_day: dict[int, list[reconciliation_pb2.StatementLine]],
    *,
    has_balances: bool,
) -> Counter[str]:
    """Books and reconciles day by day. Returns the breaks that were found, by kind."""
    provider, found = model.provider, Counter[str]()
    bank_lines: dict[int, list[reconciliation_pb2.StatementLine]] = defaultdict(list)
    in_transit = 0
    for day in range(DAYS):
        book(client, provider, [item for item in movements if item.booked == day])
        payouts = [seeded_random.randint(5_00, 90_00) for _ in range(seeded_random.randint(0, 4))]
        for amount in payouts:
            model.paying_provider.payout(amount, time=time_of(day))
        if payouts:
            paid = charge(
                -sum(payouts), line_type="BANK_ENTRY", booking_date=day_of(day + 1).isoformat()
            )
            bank_lines[day + 1].append(paid)
        lines = list(lines_of_day[day])
        if day % 7 == 6:
            fee = charge(
                -seeded_random.randint(1_00, 9_00),
                line_type="FEE",
                reference=unique_id("fee"),
                booking_date=day_of(day).isoformat(),
            )
            lines.append(fee)
        balance = model.statement_balance[provider.account, "EUR"] + sum(
            minor(line) for line in lines if line.currency == "EUR"
        )
        if day % 3 == 2 and balance > 0:
            amount, reference = balance * 9 // 10, unique_id("set")
            values: dict[str, Any] = {
                "reference": reference,
                "booking_date": day_of(day).isoformat(),
            }
            lines.append(charge(-amount, line_type="SETTLEMENT", **values))
            arrival = day + seeded_random.randint(1, 2)
            values["booking_date"] = day_of(arrival).isoformat()
            bank_lines[arrival].append(charge(amount, line_type="BANK_ENTRY", **values))
            in_transit += amount
        file = model.send(client, provider.account, lines, day, has_balances=has_balances)
        found.update(kinds_of(file))
        wait_until_posted(platform.databases)
        file = model.send(client, model.bank, bank_lines[day], day, has_balances=True)
        found.update(kinds_of(file))
        wait_until_posted(platform.databases)
        in_transit -= sum(minor(line) for line in bank_lines[day] if line.reference)
    model.transit = in_transit
    return found


def new_model(client: Client) -> Model:
    return Model(Provider(client), Provider(client), f"banks/{unique_id('b')}")
