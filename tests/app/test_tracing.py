"""One trace for one payment: from the SDK through every service, batch, provider call and
transaction.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import grpc
import httpx
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tallystick import Client, new_order
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer
from tallystick_server.observability.tracing import TracedDatabase, current_context
from tallystick_server.operations.batcher import Batcher
from tallystick_storage.sql import Connection
from tests.support.errors import from_rpc
from tests.support.platform import ServedPlatform, eventually, free_address, unique_id
from tests.support.processes import wait_for_line
from tests.support.rpc import rpc_client


def test_one_payment_is_one_trace(
    platform: ServedPlatform, span_exporter: InMemorySpanExporter
) -> None:
    """The trace contains the call, the provider's charge, the calls of wallet and ledger, batches
    and transactions.
    """
    checkout = unique_id("c")
    with platform.client() as client:
        client.create_payment(
            checkout,
            [new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")],
            credit_card_info="tok_visa",
        )
    spans = span_exporter.get_finished_spans()
    method = "tallystick.payment.v1.PaymentService/CreatePayment"
    root = next(s for s in reversed(spans) if s.name == method and s.parent is None)
    trace_spans = [s for s in spans if s.context.trace_id == root.context.trace_id]
    calls = [
        "tallystick.payment.v1.PaymentService/CreatePayment",
        "tallystick.wallet.v1.WalletService/BatchCredit",
        "tallystick.ledger.v1.LedgerService/BatchPost",
    ]
    for kind in (SpanKind.CLIENT, SpanKind.SERVER):
        assert {s.name for s in trace_spans if s.kind is kind} >= set(calls), kind
    assert {s.name for s in trace_spans} >= {
        "payment.create",
        "sandbox send",
        "payment.record",
        "payment.book",
        "wallet.change",
        "ledger.post",
        "transaction",
        "load",
    }


@pytest.mark.parametrize("method", ["ListPayments", "WatchPayment"])
def test_a_call_cancelled_before_its_message_is_no_error(
    span_exporter: InMemorySpanExporter, method: str
) -> None:
    """Calls that their callers cancel before sending a message are not failures of the server: it
    records no span of them.
    """
    never = threading.Event()

    def pending_messages() -> Iterator[bytes]:
        never.wait(60)
        yield from ()

    def tasks() -> int:
        return len(asyncio.all_tasks(client.loop))

    trace_id = f"{random.getrandbits(128):032x}"
    metadata = (("traceparent", f"00-{trace_id}-{random.getrandbits(64):016x}-01"),)
    with (
        rpc_client(asyncio.Event().wait) as client,
        grpc.insecure_channel(client.address) as channel,
    ):
        send: Any = channel.stream_stream(f"/tallystick.payment.v1.PaymentService/{method}")
        idle = tasks()
        calls = [send(pending_messages(), metadata=metadata, timeout=60) for _ in range(20)]
        assert eventually(lambda: tasks() >= idle + len(calls))
        for call in calls:
            call.cancel()
        assert eventually(lambda: tasks() <= idle)
        never.set()
        with pytest.raises(grpc.RpcError) as error:
            list(send(iter(()), timeout=60))
        assert from_rpc(error.value).reason == "MESSAGE_MALFORMED"
    assert [
        span.name
        for span in span_exporter.get_finished_spans()
        if f"{span.context.trace_id:032x}" == trace_id
    ] == []


def test_a_batch_is_linked_to_every_member(span_exporter: InMemorySpanExporter) -> None:
    """Three items of three traces in one batch: the batch belongs to the first trace, and links to
    the others.
    """
    tracer = trace.get_tracer("test")
    members = []

    async def run(items: Sequence[int]) -> Sequence[int | Exception]:
        return items

    async def batch() -> None:
        batcher: Batcher[int, int] = Batcher("test.batch", run)
        futures = []
        for n in range(3):
            with tracer.start_as_current_span(f"member-{n}") as span:
                members.append(span.get_span_context().span_id)
                futures.append(batcher.submit(n))
        batcher.start()
        assert await asyncio.gather(*futures) == [0, 1, 2]
        await batcher.stop()

    asyncio.run(batch())
    (batch_span,) = [
        span for span in span_exporter.get_finished_spans() if span.name == "test.batch"
    ]
    assert batch_span.parent is not None
    assert (batch_span.parent.span_id, [link.context.span_id for link in batch_span.links]) == (
        members[0],
        members[1:],
    )


def test_a_transaction_has_the_name_of_its_function(
    database: DatabaseUrls, span_exporter: InMemorySpanExporter
) -> None:
    """Also if some of its arguments are bound."""

    def select(connection: Connection, number: int) -> int:
        return int(connection.execute(f"select {number}").scalar_one())

    traced_database = TracedDatabase(
        database.service("event"), service="event", connections=1, readers=1
    )

    async def run() -> int:
        with trace.get_tracer("test").start_as_current_span("a call") as span:
            bound_function = partial(select, number=7)
            assert await traced_database.transact(bound_function) == 7
            assert await traced_database.load(bound_function) == 7
            return span.get_span_context().trace_id

    trace_id = asyncio.run(run())
    traced_database.close()
    functions = [
        (span.attributes or {}).get("code.function.name")
        for span in span_exporter.get_finished_spans()
        if span.context.trace_id == trace_id and span.name != "a call"
    ]
    assert functions == [select.__qualname__] * 2


def test_charges_of_one_batch_keep_their_traces(
    platform: ServedPlatform, span_exporter: InMemorySpanExporter
) -> None:
    """A payment's charges link to the batches that contained them."""
    checkout = unique_id("c")
    with platform.client() as client:
        client.create_payment(
            checkout,
            [new_order(f"{checkout}-{n}", "b", "s", "1.00", "EUR") for n in range(40)],
            credit_card_info="tok_visa",
        )
    batches = [
        s
        for s in span_exporter.get_finished_spans()
        if s.name == "sandbox.log" and (s.attributes or {}).get("batch.size", 0) > 1  # type: ignore[operator]
    ]
    charging = {
        s.context.span_id for s in span_exporter.get_finished_spans() if s.name == "sandbox send"
    }
    assert batches
    for batch in batches:
        assert batch.parent is not None
        assert {batch.parent.span_id, *(link.context.span_id for link in batch.links)} <= charging
        assert len(batch.links) == (batch.attributes or {})["batch.size"] - 1  # type: ignore[operator]


class SpanCollector(BaseHTTPRequestHandler):
    """An OTLP collector that records the names of the spans it receives."""

    names: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            SpanCollector.names += [
                f"{self.path} {span.name}" for scope in resource.scope_spans for span in scope.spans
            ]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Suppresses the log."""


@contextmanager
def collector_port() -> Iterator[int]:
    """The port on which a collector listens until the block ends."""
    with HTTPServer(("127.0.0.1", 0), SpanCollector) as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector.server_port
        finally:
            collector.shutdown()
            thread.join(10)


def test_spans_are_exported_to_the_configured_endpoint(scratch_database: DatabaseUrls) -> None:
    """With TALLYSTICK_TRACING__OTLP_ENDPOINT a process sends its spans by OTLP over HTTP, the last
    ones before it exits.
    """
    with collector_port() as port:
        environment = {
            "TALLYSTICK_DATABASE__URL": scratch_database.admin,
            "TALLYSTICK_DATA_DIR": str(scratch_database.passwords.path.parent),
            "TALLYSTICK_SERVER__LISTEN": (address := free_address()),
            "TALLYSTICK_HTTP__LISTEN": "",
            "TALLYSTICK_TRACING__RATIO": "1",
            "TALLYSTICK_TRACING__OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        command = [sys.executable, "-m", "tallystick_server.cli.main", "serve", "all"]
        with subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                assert len(wait_for_line(server, server.stderr, "Serving")) == 1
                with Client(address) as client:
                    assert client.create_payment(
                        "c", [new_order("o", "b", "s", "1.00", "EUR")], credit_card_info="tok_visa"
                    ).is_payment_done
            finally:
                server.terminate()
                server.communicate(timeout=60)
    assert "/v1/traces tallystick.payment.v1.PaymentService/CreatePayment" in SpanCollector.names
    assert {
        "/v1/traces sandbox send",
        "/v1/traces payment.book",
        "/v1/traces ledger.post",
    } <= set(SpanCollector.names)


_EXPORT_SCRIPT = """
import sys
from opentelemetry import trace
from tallystick_server.observability import metrics, tracing
flush = tracing.configure("x", sys.argv[1], 1.0)
with trace.get_tracer("x").start_as_current_span("one"):
    pass
flush()
print(metrics.SPANS_LOST.observe())
"""


def test_an_export_that_fails_shows_no_url() -> None:
    """The log reports that spans could not be sent, without the endpoint, which may contain a
    password or a token. They are counted.
    """
    run = subprocess.run(
        [sys.executable, "-c", _EXPORT_SCRIPT, "http://us:secret@host:99999999"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Failed to export spans batch" in run.stderr
    assert "secret" not in run.stderr
    assert run.stdout == "{('not_exported',): 1}\n"


def test_a_request_by_http_records_no_trace() -> None:
    """The HTTP server authenticates nobody itself: what it does for a request has the trace id of
    the caller, and is not recorded, whatever the caller asks for.
    """
    trace_id = f"{random.getrandbits(127) + 2**127:032x}"
    contexts = []

    async def respond(_: Request) -> web.StreamResponse:
        contexts.append(current_context())
        return web.Response()

    async def request() -> None:
        server = HttpServer([Route("GET", "/x", respond)], HttpLimits())
        host, _, port = (address := free_address()).rpartition(":")
        listener = await asyncio.get_running_loop().create_server(server.connect, host, int(port))
        async with listener, httpx.AsyncClient() as client:
            header = {"traceparent": f"00-{trace_id}-{random.getrandbits(63) + 1:016x}-01"}
            await client.get(f"http://{address}/x", headers=header)

    asyncio.run(request())
    (context,) = contexts
    assert (f"{context.trace_id:032x}", context.trace_flags.sampled) == (trace_id, False)


def test_ids_do_not_use_the_global_random_generator(client: Client) -> None:
    """A process that has seeded `random` gets its own sequence, independent of other calls."""
    before = random.getstate()
    client.create_payment(
        unique_id("c"),
        [new_order(unique_id("o"), "b", unique_id("s"), "1.00", "EUR")],
        credit_card_info="tok_visa",
    )
    assert random.getstate() == before
