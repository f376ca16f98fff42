"""The log of a process that serves: its form, its traces, and what it never shows."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest
from aiohttp import web

from tallystick import Client, ClientSettings, InternalError, InvalidArgumentError
from tallystick.payment.v1 import payment_service_pb2
from tallystick_server.app.configuration import load
from tallystick_server.app.configuration.secrets import secrets_of
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer
from tallystick_server.observability import logs
from tests.support.charges import WAIT_FOR_ACCEPTANCE
from tests.support.payments import create_payment
from tests.support.platform import eventually, free_address
from tests.support.processes import environment_of, running_process

_FIELDS = {
    "time",
    "level",
    "logger",
    "event",
    "message",
    "trace_id",
    "span_id",
    "service",
    "process",
}
_CARD_NUMBER = "4111 1111 1111 1111"
_TOKENS = {name: f"token-of-{name}-0123456789" for name in ("shop", "operator", "platform")}
_CALLERS = (
    f"shop:team:{_TOKENS['shop']},on-call:operator:{_TOKENS['operator']},"
    f"platform:service:{_TOKENS['platform']}"
)


@contextmanager
def served(databases: DatabaseUrls, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a platform in a process of its own, and the lines of its standard error, which
    are complete once the block has ended.
    """
    lines: list[str] = []
    variables = {
        **environment_of(databases),
        "TALLYSTICK_SERVER__LISTEN": (address := free_address()),
        "TALLYSTICK_AUTHENTICATION": "tokens",
        "TALLYSTICK_CALLERS": _CALLERS,
        "TALLYSTICK_SERVICE_TOKEN": _TOKENS["platform"],
        **environment,
    }
    with running_process(["serve", "all"], variables, address) as process:
        yield address, lines
        process.terminate()
        lines += process.communicate(timeout=60)[1].splitlines()


def caller(address: str) -> Client:
    return Client(address, settings=ClientSettings(token=_TOKENS["shop"]))


def parsed(lines: list[str]) -> list[Mapping[str, Any]]:
    """The lines, each of which is an object with the fields of every line."""
    records = [json.loads(line) for line in lines]
    for record in records:
        assert record.keys() - {"exception"} == _FIELDS, record
    return records


def test_each_line_of_a_served_process_is_a_json_object(scratch_database: DatabaseUrls) -> None:
    """From its start to its stop, with an alert and a call that fails because a table is gone. The
    line of the call has the trace id that its caller received, and its traceback. A caller's
    invalid input has no line. No line has a token, a password or a card number.
    """
    with (
        served(
            scratch_database,
            TALLYSTICK_WORKER__MONITOR_INTERVAL="0.1",
            TALLYSTICK_RETRY="rejected=cancel",
        ) as (address, lines),
        caller(address) as client,
    ):
        create_payment(client, "1.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        payment = create_payment(client, "2.00")
        with pytest.raises(Exception, match="card number"):
            create_payment(client, "3.00", buyer_info=_CARD_NUMBER)
        with psycopg.connect(scratch_database.admin, autocommit=True) as connection:
            alerts = "select from payment.alert"
            assert eventually(lambda: connection.execute(alerts).fetchall())
            connection.execute("alter table payment.checkout rename to gone")
            try:
                with pytest.raises(InternalError) as error:
                    client.get_payment(payment.checkout_id)
            finally:
                connection.execute("alter table payment.gone rename to checkout")
    records = parsed(lines)
    (failed,) = [record for record in records if record["event"] == "rpc.call.failed"]
    assert (failed["level"], failed["logger"]) == ("ERROR", "tallystick_server.rpc.server")
    assert failed["trace_id"] == error.value.trace_id
    assert int(failed["span_id"], 16) > 0
    assert "GetPayment failed" in failed["message"]
    assert "UndefinedTable" in failed["exception"]
    (alert,) = [record for record in records if record["event"] == "alert.raised"]
    assert alert["level"] == "WARNING"
    steps = [record["message"] for record in records if record["event"] == "process.step"]
    assert steps[-2:] == ["Draining", "Stopped"]
    assert {record["service"] for record in records} == {"tallystick-all"}
    assert len({record["process"] for record in records}) == 1
    assert {record["level"] for record in records if record not in (failed, alert)} == {"INFO"}
    assert all(datetime.fromisoformat(record["time"]).tzinfo for record in records)
    text = "\n".join(lines)
    passwords = json.loads(scratch_database.passwords.path.read_text())
    for secret in (*_TOKENS.values(), *passwords.values(), _CARD_NUMBER):
        assert secret not in text


def test_normal_work_has_no_line_above_info(scratch_database: DatabaseUrls) -> None:
    """A payment, a decline and a caller's invalid input."""
    with (
        served(scratch_database, TALLYSTICK_LOGS__LEVEL="INFO") as (address, lines),
        caller(address) as client,
    ):
        assert create_payment(client, "2.00").is_payment_done
        assert not create_payment(client, "3.00", token="tok_decline").is_payment_done
        with pytest.raises(InvalidArgumentError):
            create_payment(client, "-1")
    records = parsed(lines)
    assert {record["level"] for record in records} == {"INFO"}, records
    assert {record["event"] for record in records} == {"process.step"}


def test_lines_of_an_operation_have_the_trace_of_its_payment(
    scratch_database: DatabaseUrls,
) -> None:
    """Also when it is retried later, long after its call has ended."""
    trace_id = f"{random.getrandbits(127) + 2**127:032x}"
    traceparent = f"00-{trace_id}-{random.getrandbits(63) + 1:016x}-00"
    with (
        served(
            scratch_database,
            TALLYSTICK_LOGS__LEVEL="INFO",
            TALLYSTICK_WORKER__SCAN_INTERVAL="0.05",
            TALLYSTICK_RETRY="not_sent=fixed:0.05:9",
        ) as (address, lines),
        caller(address) as client,
    ):
        request = payment_service_pb2.CreatePaymentRequest(
            checkout_id="c", credit_card_info="tok_unreachable:3"
        )
        request.payment_orders.add(
            payment_order_id="o",
            buyer_account="buyer",
            seller_account="seller",
            amount="1.00",
            currency="EUR",
        )
        client.payment.CreatePayment(request, metadata=(("traceparent", traceparent),))
        assert eventually(lambda: client.get_payment("c").is_payment_done)
    rescheduled = [record for record in parsed(lines) if record["event"] == "operation.rescheduled"]
    assert len(rescheduled) >= 2
    assert {record["trace_id"] for record in rescheduled} == {trace_id}


def test_a_failed_request_by_http_has_the_trace_of_its_caller() -> None:
    """An unexpected error in the HTTP server itself, which calls no service."""
    trace_id = f"{random.getrandbits(127) + 2**127:032x}"

    async def fail(_: Request) -> web.StreamResponse:
        raise KeyError("x")

    async def request() -> int:
        server = HttpServer([Route("GET", "/x", fail)], HttpLimits())
        host, _, port = (address := free_address()).rpartition(":")
        listener = await asyncio.get_running_loop().create_server(server.connect, host, int(port))
        async with listener, httpx.AsyncClient() as client:
            header = {"traceparent": f"00-{trace_id}-{random.getrandbits(63) + 1:016x}-00"}
            return (await client.get(f"http://{address}/x", headers=header)).status_code

    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(logs.JsonFormatter())
    log = logging.getLogger(HttpServer.__module__)
    log.addHandler(handler)
    try:
        assert asyncio.run(request()) == 500
    finally:
        log.removeHandler(handler)
    (record,) = parsed(output.getvalue().splitlines())
    assert (record["event"], record["trace_id"]) == ("rpc.call.failed", trace_id)


@pytest.fixture
def own_log() -> Iterator[logging.Logger]:
    """A logger; afterwards nothing is hidden."""
    yield logging.getLogger("tests.own")
    logs.hide([])


def line_of(formatter: logging.Formatter, log: logging.Logger, *message: Any, **values: Any) -> str:
    """What a formatter writes for a message."""
    record = log.makeRecord(
        log.name, logging.ERROR, "file", 1, message[0], message[1:], values.get("exc_info")
    )
    return formatter.format(record)


def error_of(text: str) -> Any:
    """The exc_info of an error that was raised from another one."""
    error = RuntimeError("outer")
    error.__cause__ = ValueError(text)
    return RuntimeError, error, None


def test_a_line_break_in_a_value_begins_no_line(own_log: logging.Logger) -> None:
    """Neither one of ASCII nor one of Unicode, in a message or in an exception."""
    value = 'a\nb\r\n{"level": "ERROR"}\u2028c\x1b[31m'
    line = line_of(logs.JsonFormatter(), own_log, "%s", value, exc_info=error_of(value))
    assert len(line.splitlines()) == 1
    record = json.loads(line)
    assert record["message"] == value
    assert record["exception"].splitlines()[-1] == "RuntimeError: outer"
    text = line_of(logs.TextFormatter(), own_log, "%s", value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()


def test_the_text_of_an_error_begins_no_line(own_log: logging.Logger) -> None:
    """In a traceback for a person: its lines are indented, and nothing changes the terminal."""
    value = "a\n2026-11-30T00:00:00Z ERROR forged\r\n\u2028b\x1b[31m\x00"
    text = line_of(logs.TextFormatter(), own_log, "failed", exc_info=error_of(value))
    first_line, *traceback = text.split("\n")
    assert first_line.endswith(" ERROR tests.own - failed")
    assert "  2026-11-30T00:00:00Z ERROR forged\\r" in traceback
    for line in traceback:
        assert line.startswith("  ")
        assert line.isprintable()


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.TextFormatter()])
def test_secrets_and_personal_data_are_not_written(
    own_log: logging.Logger, formatter: logging.Formatter
) -> None:
    """In a message and in an exception: secrets, card numbers, and the values of a row, which
    PostgreSQL shows in its detail.
    """
    logs.hide([*_TOKENS.values(), "short"])
    for text in (
        f"the token {_TOKENS['shop']} is wrong",
        f"the card {_CARD_NUMBER} is wrong",
        "the card ４１１１１１１１１１１１１１１１ is wrong",
        "it violates a constraint\nDETAIL:  Failing row contains (1, Ada\n\nLovelace).",
    ):
        line = line_of(formatter, own_log, "%s; short", text, exc_info=error_of(text))
        for secret in (*_TOKENS.values(), _CARD_NUMBER, "４１１１", "Ada", "Lovelace"):
            assert secret not in line
        assert "RuntimeError: outer" in line


def test_long_texts_are_cut(own_log: logging.Logger) -> None:
    """A line has a limited length; of a traceback the end is kept."""
    line = line_of(
        logs.JsonFormatter(), own_log, "%s", "x" * 100_000, exc_info=error_of("y" * 100_000)
    )
    assert len(line) < 20_000
    assert json.loads(line)["exception"].endswith("RuntimeError: outer")


def test_every_hidden_setting_is_a_secret() -> None:
    """Tokens, keys, and the passwords of URLs, as they are written and as they are meant. Names of
    services, and addresses without a password, are none.
    """
    settings = load(
        {
            "TALLYSTICK_CALLERS": _CALLERS,
            "TALLYSTICK_SERVICE_TOKEN": _TOKENS["platform"],
            "TALLYSTICK_DATABASE__URL": "postgresql://u:pass%20word@db/x",
            "TALLYSTICK_DATABASE__SERVICE_URLS": "payment=postgresql://u:password-2@db/x",
            "TALLYSTICK_TRACING__OTLP_ENDPOINT": "http://collector:4318",
            "TALLYSTICK_PROVIDERS__PAYMENT": "stripe",
            "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
            "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": "sk_test_0123456789",
            "TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS": "whsec_0123456789",
        }
    )
    assert secrets_of(settings, ["postgresql://u:password-3@db/x"]) - {""} == {
        *_TOKENS.values(),
        "pass%20word",
        "pass word",
        "password-2",
        "password-3",
        "sk_test_0123456789",
        "whsec_0123456789",
    }


_SCRIPT = """
import logging, sys, threading, warnings
from tallystick_server.observability import logs
logs.configure(logging.WARNING)
logs.configure_service("tallystick-x", "WARNING", sys.argv[1])
logs.report("a step")
logging.getLogger("grpc").error("of gRPC")
logging.getLogger("asyncio").info("not severe enough")
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
"""


def _run_script(line_format: str) -> list[str]:
    completed = subprocess.run(
        [sys.executable, "-c", _SCRIPT, line_format],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return completed.stderr.splitlines()


def test_warnings_and_errors_of_threads_are_lines_too() -> None:
    """Lines of libraries, Python's warnings, and what ends a thread have the same form."""
    records = parsed(_run_script("auto"))
    assert [(record["logger"], record["level"]) for record in records] == [
        ("tallystick_server.observability.logs", "INFO"),
        ("grpc", "ERROR"),
        ("py.warnings", "WARNING"),
        ("tallystick_server.observability.logs", "ERROR"),
    ]
    assert records[-1]["exception"].endswith("ZeroDivisionError: division by zero")


def test_the_format_can_be_set() -> None:
    """Text where no terminal is."""
    lines = _run_script("text")
    assert lines[0] == "a step"
    assert lines[1].split(" ", 1)[1] == "ERROR grpc - of gRPC"


def test_a_terminal_shows_text() -> None:
    controller, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", _SCRIPT, "auto"], stderr=terminal, check=True, timeout=60)
    os.close(terminal)
    output = os.read(controller, 65_536).decode()
    os.close(controller)
    assert output.startswith("a step\r\n")
    assert " ERROR grpc - of gRPC\r\n" in output
