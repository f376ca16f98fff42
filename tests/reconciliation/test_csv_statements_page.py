"""The page of the CSV statements has every type, column and example of the code."""

from __future__ import annotations

import re
from pathlib import Path

from tallystick_core.reconciliation.statement import LineType
from tallystick_server.reconciliation.formats import adyen_settlement, stripe_report
from tallystick_server.reconciliation.formats.canonical_csv import COLUMNS
from tallystick_server.reconciliation.formats.paypal_event_codes import LINE_TYPES
from tallystick_server.reconciliation.formats.registry import find_format, read_statements
from tests.reconciliation.files import ends_of, lines_of, write_file
from tests.support.platform import ROOT

_PAGE = (ROOT / "docs" / "reference" / "csv-statements.md").read_text()


def _codes(column: int) -> dict[str, LineType]:
    """The types of a provider's codes, as the table has them."""
    codes: dict[str, LineType] = {}
    for row in re.findall(r"^\| `[A-Z_]+` \|.*\|.*\|.*\|$", _PAGE, re.MULTILINE):
        cells = row.split("|")[1:]
        line_type = LineType(cells[0].strip(" `"))
        codes |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[column]), line_type)
    return codes


def test_the_page_has_the_type_of_every_code() -> None:
    assert _codes(1) == stripe_report.LINE_TYPES
    assert _codes(2) == LINE_TYPES | {"T0001": LineType.PAYOUT}
    adyen = {code.lower(): line_type for code, line_type in _codes(3).items()}
    assert adyen == adyen_settlement.LINE_TYPES


def test_the_page_has_every_column_of_the_canonical_csv() -> None:
    assert tuple(re.findall(r"^\| `([a-z_]+)` \|", _PAGE, re.MULTILINE)) == COLUMNS


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    example = _PAGE.partition("```csv\n")[2].partition("```")[0]
    file = write_file(tmp_path, example)
    items = list(read_statements(file, find_format(file)))
    assert [line.client_reference for line in lines_of(items)] == ["charge-1"]
    assert [end.difference for end in ends_of(items)] == [0]
