"""ISO 20022 camt.053, bank to customer statement, versions 02 to 14."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime

from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    LineType,
    OpenStatement,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
    is_statement_date,
)
from tallystick_server.reconciliation.formats.text_file import TextFile, UnexpectedValue
from tallystick_server.reconciliation.formats.values import (
    read_count,
    read_currency,
    read_decimal,
    short_reference,
    short_text,
)
from tallystick_server.reconciliation.formats.xml_file import XmlElement, read_elements

MAX_TRANSACTIONS = 100_000
"""Of one entry. The details of a larger batch are left out: it is one line."""

_STREAMED = frozenset({"Stmt", "Ntry", "TxDtls", "Rpt", "Ntfctn", "Document"})
_VERSION = re.compile(r"camt\.053\.001\.(\d{2})\Z", re.ASCII)
_OTHER_MESSAGES = {
    "BkToCstmrAcctRpt": "camt.052, a report of a day that has not ended",
    "BkToCstmrDbtCdtNtfctn": "camt.054, an advice of single bookings without balances",
}
_BALANCE_TYPE = "Tp/CdOrPrtry/Cd"
_OPENING_BALANCES = ("OPBD", "PRCD", "ITBD")
_SIGNS = {"CRDT": 1, "DBIT": -1}
_STATUSES = {"BOOK", "PDNG", "INFO", "FUTR"}
_AMOUNT_DETAILS = ("AmtDtls/InstdAmt/Amt", "AmtDtls/CntrValAmt/Amt", "AmtDtls/TxAmt/Amt")


def matches(head: bytes) -> bool:
    """Whether a file that begins so is a camt message of an account."""
    text = head.replace(b"\0", b"")
    return b"camt.05" in text or b"BkToCstmr" in text


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a file."""
    reader: _StatementReader | None = None
    statement_count = 0
    for element in read_elements(file, _STREAMED):
        if element.name == "Document":
            if statement_count == 0:
                for child in element.children:
                    _check_message(file, child)
                file.fail(element.line, element.column, "the file must have a statement (Stmt)")
            continue
        if reader is None:
            _check_message(file, element)
            reader = _StatementReader(file, _statement_of(file, element), element)
            yield reader.start
        if element.name == "TxDtls":
            reader.add_transaction(element)
        elif element.name == "Ntry":
            yield from reader.read_entry(element)
        else:
            yield reader.end(element)
            reader = None
            statement_count += 1
    if statement_count == 0:
        file.fail(1, 1, "the file must be a camt.053 statement (Document/BkToCstmrStmt/Stmt)")


def _statement_of(file: TextFile, element: XmlElement) -> XmlElement:
    """The Stmt that the element is, or is a part of."""
    statement: XmlElement | None = element
    while statement is not None and statement.name != "Stmt":
        statement = statement.parent
    if statement is None:
        file.fail(element.line, element.column, "an entry must be in a statement (Stmt)")
    return statement


def _check_message(file: TextFile, element: XmlElement) -> None:
    """Rejects other messages and versions."""
    root = element
    while root.parent is not None and root.parent.name != "Document":
        root = root.parent
    for name, title in _OTHER_MESSAGES.items():
        if root.name.startswith(name):
            expected = f"this is {title}; a camt.053 statement is expected"
            file.fail(root.line, root.column, expected)
    if not root.name.startswith("BkToCstmrStmt"):
        file.fail(root.line, root.column, "a statement must be in Document/BkToCstmrStmt")
    version = _VERSION.search(root.namespace)
    if root.namespace and (version is None or not 2 <= int(version[1]) <= 14):
        file.fail(root.line, root.column, "the version must be camt.053.001.02 to camt.053.001.14")


class _StatementReader:
    """One statement: what precedes its entries, then its entries, then its sums."""

    def __init__(self, file: TextFile, statement: XmlElement, first: XmlElement) -> None:
        self._file = file
        self._balances = statement.find_all("Bal")
        self.start = self._read_start(statement, first)
        self._currency = self.start.currency
        self._statement = OpenStatement(self.start)
        self._transactions: list[StatementLine] = []
        self._transaction_count = 0
        self._entry_count = {1: 0, -1: 0}
        self._entry_sum = {1: 0, -1: 0}

    def add_transaction(self, details: XmlElement) -> None:
        """Keeps a transaction until its entry is complete."""
        self._transaction_count += 1
        if self._transaction_count > MAX_TRANSACTIONS:
            self._transactions.clear()
            return
        entry = details.parent.parent if details.parent is not None else None
        if entry is None or entry.name != "Ntry":
            self._file.fail(details.line, details.column, "TxDtls must be in Ntry/NtryDtls")
        self._transactions.append(self._read_transaction(entry, details))

    def read_entry(self, entry: XmlElement) -> Iterator[StatementLine]:
        """The lines of an entry."""
        transactions, self._transactions = self._transactions, []
        transaction_count, self._transaction_count = self._transaction_count, 0
        line = self._read_entry(entry)
        sign = 1 if self._sign(entry) > 0 else -1
        self._entry_count[sign] += 1
        self._entry_sum[sign] += abs(line.amount)
        if self._status(entry) != "BOOK":
            return
        for item in _lines(line, transactions, transaction_count):
            yield self._statement.add(item)

    def end(self, statement: XmlElement) -> StatementEnd:
        """The end of the statement, whose control sums are checked."""
        self._check_summary(statement)
        balance = self._find_balance("CLBD", self._currency)
        interim = [item for item in self._balances if item.text_of(_BALANCE_TYPE) == "ITBD"]
        if balance is None and len(interim) > 1:  # a page that is not the last
            balance = self._read_balance(interim[-1], self._currency)
        amount, day = balance or (None, None)
        return self._statement.end(statement.line, amount, day)

    def _read_start(self, statement: XmlElement, first: XmlElement) -> StatementStart:
        """`first`: its first entry or transaction, or itself."""
        account = statement.text_of("Acct/Id/IBAN", "Acct/Id/Othr/Id", "Acct/Id/PrtryAcct/Id")
        if not account:
            self._file.fail(statement.line, statement.column, "a statement must name its account")
        amount = statement.find("Bal/Amt", "Ntry/Amt") or first.find("Amt")
        place = statement.find("Acct/Ccy") or amount or statement
        currency = statement.text_of("Acct/Ccy") or place.attributes.get("Ccy", "")
        with self._file.position(place.line, place.column):
            read_currency(currency)
        balances = (self._find_balance(kind, currency) for kind in _OPENING_BALANCES)
        amount_minor, day = next(filter(None, balances), (None, None))
        return StatementStart(
            statement.line,
            account,
            currency,
            statement_id=short_reference(statement.text_of("Id")),
            sequence=short_reference(statement.text_of("ElctrncSeqNb", "LglSeqNb")),
            opening_balance=amount_minor,
            opening_date=day,
        )

    def _find_balance(self, kind: str, currency: str) -> tuple[int, date | None] | None:
        """The amount and the date of the first balance of this kind."""
        for balance in self._balances:
            if balance.text_of(_BALANCE_TYPE) == kind:
                return self._read_balance(balance, currency)
        return None

    def _read_balance(self, balance: XmlElement, currency: str) -> tuple[int, date | None]:
        amount = self._amount(balance, currency) * self._sign(balance)
        return amount, self._date(balance, "Dt")

    def _read_entry(self, entry: XmlElement) -> StatementLine:
        line = self._read_line(entry, entry)
        return replace(
            line,
            amount=self._amount(entry, self._currency) * self._sign(entry),
            reference=short_reference(entry.text_of("AcctSvcrRef", "NtryRef")),
            text=short_text(entry.text_of("AddtlNtryInf")),
        )

    def _read_transaction(self, entry: XmlElement, details: XmlElement) -> StatementLine:
        """A transaction. Its amount is 0 if it has none in the currency of the account."""
        sign = self._sign(details) if details.find("CdtDbtInd") else self._sign(entry)
        line = self._read_line(entry, details)
        own_amount = next(
            (
                found
                for path in ("Amt", "AmtDtls/TxAmt/Amt")
                for found in details.find_all(path)
                if found.attributes.get("Ccy") == self._currency
            ),
            None,
        )
        party = "Dbtr" if sign > 0 else "Cdtr"
        return replace(
            line,
            line_number=details.line,
            amount=0
            if own_amount is None
            else self._read_amount(own_amount, self._currency) * sign,
            reference=short_reference(details.text_of("Refs/AcctSvcrRef", "Refs/TxId")),
            client_reference=short_reference(details.text_of("Refs/EndToEndId")),
            text=short_text(
                details.text_of(f"RltdPties/{party}/Nm", f"RltdPties/{party}/Pty/Nm"),
                *(part.text for part in details.find_all("RmtInf/Ustrd")),
                *(part.text for part in details.find_all("RmtInf/Strd/CdtrRefInf/Ref")),
                details.text_of("AddtlTxInf"),
            ),
        )

    def _read_line(self, entry: XmlElement, details: XmlElement) -> StatementLine:
        """What an entry and a transaction have in common."""
        original, original_currency = self._original_amount(details)
        sign = self._sign(details) if details.find("CdtDbtInd") else self._sign(entry)
        batch = entry.text_of("NtryDtls/Btch/PmtInfId", "NtryDtls/Btch/MsgId")
        return StatementLine(
            entry.line,
            LineType.BANK_ENTRY,
            _code(entry, details),
            0,
            self._currency,
            fee=self._included_charges(details),
            booking_date=self._date(entry, "BookgDt"),
            value_date=self._date(entry, "ValDt"),
            booking_time=self._time(entry, "BookgDt"),
            settlement_reference=short_reference(batch),
            original_amount=None if original is None else original * sign,
            original_currency=original_currency,
        )

    def _original_amount(self, details: XmlElement) -> tuple[int | None, str]:
        for path in _AMOUNT_DETAILS:
            for amount in details.find_all(path):
                other = amount.attributes.get("Ccy", "")
                if other != self._currency:
                    with self._file.position(amount.line, amount.column):
                        read_currency(other)
                    return self._read_amount(amount, other), other
        return None, ""

    def _included_charges(self, details: XmlElement) -> int:
        """The charges that the amount already includes."""
        charges = 0
        for record in details.find_all("Chrgs/Rcrd") + details.find_all("Chrgs"):
            amount = record.find("Amt")
            if amount is None or record.text_of("ChrgInclInd") not in {"true", "1"}:
                continue
            if amount.attributes.get("Ccy") == self._currency:
                sign = self._sign(record) if record.find("CdtDbtInd") else -1
                charges -= sign * self._read_amount(amount, self._currency)
        return charges

    def _check_summary(self, statement: XmlElement) -> None:
        """Compares the control sums of TxsSummry, as far as there are any."""
        summary = statement.find("TxsSummry")
        if summary is None:
            return
        counts, sums = self._entry_count, self._entry_sum
        totals: Sequence[tuple[str, int, int]] = (
            ("TtlNtries", counts[1] + counts[-1], sums[1] + sums[-1]),
            ("TtlCdtNtries", counts[1], sums[1]),
            ("TtlDbtNtries", counts[-1], sums[-1]),
        )
        for name, count, total in totals:
            self._compare(summary.find(f"{name}/NbOfNtries"), count)
            self._compare(summary.find(f"{name}/Sum"), total)

    def _compare(self, stated: XmlElement | None, actual: int) -> None:
        if stated is None:
            return
        currency, text = self._currency, stated.text.strip().removeprefix("-")
        with self._file.position(stated.line, stated.column):
            if stated.name == "NbOfNtries" and read_count(text) != actual:
                expected = f"the stated number of entries must be that in the file, {actual}"
                raise UnexpectedValue(expected)
            if stated.name == "Sum" and read_decimal(text, currency) != actual:
                total = f"{format_amount(actual, currency)} {currency}"
                raise UnexpectedValue(f"the stated sum must be that of the entries, {total}")

    def _amount(self, parent: XmlElement, currency: str) -> int:
        amount = parent.find("Amt")
        if amount is None:
            self._file.fail(parent.line, parent.column, f"{parent.name} must have an amount (Amt)")
        if amount.attributes.get("Ccy") != currency:
            expected = f"the amount must be in {currency}, the currency of the account"
            self._file.fail(amount.line, amount.column, expected)
        return self._read_amount(amount, currency)

    def _read_amount(self, amount: XmlElement, currency: str) -> int:
        with self._file.position(amount.line, amount.column):
            return read_decimal(amount.text.strip(), currency)

    def _sign(self, parent: XmlElement) -> int:
        """1 if the account's balance grows. A reversal has the sign of what it does itself."""
        sign = _SIGNS.get(parent.text_of("CdtDbtInd"))
        if sign is None:
            expected = f"CdtDbtInd of {parent.name} must be CRDT or DBIT"
            self._file.fail(parent.line, parent.column, expected)
        return sign

    def _status(self, entry: XmlElement) -> str:
        status = entry.text_of("Sts/Cd", "Sts")
        if status not in _STATUSES:
            expected = "the status (Sts) must be BOOK, PDNG, INFO or FUTR"
            self._file.fail(entry.line, entry.column, expected)
        return status

    def _date(self, parent: XmlElement, name: str) -> date | None:
        element = parent.find(f"{name}/Dt", f"{name}/DtTm")
        if element is None:
            return None
        with self._file.position(element.line, element.column):
            expected = f"a date must be a day such as 2026-11-30, {DATE_RANGE}"
            try:
                day = date.fromisoformat(element.text.strip()[:10])
            except ValueError:
                raise UnexpectedValue(expected) from None
            if not is_statement_date(day):
                raise UnexpectedValue(expected)
            return day

    def _time(self, parent: XmlElement, name: str) -> datetime | None:
        """In UTC; None without a time or without its time zone."""
        element = parent.find(f"{name}/DtTm")
        if element is None:
            return None
        with self._file.position(element.line, element.column):
            # fromisoformat takes at most 6 decimals of a second
            text = re.sub(r"(\.\d{6})\d+", r"\1", element.text.strip(), flags=re.ASCII)
            try:
                time = datetime.fromisoformat(text)
                return None if time.tzinfo is None else time.astimezone(UTC)
            except (ValueError, OverflowError):
                raise UnexpectedValue("a time must be such as 2026-11-30T12:00:00Z") from None


def _code(entry: XmlElement, details: XmlElement) -> str:
    """The bank transaction code, ISO's or the bank's own, and RVSL for a reversal."""
    for element in (details, entry):
        domain = "BkTxCd/Domn"
        iso = (f"{domain}/Cd", f"{domain}/Fmly/Cd", f"{domain}/Fmly/SubFmlyCd")
        parts = [text for path in iso if (text := element.text_of(path))]
        code = "/".join(parts) or element.text_of("BkTxCd/Prtry/Cd")
        if code:
            break
    reversal = " RVSL" if entry.text_of("RvslInd") in {"true", "1"} else ""
    return short_reference(code) + reversal


def _lines(
    entry: StatementLine, transactions: list[StatementLine], transaction_count: int
) -> list[StatementLine]:
    """A line for each of several transactions if their amounts make that of the entry, before or
    after their charges; else one line for the entry.
    """
    if transaction_count == 1 and transactions:
        (transaction,) = transactions
        return [
            replace(
                transaction,
                line_number=entry.line_number,
                amount=entry.amount,
                fee=transaction.fee or entry.fee,
                reference=transaction.reference or entry.reference,
                original_amount=transaction.original_amount or entry.original_amount,
                original_currency=transaction.original_currency or entry.original_currency,
                text=short_text(transaction.text, entry.text),
            )
        ]
    gross = sum(transaction.amount for transaction in transactions)
    charges = sum(transaction.fee for transaction in transactions)
    if len(transactions) < 2 or not all(transaction.amount for transaction in transactions):
        return [entry]
    batch = entry.settlement_reference or entry.reference
    if gross == entry.amount:
        return [replace(line, settlement_reference=batch) for line in transactions]
    if gross - charges == entry.amount:
        return [
            replace(line, amount=line.amount - line.fee, settlement_reference=batch)
            for line in transactions
        ]
    return [entry]
