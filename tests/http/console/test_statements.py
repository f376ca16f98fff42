"""Statement files: uploaded, previewed, and reconciled by a person."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import httpx
import pytest

from tallystick_sandbox.stripe.reports import COLUMNS
from tests.support.callers import token_of
from tests.support.console import SETTINGS, Person, Work
from tests.support.platform import ServedPlatform, unique_id
from tests.support.reconcile_commands import file_line, write_statement
from tests.support.reconciliation import DAY, Provider, reconcile

SignIn = Callable[[str], Person]
UPLOAD = "/console/statement-files/upload"


def upload(person: Person, path: str, account: str, **fields: str) -> httpx.Response:
    """Sends the form with a file."""
    data = {"csrf_token": person.csrf_token(), "account": account, **fields}
    with Path(path).open("rb") as content:
        return person.http.post(UPLOAD, data=data, files={"file": content})


def test_a_file_is_previewed_before_it_is_reconciled(
    alice: Person, work: Work, tmp_path: Path
) -> None:
    """The preview opens no break; the decision does. Another upload of the file changes nothing."""
    lines = [file_line(10_00, "ch-3"), file_line(4_00, "ch-unknown", reference=unique_id())]
    path = write_statement(tmp_path, lines, "acme-april.csv")
    before = alice.get("/console/breaks").text
    preview = upload(alice, path, work.account)
    assert preview.status_code == 200
    for text in ("Preview of acme-april.csv", "2 lines: 1 matched", "charge unknown", "4.00"):
        assert text in preview.text
    assert ">reconciled<" not in preview.text
    assert alice.get("/console/breaks").text == before
    action = re.search(r'action="(/console/statement-files/[^"]+/reconcile)"', preview.text)
    items = re.search(r'name="item_count" value="(\d+)"', preview.text)
    assert action is not None
    assert items is not None
    done = alice.act(action[1], item_count=items[1])
    assert done.status_code == 303
    report = alice.get(done.headers["Location"]).text
    assert "The file is reconciled." in report
    assert "charge unknown" in report
    assert "ch-3" in report
    again = upload(alice, path, work.account)
    assert again.headers["Location"] == action[1].removesuffix("/reconcile") + "?repeated=1"
    assert "Nothing was changed." in alice.get(again.headers["Location"]).text


def test_a_preview_counts_the_breaks_that_it_leaves_out(
    alice: Person, work: Work, tmp_path: Path
) -> None:
    """It has the first 200."""
    lines = [file_line(1_00, unique_id(), reference=unique_id()) for _ in range(201)]
    path = write_statement(tmp_path, lines, "many.csv")
    preview = upload(alice, path, work.account).text
    assert "The first 200 of 201 breaks." in preview
    assert preview.count('<th scope="row">charge unknown</th>') == 200


def test_a_difference_needs_a_reason(alice: Person, work: Work, tmp_path: Path) -> None:
    """Without one the form says what differs, and keeps what was entered."""
    path = write_statement(tmp_path, [file_line(1_00, "ch-x")], "gap.csv", difference=5)
    response = upload(alice, path, work.account)
    assert response.status_code == 400
    assert "Give a reason for the difference to accept it." in response.text
    assert f'value="{work.account}"' in response.text
    accepted = upload(alice, path, work.account, reason="the bank confirmed")
    assert accepted.status_code == 200
    assert "the bank confirmed" in accepted.text


@pytest.mark.parametrize(
    ("content", "account", "text"),
    [
        (b"", "psp/acme/clearing", "Choose a file that is not empty."),
        (b"no statement", "psp/acme/clearing", "the file must have one of these formats"),
        (b"\0\1\2" * 100, "psp/acme/clearing", "the file must have one of these formats"),
        (b"x", "somewhere", "account must be"),
    ],
)
def test_a_file_that_cannot_be_read_is_rejected_in_words(
    alice: Person, content: bytes, account: str, text: str
) -> None:
    """Nothing of it is sent."""
    data = {"csrf_token": alice.csrf_token(), "account": account}
    response = alice.http.post(UPLOAD, data=data, files={"file": ("../../x.csv", content)})
    assert response.status_code == 400
    assert text in response.text
    assert "../" not in response.text


def test_an_account_that_the_ledger_does_not_have_is_rejected(
    alice: Person, tmp_path: Path
) -> None:
    """A typing error does not make a break of every line."""
    path = write_statement(tmp_path, [file_line(1_00, "ch-1")])
    response = upload(alice, path, "psp/acmee/clearing")
    assert response.status_code == 400
    assert "The ledger has no account psp/acmee/clearing." in response.text


def test_the_report_of_a_provider_is_about_no_bank(alice: Person, tmp_path: Path) -> None:
    """As the command does, the form rejects it before anything is sent, also without lines."""
    path = tmp_path / "report.csv"
    path.write_text(",".join(COLUMNS) + "\n")
    response = upload(alice, str(path), "banks/main")
    assert response.status_code == 400
    assert "report.csv is a report of a provider (stripe_report)" in response.text


def test_an_upload_is_bounded_and_belongs_to_the_session(alice: Person, work: Work) -> None:
    """A file above the limit is rejected, as is a form without the CSRF token."""
    data = {"csrf_token": alice.csrf_token(), "account": work.account}
    large = b"x" * (SETTINGS.console.max_upload_bytes + 70_000)
    response = alice.http.post(UPLOAD, data=data, files={"file": large})
    assert response.status_code == 413
    assert "The body must have at most" in response.text
    response = alice.http.post(UPLOAD, data={"account": "x"}, files={"file": b"x"})
    assert response.status_code == 403


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nno name\r\n\r\n1\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nA: b; name="a"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=x", b'--x\r\nA: b; name="a"\r\n\r\n\xff\r\n--x--\r\n'),
    ],
)
def test_a_malformed_form_is_rejected(alice: Person, content_type: str, body: bytes) -> None:
    """It is no form, has no boundary or name, is cut off, or is no UTF-8."""
    response = alice.http.post(UPLOAD, content=body, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert "The form must be" in response.text or "must have a name" in response.text


def test_an_auditor_uploads_nothing(sign_in: SignIn, work: Work, tmp_path: Path) -> None:
    """The role is checked first; the auditor reads the reports."""
    auditor = sign_in("auditor")
    path = write_statement(tmp_path, [file_line(2_00, unique_id())])
    response = upload(auditor, path, work.account)
    assert response.status_code == 403
    assert "Uploads are for callers with the role operator." in response.text
    assert "acme-march.csv" in auditor.get("/console/statement-files").text


def test_the_clearing_report_explains_each_account(alice: Person, work: Work) -> None:
    """By age and by queue, with a link to the breaks."""
    page = alice.get("/console/clearing").text
    assert work.account in page
    assert "days or more" in page
    assert "class=INVESTIGATION" in page
    assert DAY.date().isoformat() not in alice.get("/console/clearing?account=banks/none").text


def test_an_entry_that_no_statement_has_becomes_a_break(
    platform: ServedPlatform, alice: Person, sign_in: SignIn
) -> None:
    """From the clearing report to the entries of an age, and to the break of one, with a reason. It
    is then listed among the breaks, and no longer among the entries.
    """
    with platform.client(token_of("alice")) as client:
        provider = Provider(client, unique_id("psp"))
        reconcile(client, provider.account, [], file_name="empty.csv")
        provider.pay_in(12_34, "ch-lost")
    report = alice.get(f"/console/clearing?account={provider.account}").text
    (link,) = re.findall(r'href="(/console/expected-entries[^"]+)"', report)
    entries = alice.get(unescape(link)).text
    assert "12.34" in entries
    assert "ch-lost" in entries
    (entry,) = re.findall(r'href="(/console/expected-entries/[^"]+)"', entries)
    page = alice.get(unescape(entry)).text
    assert f'value="{provider.account}"' in page
    path = entry.partition("?")[0]
    auditor = sign_in("auditor")
    assert "Open a break" not in auditor.get(path).text
    fields = {"account": provider.account, "reason": "asked the provider"}
    assert auditor.act(f"{path}/open-break", **fields).status_code == 403
    missing = alice.act(f"{path}/open-break", account=provider.account, reason="")
    assert missing.status_code == 400
    assert "reason is required" in missing.text
    done = alice.act(f"{path}/open-break", **fields)
    assert "A break is open for the entry." in alice.get(done.headers["Location"]).text
    assert "missing in file" in alice.get(f"/console/breaks?account={provider.account}").text
    assert "ch-lost" not in alice.get(unescape(link)).text
    empty = alice.get("/console/expected-entries?account=banks/none")
    assert empty.status_code == 400
    assert "currency is required" in empty.text
