"""The days that a statement may have are the same in all formats as in the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick_core.reconciliation.statement import DamagedFile
from tallystick_server.reconciliation.formats.registry import (
    find_format,
    read_blocks,
    read_statements,
)
from tests.reconciliation import (
    test_adyen_settlement,
    test_camt053,
    test_canonical_csv,
    test_paypal_stl,
    test_stripe_report,
)
from tests.reconciliation.files import write_file
from tests.reconciliation.paypal_files import Section, paypal_rows, write_rows
from tests.reconciliation.writers import camt_balance
from tests.support.platform import run_command

START, LINE, END = test_canonical_csv.START, test_canonical_csv.LINE, test_canonical_csv.END
_CAMT_ENTRY = test_camt053.entry(more="<ValDt><Dt>2026-11-29</Dt></ValDt>")
_CAMT = test_camt053.document(
    _CAMT_ENTRY,
    balances=camt_balance("OPBD", 0, "EUR", test_camt053.DAY)
    + camt_balance("CLBD", 10_00, "EUR", test_camt053.DAY),
).decode()


def camt(element: str) -> Callable[[str], str]:
    """A camt.053 file with another year in an element, named by what comes before its date."""

    def write(year: str) -> str:
        before, found, after = _CAMT.partition(element)
        assert found
        return before + element + after.replace("2026-", f"{year}-", 1)

    return write


def paypal(year: str) -> str:
    """A PayPal report with another year of a completion."""
    rows = paypal_rows(Section("A", {"EUR": 5}, [test_paypal_stl.CHARGE]))
    return write_rows(
        [[cell.replace("2026/01/30 12", f"{year}/01/30 12") for cell in row] for row in rows]
    )


FILES: dict[str, Callable[[str], str]] = {
    "canonical booking_date": lambda year: test_canonical_csv.table(
        START, LINE | {"booking_date": f"{year}-01-30"}, END
    ),
    "canonical value_date": lambda year: test_canonical_csv.table(
        START, LINE | {"value_date": f"{year}-01-30"}, END
    ),
    "canonical booking_time": lambda year: test_canonical_csv.table(
        START, LINE | {"booking_time": f"{year}-01-30T00:00:00Z"}, END
    ),
    "canonical opening": lambda year: test_canonical_csv.table(
        START | {"balance_date": f"{year}-01-30"}, LINE, END
    ),
    "canonical closing": lambda year: test_canonical_csv.table(
        START, LINE, END | {"balance_date": f"{year}-01-30"}
    ),
    "stripe created_utc": lambda year: test_stripe_report.report(
        {"created_utc": f"{year}-01-30 00:00:00"}
    ),
    "stripe available_on_utc": lambda year: test_stripe_report.report(
        {"available_on_utc": f"{year}-01-30 00:00:00"}
    ),
    "adyen": lambda year: test_adyen_settlement.report({"Creation Date": f"{year}-01-30 00:00:00"}),
    "paypal": paypal,
    "camt opening": camt("OPBD"),
    "camt closing": camt("CLBD"),
    "camt booking": camt("BookgDt"),
    "camt value": camt("ValDt"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("year", ["0203", "1969", "2200", "9999"])
def test_a_day_of_another_century_is_damage(tmp_path: Path, name: str, year: str) -> None:
    """Else the service would reject the file after the files before it were stored. The error has
    the range.
    """
    file = write_file(tmp_path, FILES[name](year))
    for read in (read_statements, read_blocks):
        with pytest.raises(DamagedFile) as error:
            list(read(file, find_format(file), accepts_difference=True))
        assert error.value.expected.endswith(", from 1970 to 2199")


@pytest.mark.parametrize("name", FILES)
def test_the_first_and_the_last_year_are_read(tmp_path: Path, name: str) -> None:
    for year in ("1970", "2199"):
        file = write_file(tmp_path, FILES[name](year))
        assert list(read_blocks(file, find_format(file), accepts_difference=True))


def test_the_command_shows_the_line_and_the_column(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text(FILES["canonical booking_date"]("0203"))
    completed = run_command("statement", str(path))
    assert (completed.returncode, completed.stdout) == (1, "")
    assert completed.stderr == (
        "tallystick: old.csv, line 3, column 13: booking_date must be a date such as 2026-01-31, "
        "from 1970 to 2199.\n"
    )
