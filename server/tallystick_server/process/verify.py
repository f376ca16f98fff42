"""`tallystick verify`: recomputes everything that stored rows can show, and names the first row that is wrong.

It reads each service with that service's read-only role and merges sorted streams here: no join crosses a wall.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tallystick_core.booking import Kind, Line, pay_in, unapplied
from tallystick_core.ledger import GENESIS, Posting, chain_hash, transaction_id
from tallystick_core.payment import FINAL, MOVES, Happening, Status
from tallystick_core.wallet import EntryKind
from tallystick_server.process.databases import Databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.migrate import first_line
from tallystick_storage.verification import Reader

_MOST_NAMED = 20

Rows = Iterator[Any]
Read = Callable[..., Rows]
"""Opens a query of `tallystick_storage.verification`."""


@dataclass
class Check:
    """One check: which invariants it proves, how many rows it looked at, and what is wrong, the first first."""

    name: str
    invariants: str
    rows: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> None:
        self.rows += 1

    def fail(self, row: str, what: str) -> None:
        """Names a row that is wrong."""
        if len(self.wrong) < _MOST_NAMED:
            self.wrong.append(f"{row}: {what}")


@dataclass(frozen=True)
class Report:
    """All checks."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        return not any(check.wrong for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [{"name": c.name, "invariants": c.invariants.split(), "rows": c.rows, "wrong": c.wrong} for c in self.checks]
        return {"passed": self.passed, "checks": checks}

    def as_text(self) -> str:
        lines = [f"{'ok   ' if not c.wrong else 'WRONG'} {c.name:<46} {c.rows:>9} rows   {c.invariants}" for c in self.checks]
        lines += [f"  {wrong}" for c in self.checks for wrong in c.wrong]
        return "\n".join([*lines, "verify: every check passed" if self.passed else "verify: the database is NOT as it must be"])


def verify(databases: Databases) -> Report:
    """Runs every check over the whole database. Raises Failure if it cannot be read."""
    read = Reader(databases.reader)
    try:
        return verify_by(read)
    except SQLAlchemyError as error:
        raise Failure(f"The database cannot be read: {first_line(error)}") from error
    finally:
        read.close()


def verify_by(read: Read) -> Report:
    """Runs every check over what `read` gives."""
    return Report([check(read) for check in CHECKS])


def check_book(read: Read) -> Check:
    """Walks the chain from the first transaction: hashes, sums, currencies, running balances, and the head at its end."""
    check = Check("the book recomputes from its first transaction", "L1 L2 L3 L6 L7")
    sequence, previous, latest = 0, GENESIS, None
    balances: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    for _, grouped in groupby(read("ledger.transactions"), key=lambda row: row.sequence):
        rows = list(grouped)
        first = rows[0]
        check.row()
        name = f"ledger.tx {transaction_id(first.sequence)}"
        if first.sequence != sequence + 1:
            check.fail(name, f"follows {sequence}, with a gap")
        if bytes(first.previous_hash) != previous:
            check.fail(name, "previous_hash is not the hash of the transaction before")
        if latest is not None and first.post_time < latest:
            check.fail(name, "was posted before the transaction before it")
        _check_transaction(check, name, rows, balances, counts, totals)
        sequence, previous, latest = first.sequence, bytes(first.hash), first.post_time
    for row in read("ledger.strays"):
        check.fail(f"ledger.entry {row.sequence}/{row.place}", "has no transaction")
    for head in read("ledger.heads"):
        if (head.sequence, bytes(head.hash)) != (sequence, previous):
            check.fail(f"ledger.head {head.book}", f"is at {head.sequence}, but the book ends at {sequence}")
    for currency, total in totals.items():
        if total:
            check.fail(f"ledger.entry in {currency}", f"all entries sum to {total}, not to zero")
    _check_accounts(check, read, balances, counts)
    return check


def _check_accounts(check: Check, read: Read, balances: Counter[int], counts: Counter[int]) -> None:
    for account in read("ledger.accounts"):
        name = f"ledger.account {account.account} {account.currency}"
        if int(account.balance) != balances[account.account_id]:
            check.fail(name, f"balance is {account.balance}, but its entries sum to {balances[account.account_id]}")
        if account.entry_count != counts[account.account_id]:
            check.fail(name, f"entry_count is {account.entry_count}, but it has {counts[account.account_id]} entries")


def _check_transaction(check: Check, name: str, rows: list[Any], balances: Counter[int], counts: Counter[int], totals: Counter[str]) -> None:
    first = rows[0]
    entries = [row for row in rows if row.place is not None]
    if len(entries) != first.n or len(entries) < 2:
        check.fail(name, f"has {len(entries)} entries, and says {first.n}")
    sums: Counter[str] = Counter()
    for row in entries:
        sums[row.currency] += row.amount
        totals[row.currency] += row.amount
        balances[row.account_id] += row.amount
        counts[row.account_id] += 1
        entry = f"ledger.entry {row.sequence}/{row.place}"
        if row.account is None or row.account_currency != row.currency:
            check.fail(entry, "is in another currency than its account")
        if int(row.balance_after) != balances[row.account_id]:
            check.fail(entry, f"balance_after is {row.balance_after}, but the entries so far sum to {balances[row.account_id]}")
    if any(sums.values()):
        check.fail(name, "its entries do not sum to zero")
    lines = tuple(Line(row.account or "", row.currency, row.amount) for row in entries)
    posting = Posting(Kind(first.kind), first.cause_id, first.caller, lines, first.description, reverses=first.reverses)
    if chain_hash(bytes(first.previous_hash), posting, first.sequence, first.effective_time, first.post_time) != bytes(first.hash):
        check.fail(name, "its hash is not that of its content")


def check_causes(read: Read) -> Check:
    """Each fact is booked once, and a reversal names what it reverses."""
    check = Check("each fact is booked once", "L5 L8")
    for row in read("ledger.repeated"):
        check.fail(f"ledger.tx {row.kind} {row.cause_id}", f"is booked {row.times} times")
    for sequence, rows in groupby(read("ledger.transactions"), key=lambda row: row.sequence):
        first = next(iter(rows))
        check.row()
        if (first.kind == Kind.REVERSAL) != (first.reverses is not None) or (first.reverses is not None and first.reverses >= sequence):
            check.fail(f"ledger.tx {transaction_id(sequence)}", "is a reversal of nothing, or no reversal of what it names")
    return check


def check_wallets(read: Read) -> Check:
    """Every wallet is what its entries made of it, holds the sum of its open holds, and waits for the sum of its pending credits."""
    check = Check("each wallet is what its entries made of it", "W2 W3 P4")
    held = {(row.seller_account, row.currency): int(row.held) for row in read("wallet.holds")}
    pending = _pending(check, read)
    entries = groupby(read("wallet.entries"), key=lambda row: (row.seller_account, row.currency))
    for key, wallet, grouped in _merged(read("wallet.wallets"), lambda row: (row.seller_account, row.currency), entries, lambda pair: pair[0]):
        check.row()
        name = f"wallet.wallet {key[0]} {key[1]}"
        if wallet is None:
            check.fail(name, "has entries and no wallet")
            continue
        last = _check_entries(check, key, list(grouped[1]) if grouped is not None else [])
        parts = (int(wallet.pending), int(wallet.available), int(wallet.held), int(wallet.owed))
        if last != (wallet.version, *parts):
            check.fail(name, f"is at version {wallet.version} with {parts}, but its last entry says {last}")
        if min(parts) < 0 or (parts[3] and parts[1]) or int(wallet.balance) != sum(parts[:3]) - parts[3]:
            check.fail(name, "balance is not pending + available + held - owed, or a part is wrong")
        if parts[2] != held.get(key, 0):
            check.fail(name, f"holds {parts[2]}, but its open holds sum to {held.get(key, 0)}")
        if parts[0] != pending[key]:
            check.fail(name, f"has {parts[0]} pending, but its pending credits sum to {pending[key]}")
    return check


def _pending(check: Check, read: Read) -> Counter[tuple[str, str]]:
    """What each wallet's pending credits sum to."""
    pending: Counter[tuple[str, str]] = Counter()
    for row in read("wallet.pending"):
        pending[row.seller_account, row.currency] += row.amount
        if row.credited != row.amount or row.released:
            check.fail(f"wallet.pending_credit {row.cause}", "is pending, but it was released" if row.released else "is not what was credited")
        elif row.overdue:
            check.fail(f"wallet.pending_credit {row.cause}", "is pending, though its time came long ago")
    return pending


_SIGN = {EntryKind.CREDIT: 1, EntryKind.DEBIT: -1, EntryKind.HOLD_CAPTURED: -1}


def _check_entries(check: Check, key: tuple[str, str], entries: list[Any]) -> tuple[int, int, int, int, int]:
    """Checks that numbers have no gap and each entry moves the balance by its amount; returns the last version and parts."""
    last, balance = (0, 0, 0, 0, 0), 0
    for row in entries:
        name = f"wallet.wallet_entry {key[0]} {key[1]} {row.number}"
        if row.number != last[0] + 1:
            check.fail(name, f"follows {last[0]}, with a gap")
        parts = (int(row.pending_after), int(row.available_after), int(row.held_after), int(row.owed_after))
        moved = sum(parts[:3]) - parts[3] - balance
        if moved != _SIGN.get(row.kind, 0) * row.amount:
            check.fail(name, f"moves the balance by {moved}, which is not its {row.kind} of {row.amount}")
        balance += moved
        last = (row.number, *parts)
    return last


def check_wallets_against_ledger(read: Read) -> Check:
    """A seller's wallet and ledger account agree, but for orders that are being settled at this moment."""
    check = Check("wallets agree with the ledger", "W1")
    in_flight = {(o.seller_account, o.currency) for o in read("payment.orders") if o.status == Status.SUCCESS and not o.ledger_updated}

    def by_seller(row: Any) -> tuple[str, str]:
        return (row.seller_account, row.currency)

    for key, wallet, account in _merged(read("wallet.wallets"), by_seller, read("ledger.sellers"), by_seller):
        check.row()
        in_wallet = int(wallet.balance) if wallet is not None else 0
        in_ledger = int(account.balance) if account is not None else 0
        if in_wallet != in_ledger and key not in in_flight:
            check.fail(f"wallet.wallet {key[0]} {key[1]}", f"balance is {in_wallet}, but sellers/{key[0]} in the ledger has {in_ledger}")
    return check


def check_orders(read: Read) -> Check:
    """Every order's history is contiguous, moves along the table, and ends in what the order is."""
    check = Check("each order's history leads to what it is", "P3 P4 P9")
    allowed = {(before, after) for (before, why), after in MOVES.items() if before != after or why is Happening.SETTLED}
    history = groupby(read("payment.history"), key=lambda row: row.payment_order_id)
    for key, order, grouped in _merged(read("payment.orders"), lambda row: row.payment_order_id, history, lambda pair: pair[0]):
        check.row()
        name = f"payment.payment_order {key}"
        moves = list(grouped[1]) if grouped is not None else []
        if order is None or not moves:
            check.fail(name, "has history and no order" if order is None else "has no history")
            continue
        before, noted = None, 0
        for number, row in enumerate(moves, 1):
            stage = (row.wallet_updated and row.ledger_updated) + row.delivered  # settled, then delivered: each once, in versions of their own
            steady = before == row.to_status
            legal = row.to_status == Status.NOT_STARTED if before is None else (before, row.to_status) in allowed and stage == noted + steady
            if row.version != number or row.from_status != before or not legal:
                check.fail(f"payment.order_history {key} {row.version}", f"{row.from_status} to {row.to_status} does not follow {before}")
            before, noted = row.to_status, stage
        last = moves[-1]
        if (last.version, last.to_status, last.wallet_updated, last.ledger_updated, last.delivered) != (
            order.version, order.status, order.wallet_updated, order.ledger_updated, order.delivery_confirmed_time is not None,
        ):  # fmt: skip
            check.fail(name, f"is {order.status} at version {order.version}, but its history ends in {last.to_status} at {last.version}")
        if order.seller_amount + order.platform_fee != order.amount or order.platform_fee < 0 or order.seller_amount <= 0:
            check.fail(name, "seller's share and fee do not sum to the amount")
    return check


def check_charges(read: Read) -> Check:
    """Every charge demands the sum of its orders, at most one attempt of it succeeds, and SUCCESS has a charge."""
    check = Check("each charge is the sum of its orders", "P1 P2")
    succeeded: set[tuple[str, str]] = set()
    for charge, grouped in groupby(read("payment.attempts"), key=lambda row: row.demand_id):
        attempts = list(grouped)
        name = f"payment.attempt {charge}"
        check.row()
        if [a.number for a in attempts] != list(range(1, len(attempts) + 1)):
            check.fail(name, "its attempts are not numbered 1, 2, …")
        alive = [a for a in attempts if a.outcome != "DECLINED"]
        if len(alive) > 1:
            check.fail(name, "has more than one attempt that is open or has succeeded")
        for a in attempts:
            if (a.orders_amount, a.low, a.high) != (a.amount, a.currency, a.currency):
                check.fail(f"{name} {a.number}", f"demands {a.amount} {a.currency}, but its orders sum to {a.orders_amount} {a.low}")
            if a.outcome == "SUCCEEDED":
                succeeded.add((charge, a.provider_reference))
                if not _has_its_place(a):
                    check.fail(f"{name} {a.number}", "took money that is no SUCCESS order's share and no unapplied charge")
    for order in read("payment.orders"):
        if order.status == Status.SUCCESS and (order.charge_id, order.provider_reference) not in succeeded:
            check.fail(f"payment.payment_order {order.payment_order_id}", "is SUCCESS without an attempt that succeeded")
    return check


def _has_its_place(attempt: Any) -> bool:
    """Whether what a successful attempt took is its orders', or unapplied, or still to be judged."""
    charged = (attempt.moved_amount, attempt.moved_currency)
    if charged == (attempt.amount, attempt.currency) and attempt.orders in (attempt.succeeded, attempt.open):
        return True
    return attempt.open == attempt.orders or charged == (attempt.unapplied_amount, attempt.unapplied_currency)


def check_due(read: Read) -> Check:
    """Whatever has not come to its end is due, or set aside for a person: nothing is forgotten."""
    check = Check("what is open is due, or waits for a person", "P5")
    for row in read("payment.due"):
        check.row()
        name = f"payment.due {row.charge_id}"
        if not row.listed:
            check.fail(name, f"is missing, but order {row.open_order} is open")
        elif row.open_order is None:
            check.fail(name, "is due, but all its orders are at their end")
        elif row.due == row.set_aside:
            check.fail(name, "has an open dead letter and is due" if row.due else "is not due and has no open dead letter")
    return check


def check_unapplied(read: Read) -> Check:
    """Money that fits no order is booked once, as what it is; nothing else is booked so."""
    check = Check("unapplied charges are in the ledger", "P2")
    postings = groupby(read("ledger.unapplied"), key=lambda row: row.cause_id)
    for key, charge, posted in _merged(read("payment.unapplied"), lambda row: row.unapplied_charge_id, _listed(postings), lambda pair: pair[0]):
        check.row()
        name = f"payment.unapplied_charge {key}"
        if charge is None:
            check.fail(name, "is booked, but there is no such charge")
        elif charge.ledger_updated or posted:
            lines = tuple(Line(row.account, row.currency, row.amount) for row in posted[1]) if posted else ()
            if lines != unapplied(charge.provider, charge.currency, charge.amount):
                check.fail(name, "its ledger transaction is not exactly one with its entries")
    return check


def check_deliveries(read: Read) -> Check:
    """What was delivered is available, or the wallet is still to be told."""
    check = Check("what was delivered is released", "P5")
    pending = read("wallet.pending_pay_ins")
    for key, order, waits in _merged(read("payment.delivered"), lambda row: row.payment_order_id, pending, lambda row: row.payment_order_id):
        check.row()
        if order is not None and waits is not None and not order.waiting:
            check.fail(f"wallet.pending_credit PAY_IN/{key}", "is pending, but its order was delivered")
    return check


def check_checkouts(read: Read) -> Check:
    """is_payment_done holds exactly where every order is SUCCESS and settled, and the counters say so."""
    check = Check("is_payment_done says what its orders say", "P6")
    orders = groupby(read("payment.orders_by_checkout"), key=lambda row: row.checkout_id)
    for key, checkout, grouped in _merged(read("payment.checkouts"), lambda row: row.checkout_id, orders, lambda pair: pair[0]):
        check.row()
        name = f"payment.checkout {key}"
        members = list(grouped[1]) if grouped is not None else []
        if checkout is None or not members:
            check.fail(name, "has orders and no checkout" if checkout is None else "has no orders")
            continue
        unpaid = sum(not (o.status == Status.SUCCESS and o.settled) for o in members)
        open_ = sum(not (o.status in FINAL and (o.settled or o.status == Status.FAILED)) for o in members)
        if (checkout.order_count, checkout.unpaid_orders, checkout.open_orders) != (len(members), unpaid, open_):
            check.fail(name, f"counts {checkout.unpaid_orders} unpaid and {checkout.open_orders} open orders; there are {unpaid} and {open_}")
        if checkout.is_payment_done != (unpaid == 0):
            check.fail(name, "is_payment_done is not what its orders say")
    return check


def check_settlement(read: Read) -> Check:
    """A settled order has exactly one credit and one transaction, of its values; what is credited or posted belongs to an order."""
    check = Check("flags, wallet and ledger tell the same", "P7")
    credits_ = groupby(read("wallet.pay_ins"), key=lambda row: row.payment_order_id)
    postings = groupby(read("ledger.pay_ins"), key=lambda row: row.cause_id)
    with_credit = _merged(read("payment.orders"), lambda row: row.payment_order_id, _listed(credits_), lambda pair: pair[0])
    for key, pair, posted in _merged(with_credit, lambda row: row[0], _listed(postings), lambda pair: pair[0]):
        check.row()
        order, credited = (pair[1], pair[2]) if pair is not None else (None, None)
        name = f"payment.payment_order {key}"
        if order is None or (order.status != Status.SUCCESS and (credited or posted)):
            check.fail(name, "was credited or posted, but there is no such order that succeeded")
            continue
        if order.wallet_updated or credited:
            _check_credit(check, name, order, credited[1] if credited else [])
        if order.ledger_updated or posted:
            _check_posting(check, name, order, posted[1] if posted else [])
    return check


def _check_credit(check: Check, name: str, order: Any, rows: list[Any]) -> None:
    wanted = [(order.seller_account, order.currency, order.seller_amount)]
    if [(row.seller_account, row.currency, row.amount) for row in rows] != wanted:
        check.fail(name, f"its wallet credits are not exactly one of {order.seller_amount} {order.currency} for {order.seller_account}")


def _check_posting(check: Check, name: str, order: Any, rows: list[Any]) -> None:
    wanted = pay_in(order.provider, order.buyer_account, order.seller_account, order.currency, order.amount, order.platform_fee)
    if tuple(Line(row.account, row.currency, row.amount) for row in rows) != wanted:
        check.fail(name, "its ledger transaction is not exactly one with the entries of its pay-in")


def check_events(read: Read) -> Check:
    """The stream has no gap, and every change of an order or wallet is in it or still in the outbox.

    The changes are read before the outbox, and the outbox before the events: what left the outbox meanwhile is among the events.
    """
    check = Check("each change has its event", "E1 E2")
    (head,) = read("event.head")  # before the events, which only grow
    expected = 0
    for row in read("event.events"):
        expected += 1
        check.row()
        if row.cursor != expected:
            check.fail(f"event.event {row.cursor}", f"follows {expected - 1}, with a gap")
            expected = row.cursor
    if expected < head.cursor:
        check.fail("event.head", f"is at {head.cursor}, but the events end at {expected}")
    for service, name, prefix in (("payment", "payment.history", "paymentOrders/"), ("wallet", "wallet.entries", "wallets/")):
        changes = _opened(_changes(service, read(name)))
        waiting = {(row.aggregate_id, row.version) for row in read(f"{service}.outbox")}
        told = ((row.aggregate_id, row.aggregate_version) for row in read("event.by_aggregate", prefix=prefix))
        for key, change, event in _merged(changes, lambda pair: pair, told, lambda pair: pair):
            if change is not None and event is None and key not in waiting:
                check.fail(f"{service} {key[0]} version {key[1]}", "has no event")
    return check


def _opened(rows: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The same rows, asked for now: what they show is as of this moment, though they are read later."""
    first = next(rows, None)
    return iter(()) if first is None else chain([first], rows)


def _changes(service: str, rows: Rows) -> Iterator[tuple[str, int]]:
    if service == "payment":
        return ((f"paymentOrders/{row.payment_order_id}", row.version) for row in rows)
    return ((f"wallets/{row.seller_account}/{row.currency}", row.number) for row in rows)


def _listed(groups: Iterable[tuple[Any, Iterable[Any]]]) -> Iterator[tuple[Any, list[Any]]]:
    return ((key, list(rows)) for key, rows in groups)


def _merged(
    left: Iterable[Any], left_key: Callable[[Any], Any], right: Iterable[Any], right_key: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Full outer merge of two streams that are sorted by their keys: key, left item or None, right item or None."""
    lefts = ((left_key(item), 0, item) for item in left)
    rights = ((right_key(item), 1, item) for item in right)
    held: tuple[Any, int, Any] | None = None
    for key, side, item in heapq.merge(lefts, rights, key=lambda one: one[:2]):
        if held is not None and (held[0] != key or side == 0):
            yield held[0], held[2], None
            held = None
        if side == 0:
            held = (key, side, item)
        elif held is not None:
            yield key, held[2], item
            held = None
        else:
            yield key, None, item
    if held is not None:
        yield held[0], held[2], None


CHECKS: list[Callable[[Read], Check]] = [
    check_book,
    check_causes,
    check_wallets,
    check_wallets_against_ledger,
    check_orders,
    check_charges,
    check_due,
    check_unapplied,
    check_deliveries,
    check_checkouts,
    check_settlement,
    check_events,
]
