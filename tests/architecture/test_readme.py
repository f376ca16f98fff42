"""The commands in the README work as printed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tallystick import new_order
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tests.support.platform import ROOT, eventually, serve_platform

README = (ROOT / "README.md").read_text()
ADDRESS, HTTP_ADDRESS = "127.0.0.1:7070", "127.0.0.1:7080"


def test_the_buf_line(scratch_database: DatabaseUrls) -> None:
    """The README's buf command answers from the schema in the repository, without a network."""
    (line,) = re.findall(r"^\.venv/bin/buf curl .*$", README, re.MULTILINE)
    with serve_platform(scratch_database) as platform, platform.client() as client:
        client.create_payment(
            "checkout-2",
            [new_order("order-3", "b", "s", "5.00", "EUR")],
            credit_card_info="tok_visa",
        )
        command = line.replace(ADDRESS, platform.address)
        completed = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert completed.returncode == 0, completed.stderr
    assert '"checkoutId": "checkout-2"' in completed.stdout.replace('":"', '": "')


def test_the_python_lines(
    scratch_database: DatabaseUrls, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's first call creates a payment."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    with serve_platform(scratch_database) as platform:
        exec(compile(code[1].replace(ADDRESS, platform.address), "README", "exec"), {})
    assert capsys.readouterr().out.strip() == "True"


def test_the_curl_lines(scratch_database: DatabaseUrls) -> None:
    """Each curl command of the README exits 0 and prints the expected answer."""
    lines = re.findall(r"^curl .*$", README, re.MULTILINE)
    expected_texts = [
        '"is_payment_done":true',
        '"checkout_id":"checkout-4"',
        '"next_page_token":""',
        "event: end",
        '"payment_order_status":"PAYMENT_ORDER_STATUS_SUCCESS"',
        '"available":"7.00"',
        '"amount":"0.00"',
        '"event_id"',
        '"openapi": "3.1.0"',
    ]
    names = (*service_names(), HTTP_SERVER)
    with serve_platform(scratch_database, names=names) as platform, platform.client() as client:
        for line, text in zip(lines, expected_texts, strict=True):
            # the relay may not have published yet
            assert "events:stream" not in line or eventually(lambda: list(client.events()))
            completed = subprocess.run(
                ["bash", "-c", line.replace(HTTP_ADDRESS, platform.server.http_address)],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert completed.returncode == 0, completed.stderr
            assert text in completed.stdout, completed.stdout


@pytest.mark.skipif(
    shutil.which("grpcurl") is None, reason="grpcurl is not here; .ci/run installs it where Go is"
)
def test_the_grpcurl_lines(scratch_database: DatabaseUrls) -> None:
    """Each grpcurl command of the README exits 0 and prints the expected answer."""
    lines = re.findall(r"^grpcurl .*$", README, re.MULTILINE)
    assert len(lines) >= 6
    expected_lines = [
        "tallystick.ledger.v1.LedgerService",
        "rpc CreatePayment",
        '"is_payment_done": true',
        '"checkout_id": "checkout-2"',
        '"available": "5.00"',
        '"amount": "0.00"',
        '"event_id"',
    ]
    with serve_platform(scratch_database) as platform, platform.client() as client:
        for line, answer in zip(lines, expected_lines, strict=True):
            # the relay may not have published yet
            assert "StreamEvents" not in line or eventually(lambda: list(client.events()))
            completed = subprocess.run(
                ["bash", "-c", line.replace(ADDRESS, platform.address)],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert completed.returncode == 0, completed.stderr
            assert answer in completed.stdout, completed.stdout
