"""Statements that tests make, written in each bank format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import StatementItem
from tallystick_server.reconciliation.formats.registry import FORMATS, read_statements
from tallystick_server.reconciliation.formats.text_file import TextFile

BANK_FORMATS = {item.name: item for item in FORMATS if item.name in {"camt053", "mt940", "bai2"}}


@dataclass(frozen=True)
class Entry:
    """A booking of a bank account, in minor units."""

    amount: int
    booking_date: date
    value_date: date
    reference: str = ""
    client_reference: str = ""
    text: str = ""


@dataclass(frozen=True)
class Statement:
    """A statement that balances."""

    account: str
    currency: str
    opening_balance: int
    day: date
    entries: tuple[Entry, ...]

    @property
    def closing_balance(self) -> int:
        return self.opening_balance + sum(entry.amount for entry in self.entries)


def read_bytes(
    folder: Path, format_name: str, content: bytes, *, accepts_difference: bool = False
) -> list[StatementItem]:
    """All items of a file with this content."""
    path = folder / "statement"
    path.write_bytes(content)
    bank_format = BANK_FORMATS[format_name]
    return list(read_statements(TextFile(path), bank_format, accepts_difference=accepts_difference))


def write_camt053(statements: tuple[Statement, ...], version: str = "08") -> str:
    """A camt.053 message."""
    parts = "".join(_camt_statement(statement) for statement in statements)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.{version}">\n'
        f"<BkToCstmrStmt>\n<GrpHdr><MsgId>M</MsgId></GrpHdr>\n{parts}</BkToCstmrStmt>\n</Document>"
    )


def _camt_amount(amount: int, currency: str) -> str:
    sign = "CRDT" if amount >= 0 else "DBIT"
    text = format_amount(abs(amount), currency)
    return f'<Amt Ccy="{currency}">{text}</Amt><CdtDbtInd>{sign}</CdtDbtInd>'


def camt_balance(kind: str, amount: int, currency: str, day: date) -> str:
    """A balance of a camt.053 statement."""
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{kind}</Cd></CdOrPrtry></Tp>"
        f"{_camt_amount(amount, currency)}<Dt><Dt>{day}</Dt></Dt></Bal>\n"
    )


def _camt_statement(statement: Statement) -> str:
    currency = statement.currency
    credit_amounts = [entry.amount for entry in statement.entries if entry.amount >= 0]
    debit_amounts = [-entry.amount for entry in statement.entries if entry.amount < 0]
    entries = "".join(
        f"<Ntry>{_camt_amount(entry.amount, currency)}<Sts><Cd>BOOK</Cd></Sts>"
        f"<BookgDt><Dt>{entry.booking_date}</Dt></BookgDt>"
        f"<ValDt><Dt>{entry.value_date}</Dt></ValDt><NtryDtls><TxDtls><Refs>"
        f"<AcctSvcrRef>{escape(entry.reference)}</AcctSvcrRef>"
        f"<EndToEndId>{escape(entry.client_reference)}</EndToEndId></Refs>"
        f"<RmtInf><Ustrd>{escape(entry.text)}</Ustrd></RmtInf></TxDtls></NtryDtls></Ntry>\n"
        for entry in statement.entries
    )
    return (
        f"<Stmt><Id>S</Id><Acct><Id><IBAN>{statement.account}</IBAN></Id>"
        f"<Ccy>{currency}</Ccy></Acct>\n"
        + camt_balance("OPBD", statement.opening_balance, currency, statement.day)
        + camt_balance("CLBD", statement.closing_balance, currency, statement.day)
        + f"<TxsSummry><TtlNtries><NbOfNtries>{len(statement.entries)}</NbOfNtries></TtlNtries>"
        f"<TtlCdtNtries><NbOfNtries>{len(credit_amounts)}</NbOfNtries>"
        f"<Sum>{format_amount(sum(credit_amounts), currency)}</Sum></TtlCdtNtries>"
        f"<TtlDbtNtries><NbOfNtries>{len(debit_amounts)}</NbOfNtries>"
        f"<Sum>{format_amount(sum(debit_amounts), currency)}</Sum></TtlDbtNtries></TxsSummry>\n"
        f"{entries}</Stmt>\n"
    )


def write_mt940(statements: tuple[Statement, ...], page_length: int = 5) -> str:
    """MT940 messages with pages of so few entries."""
    return "".join(_mt940_pages(statement, page_length) for statement in statements)


def _mt940_amount(amount: int, currency: str) -> str:
    text = format_amount(abs(amount), currency)
    return text.replace(".", ",") if "." in text else f"{text},"


def _mt940_balance(amount: int, statement: Statement) -> str:
    sign = "C" if amount >= 0 else "D"
    day = f"{statement.day:%y%m%d}"
    return f"{sign}{day}{statement.currency}{_mt940_amount(amount, statement.currency)}"


def _mt940_pages(statement: Statement, page_length: int) -> str:
    balance, pages = statement.opening_balance, []
    starts = [*range(0, max(len(statement.entries), 1), page_length), len(statement.entries)]
    for number, (begin, end) in enumerate(pairwise(starts), 1):
        first, last = number == 1, end == len(statement.entries)
        lines = [
            "{1:F01BANKDEFFAXXX0000000000}{2:I940BANKDEFFXXXXN}{4:",
            ":20:S",
            f":25:{statement.account}",
            f":28C:1/{number}",
            f":60{'F' if first else 'M'}:{_mt940_balance(balance, statement)}",
        ]
        for entry in statement.entries[begin:end]:
            balance += entry.amount
            lines += [
                f":61:{entry.value_date:%y%m%d}{entry.booking_date:%m%d}"
                f"{'C' if entry.amount >= 0 else 'D'}"
                f"{_mt940_amount(entry.amount, statement.currency)}NTRF"
                f"{entry.client_reference or 'NONREF'}//{entry.reference}",
                f":86:{entry.text}",
            ]
        closing = statement.closing_balance if last else balance
        lines += [f":62{'F' if last else 'M'}:{_mt940_balance(closing, statement)}", "-}"]
        pages.append("\r\n".join(lines) + "\r\n")
    return "".join(pages)


def write_bai2(statements: tuple[Statement, ...]) -> str:
    """A BAI2 file with one group for each statement."""
    lines, file_total = ["01,BANK,US,261130,0800,F1,,,2/"], 0
    for statement in statements:
        account = [
            f"03,{statement.account},{statement.currency},010,{statement.opening_balance},,/",
            f"88,015,{statement.closing_balance},,/",
        ]
        total = statement.opening_balance + statement.closing_balance
        for entry in statement.entries:
            code = 195 if entry.amount >= 0 else 495
            account += [
                f"16,{code},{abs(entry.amount)},V,{entry.value_date:%y%m%d},,{entry.reference},"
                f"{entry.client_reference},/",
                f"88,{entry.text}",
            ]
            total += abs(entry.amount)
        account.append(f"49,{total},{len(account) + 1}/")
        lines += [
            f"02,US,BANK,1,{statement.day:%y%m%d},,{statement.currency},2/",
            *account,
            f"98,{total},1,{len(account) + 2}/",
        ]
        file_total += total
    lines.append(f"99,{file_total},{len(statements)},{len(lines) + 1}/")
    return "\n".join(lines) + "\n"


WRITERS: dict[str, Callable[[tuple[Statement, ...]], str]] = {
    "camt053": write_camt053,
    "mt940": write_mt940,
    "bai2": write_bai2,
}
