"""camt.053: signs, batches, charges, balances, control sums, and what is rejected."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tests.reconciliation.writers import camt_balance, read_bytes

DAY = date(2026, 11, 30)
NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"


def document(
    entries: str,
    *,
    balances: str | None = None,
    namespace: str = NAMESPACE,
    summary: str = "",
    account: str = "<Acct><Id><IBAN>DE02SECRET</IBAN></Id><Ccy>EUR</Ccy></Acct>",
) -> bytes:
    if balances is None:
        balances = camt_balance("OPBD", 0, "EUR", DAY)
    return (
        f'<Document xmlns="{namespace}"><BkToCstmrStmt>\n<Stmt><Id>S1</Id>'
        f"<ElctrncSeqNb>7</ElctrncSeqNb>{account}\n{balances}{summary}\n{entries}\n</Stmt>"
        f"</BkToCstmrStmt></Document>"
    ).encode()


def entry(
    amount: str = "10.00",
    sign: str = "CRDT",
    *,
    status: str = "<Sts>BOOK</Sts>",
    more: str = "",
    details: str = "",
) -> str:
    return (
        f'<Ntry><Amt Ccy="EUR">{amount}</Amt><CdtDbtInd>{sign}</CdtDbtInd>{status}'
        f"<BookgDt><Dt>2026-11-30</Dt></BookgDt><AcctSvcrRef>ENTRY1</AcctSvcrRef>{more}"
        f"<NtryDtls>{details}</NtryDtls></Ntry>"
    )


def transaction(amount: str, client_reference: str, more: str = "") -> str:
    return (
        f"<TxDtls><Refs><EndToEndId>{client_reference}</EndToEndId><TxId>T</TxId></Refs>"
        f'<Amt Ccy="EUR">{amount}</Amt>{more}</TxDtls>'
    )


def lines(items: list[StatementItem]) -> list[StatementLine]:
    return [item for item in items if isinstance(item, StatementLine)]


@pytest.mark.parametrize("version", ["02", "03", "08", "14"])
def test_each_version_is_read(tmp_path: Path, version: str) -> None:
    content = document(entry(), namespace=f"{NAMESPACE[:-2]}{version}")
    start, line, end = read_bytes(tmp_path, "camt053", content)
    assert isinstance(start, StatementStart)
    assert (start.account, start.statement_id, start.sequence) == ("DE02SECRET", "S1", "7")
    assert isinstance(line, StatementLine)
    assert (line.amount, line.reference, line.booking_date) == (1000, "ENTRY1", DAY)
    assert isinstance(end, StatementEnd)
    assert end.difference is None


def test_any_prefix_and_an_envelope_are_accepted(tmp_path: Path) -> None:
    text = document(entry()).decode()
    for name in ("Document", "BkToCstmrStmt", "Stmt", "Ntry", "Amt", "Acct", "IBAN"):
        text = text.replace(f"<{name}", f"<x:{name}").replace(f"</{name}", f"</x:{name}")
    text = text.replace("xmlns=", f'xmlns="{NAMESPACE}" xmlns:x=')
    content = f"<Envelope><AppHdr/>{text}</Envelope>".encode("utf-16")
    assert [line.amount for line in lines(read_bytes(tmp_path, "camt053", content))] == [1000]


def test_pending_entries_are_no_bookings(tmp_path: Path) -> None:
    entries = [
        entry(status="<Sts>PDNG</Sts>"),
        entry(status="<Sts><Cd>INFO</Cd></Sts>"),
        entry("3.00", status="<Sts><Cd>BOOK</Cd></Sts>"),
    ]
    items = read_bytes(tmp_path, "camt053", document("".join(entries)))
    assert [line.amount for line in lines(items)] == [300]


def test_a_reversal_has_the_sign_of_what_it_does(tmp_path: Path) -> None:
    code = "<BkTxCd><Domn><Cd>PMNT</Cd><Fmly><Cd>RCDT</Cd><SubFmlyCd>ESCT</SubFmlyCd></Fmly></Domn>"
    more = f"<RvslInd>true</RvslInd>{code}</BkTxCd>"
    (line,) = lines(read_bytes(tmp_path, "camt053", document(entry("5", "DBIT", more=more))))
    assert (line.amount, line.code) == (-500, "PMNT/RCDT/ESCT RVSL")


def test_a_batch_has_a_line_for_each_transaction(tmp_path: Path) -> None:
    """They share the reference of the batch, and the signs of reversed ones count."""
    details = (
        "<Btch><PmtInfId>BATCH1</PmtInfId></Btch>"
        + transaction("7.00", "A")
        + transaction("4.00", "B")
        + transaction("1.00", "NOTPROVIDED", "<CdtDbtInd>DBIT</CdtDbtInd>")
    )
    found = lines(read_bytes(tmp_path, "camt053", document(entry(details=details))))
    assert [(line.amount, line.client_reference) for line in found] == [
        (700, "A"),
        (400, "B"),
        (-100, ""),
    ]
    assert {(line.settlement_reference, line.reference) for line in found} == {("BATCH1", "T")}


def test_the_bank_reference_is_that_of_a_batch_without_one(tmp_path: Path) -> None:
    details = transaction("7.00", "A") + transaction("3.00", "B")
    found = lines(read_bytes(tmp_path, "camt053", document(entry(details=details))))
    assert {line.settlement_reference for line in found} == {"ENTRY1"}


def test_transactions_that_do_not_make_the_entry_are_one_line(tmp_path: Path) -> None:
    details = transaction("7.00", "A") + transaction("4.00", "B")
    (line,) = lines(read_bytes(tmp_path, "camt053", document(entry(details=details))))
    assert (line.amount, line.client_reference, line.reference) == (1000, "", "ENTRY1")


def test_included_charges_are_the_fee(tmp_path: Path) -> None:
    """The amount of an entry is what is left; a batch may have its transactions before charges."""
    charge = '<Chrgs><Rcrd><Amt Ccy="EUR">0.50</Amt><CdtDbtInd>DBIT</CdtDbtInd>{}</Rcrd></Chrgs>'
    included = charge.format("<ChrgInclInd>true</ChrgInclInd>")
    (line,) = lines(read_bytes(tmp_path, "camt053", document(entry(more=included))))
    assert (line.amount, line.fee, line.gross_amount) == (1000, 50, 1050)
    details = transaction("7.50", "A", included) + transaction("3.00", "B")
    found = lines(read_bytes(tmp_path, "camt053", document(entry(details=details))))
    assert [(line.amount, line.fee) for line in found] == [(700, 50), (300, 0)]
    (line,) = lines(read_bytes(tmp_path, "camt053", document(entry(more=charge.format("")))))
    assert line.fee == 0


def test_a_conversion_and_a_time_are_kept(tmp_path: Path) -> None:
    more = '<AmtDtls><InstdAmt><Amt Ccy="JPY">1500</Amt></InstdAmt></AmtDtls>'
    text = entry(details=transaction("10.00", "A", more)).replace(
        "<Dt>2026-11-30</Dt>", "<DtTm>2026-11-30T01:30:00.1234567+02:00</DtTm>"
    )
    (line,) = lines(read_bytes(tmp_path, "camt053", document(text)))
    assert (line.original_amount, line.original_currency) == (1500, "JPY")
    assert line.booking_date == DAY
    assert line.booking_time == datetime(2026, 11, 29, 23, 30, 0, 123456, tzinfo=UTC)
    assert line.booking_time.tzinfo is UTC
    (line,) = lines(read_bytes(tmp_path, "camt053", document(text.replace("+02:00", ""))))
    assert (line.booking_date, line.booking_time) == (DAY, None)


@pytest.mark.parametrize(
    ("kinds", "opening", "closing"),
    [
        (["OPBD", "CLBD"], 0, 1),
        (["CLAV", "PRCD", "CLBD"], 1, 2),
        (["PRCD", "OPBD", "CLBD"], 1, 2),
        (["ITBD", "CLBD"], 0, 1),
        (["ITBD", "ITBD"], 0, 1),
        (["OPBD", "ITBD"], 0, None),
        (["CLBD"], None, 0),
        ([], None, None),
    ],
)
def test_opening_and_closing_balances(
    tmp_path: Path, kinds: list[str], opening: int | None, closing: int | None
) -> None:
    balances = "".join(camt_balance(kind, 100 * n, "EUR", DAY) for n, kind in enumerate(kinds))
    content = document("", balances=balances)
    start, end = read_bytes(tmp_path, "camt053", content, accepts_difference=True)
    assert isinstance(start, StatementStart)
    assert isinstance(end, StatementEnd)
    assert start.opening_balance == (None if opening is None else 100 * opening)
    assert end.closing_balance == (None if closing is None else 100 * closing)


def test_more_transactions_than_the_limit_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallystick_server.reconciliation.formats.camt053.MAX_TRANSACTIONS", 3)
    details = "".join(transaction("2.50", str(number)) for number in range(4))
    (line,) = lines(read_bytes(tmp_path, "camt053", document(entry(details=details))))
    assert line.amount == 1000


BOMB = (
    '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>'
    f'<Document xmlns="{NAMESPACE}">&c;</Document>'
).encode()

DAMAGED = {
    "camt.052": (
        document(entry()).replace(b"BkToCstmrStmt", b"BkToCstmrAcctRpt").replace(b"Stmt>", b"Rpt>"),
        "line 1, column 66: this is camt.052, a report of a day that has not ended; a camt.053 "
        "statement is expected",
    ),
    "camt.054": (
        document(entry())
        .replace(b"BkToCstmrStmt", b"BkToCstmrDbtCdtNtfctn")
        .replace(b"Stmt>", b"Ntfctn>"),
        "line 1, column 66: this is camt.054, an advice of single bookings without balances; a "
        "camt.053 statement is expected",
    ),
    "version": (
        document(entry(), namespace=f"{NAMESPACE[:-2]}15"),
        "line 1, column 66: the version must be camt.053.001.02 to camt.053.001.14",
    ),
    "other XML": (
        b"<html></html>",
        "line 1, column 1: the file must be a camt.053 statement (Document/BkToCstmrStmt/Stmt)",
    ),
    "no statement": (
        b"<Document><BkToCstmrStmt/></Document>",
        "line 1, column 1: the file must have a statement (Stmt)",
    ),
    "no account": (
        document(entry(), account="<Acct><Ccy>EUR</Ccy></Acct>"),
        "line 2, column 1: a statement must name its account",
    ),
    "currency": (
        document(entry()).replace(b"<Ccy>EUR", b"<Ccy>XXY"),
        "line 2, column 86: a currency must be an ISO 4217 code such as EUR",
    ),
    "no amount": (
        document(entry().replace("Amt", "Other")),
        "line 5, column 1: Ntry must have an amount (Amt)",
    ),
    "other currency": (
        document(entry().replace("EUR", "USD")),
        "line 5, column 7: the amount must be in EUR, the currency of the account",
    ),
    "amount": (
        document(entry("1O.00")),
        "line 5, column 7: an amount must be a number such as 1234.56, without a sign",
    ),
    "decimals": (
        document(entry("1.005")),
        "line 5, column 7: an amount in EUR must have at most 2 decimals",
    ),
    "huge amount": (
        document(entry("9" * 20)),
        "line 5, column 7: an amount must have at most 18 digits",
    ),
    "sign": (
        document(entry(sign="SECRET")),
        "line 5, column 1: CdtDbtInd of Ntry must be CRDT or DBIT",
    ),
    "status": (
        document(entry(status="<Sts>SECRET</Sts>")),
        "line 5, column 1: the status (Sts) must be BOOK, PDNG, INFO or FUTR",
    ),
    "date": (
        document(entry().replace("2026-11-30", "2026-11-31")),
        "line 5, column 84: a date must be a day such as 2026-11-30, from 1970 to 2199",
    ),
    "count": (
        document(
            entry(),
            summary="<TxsSummry><TtlNtries><NbOfNtries>2</NbOfNtries></TtlNtries></TxsSummry>",
        ),
        "line 4, column 23: the stated number of entries must be that in the file, 1",
    ),
    "sum": (
        document(
            entry(), summary="<TxsSummry><TtlCdtNtries><Sum>9</Sum></TtlCdtNtries></TxsSummry>"
        ),
        "line 4, column 26: the stated sum must be that of the entries, 10.00 EUR",
    ),
    "cut off": (
        document(entry())[:-30],
        "the file must be whole, well-formed XML (unclosed token)",
    ),
    "empty": (b"", "line 1, column 1: the file must be whole, well-formed XML (no element found)"),
    "bomb": (
        BOMB,
        "line 1, column 13: the file must not have a DOCTYPE, which bank statements never have",
    ),
    "external entity": (
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><Document/>',
        "line 1, column 40: the file must not have a DOCTYPE, which bank statements never have",
    ),
    "nesting": (
        b"<Document>" + b"<a>" * 100_000,
        "line 1, column 128: elements must be nested at most 40 deep",
    ),
    "long text": (
        document(entry(more=f"<AddtlNtryInf>{'a' * 20_001}</AddtlNtryInf>")),
        "a text must have at most 20000 characters",
    ),
    "large entry": (
        document(entry(more="<a>b</a>" * 50_000)),
        "an entry must have at most 4000000 characters",
    ),
    "endless tag": (
        b'<Document a="' + b"a" * 2_000_000,
        "a tag must have at most 1048576 bytes",
    ),
    "encoding": (
        b'<?xml version="1.0" encoding="no-such-one"?><a/>',
        "line 1, column 31: the encoding of the file must be a known one, such as UTF-8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_rejected(tmp_path: Path, damage: str) -> None:
    """With the place and what was expected, and without content of the file."""
    content, expected = DAMAGED[damage]
    with pytest.raises(DamagedFile) as rejection:
        read_bytes(tmp_path, "camt053", content)
    assert str(rejection.value).endswith(expected)
    assert str(rejection.value).startswith("statement, line ")
    assert "SECRET" not in str(rejection.value)
