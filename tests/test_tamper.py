"""`tallystick verify` names what somebody with the administrator's rights has changed."""

from __future__ import annotations

from tallystick_server.process.databases import Databases

from .tamper.database import fill
from .tamper.exempt import PAGE, page
from .tamper.run import Tampering


def test_verify_names_edits_of_every_table(own_database: Databases) -> None:
    """Of random edits with all triggers off, to every table and column that is not exempt, verify names each, and none stops it."""
    fill(own_database)
    tampering = Tampering(own_database.admin)
    try:
        assert tampering.report().passed, tampering.report().as_text()
        result = tampering.run(150, seed=7)
    finally:
        tampering.close()
    assert result.edits == 150
    assert not result.missed
    assert not result.crashed


def test_the_page_of_exemptions_is_the_list() -> None:
    """The page that says what verify does not see lists exactly what the tampering leaves out, with the reasons."""
    assert PAGE.read_text() == page(), "python -m tests.tamper.exempt writes it anew"
