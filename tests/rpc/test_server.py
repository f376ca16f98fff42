"""The gRPC server: credentials, roles, limits, deadlines, and how errors look to a client."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick import (
    Client,
    DeadlineExceededError,
    InternalError,
    PermissionDeniedError,
    TallystickError,
    UnauthenticatedError,
)
from tallystick.error.v1 import reason_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.reconciliation.v1 import reconciliation_service_pb2
from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.rpc.authentication import NoAuthentication
from tallystick_server.rpc.bulkhead import Bulkhead, CallLimits
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.errors import CODE_BY_REASON, from_status, to_status
from tallystick_server.rpc.fair_semaphore import FairSemaphore
from tallystick_server.rpc.server import RpcServer
from tallystick_server.rpc.stream_sender import StreamSender
from tests.support.errors import from_rpc
from tests.support.platform import ServedPlatform, eventually, serve_platform
from tests.support.rpc import ACCESS, DESCRIPTORS, GatedHandlers, rpc_client, serve_rpc

TOKENS = {
    "token-of-shop-aaaa": Caller("shop", frozenset({Role.TEAM})),
    "token-of-auditor--": Caller("auditor", frozenset({Role.AUDITOR})),
    "token-of-platform-": Caller("platform", frozenset({Role.SERVICE})),
}


def test_every_reason_has_one_status_and_is_in_the_contract() -> None:
    """X1: the closed list of reasons is the same in code, in the contract and in the status
    table.
    """
    wire = {name.removeprefix("REASON_") for name in reason_pb2.Reason.keys()} - {"UNSPECIFIED"}
    assert wire == set(ErrorReason) == set(CODE_BY_REASON)


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_errors_survive_the_conversion_to_a_status(reason: ErrorReason) -> None:
    """An error inside a batch survives the conversion to a status and back."""
    parsed_error = from_status(
        to_status(ApiError(reason, "why", field="a.b", metadata={"x": "y"}, retry_after=1.5))
    )
    assert (
        parsed_error.reason,
        parsed_error.message,
        parsed_error.field,
        parsed_error.metadata,
        parsed_error.retry_after,
    ) == (
        reason,
        "why",
        "a.b",
        {"x": "y"},
        1.5,
    )
    bare = from_status(to_status(ApiError(reason, "why")))
    assert (bare.field, bare.metadata, bare.retry_after) == ("", {}, None)


@pytest.mark.parametrize(
    "descriptor",
    DESCRIPTORS.values(),
    ids=DESCRIPTORS,
)
def test_a_method_without_access_rule_prevents_the_start(descriptor: ServiceDescriptor) -> None:
    """S2: if one access rule is missing or empty, the server does not start."""
    access = dict(ACCESS[descriptor.name])
    first = descriptor.methods[0].name
    for invalid_access in (
        {k: v for k, v in access.items() if k != first},
        {**access, first: frozenset()},
    ):

        async def bind(rules: Any = invalid_access) -> None:
            RpcServer(NoAuthentication()).add_service(
                grpc.aio.server(), descriptor, object(), rules
            )

        with pytest.raises(TypeError, match="no access rule"):
            asyncio.run(bind())


def test_credentials_and_roles(scratch_database: DatabaseUrls) -> None:
    """A missing token, a wrong token, and a valid token for another method are each rejected with
    their own reason.
    """
    settings = Settings().replace(
        authentication="tokens", callers=TOKENS, service_token="token-of-platform-"
    )
    request = payment_service_pb2.ListPaymentsRequest()
    with serve_platform(scratch_database, settings) as platform:
        for token, kind, reason in (
            ("", UnauthenticatedError, "CREDENTIALS_MISSING"),
            ("token-of-nobody----", UnauthenticatedError, "CREDENTIALS_INVALID"),
            ("token-of-auditor--", PermissionDeniedError, "PERMISSION_DENIED"),
        ):
            with platform.client(token) as client, pytest.raises(kind) as error:
                client.payment.ListPayments(request)
            assert error.value.reason == reason
            assert "token-of" not in str(error.value)
        with platform.client("token-of-shop-aaaa") as client:
            client.payment.ListPayments(request)
            with pytest.raises(PermissionDeniedError):
                client.ledger.BatchPost(ledger_service_pb2.BatchPostRequest())
        with platform.client("token-of-auditor--") as client:
            client.ledger.GetTrialBalance(ledger_service_pb2.GetTrialBalanceRequest())


LIST_REQUEST = payment_service_pb2.ListPaymentsRequest()


def test_too_many_calls_are_overloaded() -> None:
    """Above the limit a call is rejected with OVERLOADED and a retry delay."""
    entered, leave = threading.Semaphore(0), threading.Event()

    async def slow() -> Message:
        entered.release()
        await asyncio.to_thread(leave.wait, 10)
        return payment_service_pb2.ListPaymentsResponse()

    with rpc_client(slow, CallLimits(reads=4)) as client, ThreadPoolExecutor(2) as callers:
        first = [callers.submit(client.payment.ListPayments, LIST_REQUEST) for _ in range(2)]
        assert all(entered.acquire(timeout=10) for _ in first)
        with pytest.raises(TallystickError) as error:
            client.payment.ListPayments(LIST_REQUEST)
        leave.set()
        assert all(
            isinstance(call.result(10), payment_service_pb2.ListPaymentsResponse) for call in first
        )
    assert error.value.reason == "OVERLOADED"
    assert error.value.retry_after == 0.5


CREATE_REQUEST = payment_service_pb2.CreatePaymentRequest(checkout_id="c")
READ_CALLS: list[tuple[str, Message]] = [
    ("GetPayment", payment_service_pb2.GetPaymentRequest()),
    ("CancelPayment", payment_service_pb2.CancelPaymentRequest()),
    ("ListAlerts", operator_pb2.ListAlertsRequest()),
    ("ListDeadLetters", operator_pb2.ListDeadLettersRequest()),
]


def test_waiting_calls_release_their_slots() -> None:
    """A waiting call releases its slot. A call above the limit of waiting calls, or of its caller's
    share, is answered without waiting.
    """
    gate = GatedHandlers(waits_for_provider=True)
    limits = CallLimits(writes=1, reads=1, platform=1, waiting=4, share=0.5)
    with rpc_client(gate, limits) as client, ThreadPoolExecutor(2) as callers:
        waiting_calls = []
        for _ in range(2):
            waiting_calls.append(callers.submit(client.payment.CreatePayment, CREATE_REQUEST))
            assert gate.entered.acquire(timeout=10)
        assert (
            client.payment.CreatePayment(CREATE_REQUEST)
            == payment_service_pb2.CreatePaymentResponse()
        )
        for name, request in READ_CALLS:
            getattr(client.payment, name)(request)
        gate.release_event.set()
        assert all(call.result(10) is not None for call in waiting_calls)


def test_each_kind_of_call_has_its_own_limit() -> None:
    """When changes are at their limit, one more is OVERLOADED, while reads and operators' calls are
    answered.
    """
    gate = GatedHandlers(waits_for_provider=False)
    with (
        rpc_client(gate, CallLimits(writes=1, reads=1, platform=1)) as client,
        ThreadPoolExecutor(1) as callers,
    ):
        first = callers.submit(client.payment.CreatePayment, CREATE_REQUEST)
        assert gate.entered.acquire(timeout=10)
        for name, request in READ_CALLS:
            if name == "CancelPayment":
                with pytest.raises(TallystickError) as error:
                    getattr(client.payment, name)(request)
                assert (error.value.reason, error.value.retry_after) == ("OVERLOADED", 0.5)
            else:
                getattr(client.payment, name)(request)
        gate.release_event.set()
        first.result(10)


def test_messages_in_flight_are_bounded_by_their_bytes() -> None:
    """Messages of many kilobytes are OVERLOADED above the limit of bytes in flight, while a small
    one is accepted.
    """
    gate = GatedHandlers(waits_for_provider=False)
    large = payment_service_pb2.CreatePaymentRequest(buyer_info="x" * 20_000)
    with (
        rpc_client(gate, CallLimits(message_bytes=50_000)) as client,
        ThreadPoolExecutor(3) as callers,
    ):
        calls = []
        for request in (large, large, CREATE_REQUEST):
            calls.append(callers.submit(client.payment.CreatePayment, request))
            assert gate.entered.acquire(timeout=10)
        with pytest.raises(TallystickError) as error:
            client.payment.CreatePayment(large)
        assert (error.value.reason, error.value.retry_after) == ("OVERLOADED", 0.5)
        gate.release_event.set()
        for call in calls:
            call.result(10)


def test_a_drain_ends_calls_with_shutting_down() -> None:
    """A call that is still in flight when the drain ends gets SHUTTING_DOWN and a retry delay, and
    so does a new one.
    """
    gate = GatedHandlers(waits_for_provider=True)
    with rpc_client(gate) as client, ThreadPoolExecutor(1) as callers:
        first = callers.submit(client.payment.CreatePayment, CREATE_REQUEST)
        assert gate.entered.acquire(timeout=10)
        client.rpc_server.close()
        asyncio.run_coroutine_threadsafe(
            client.rpc_server.wait_until_idle(0.1), client.loop
        ).result(10)
        for call in (first.result, lambda _timeout: client.payment.CreatePayment(CREATE_REQUEST)):
            with pytest.raises(TallystickError) as error:
                call(10)
            assert (error.value.reason, error.value.retry_after) == ("SHUTTING_DOWN", 0.5)
        gate.release_event.set()


def test_every_call_of_a_burst_is_answered(platform: ServedPlatform) -> None:
    """Each of thousands of concurrent calls gets an answer with a reason; none is dropped."""

    async def burst() -> Counter[str]:
        async with grpc.aio.insecure_channel(platform.address) as channel:
            stub: Any = payment_service_pb2_grpc.PaymentServiceStub(channel)
            calls = (
                stub.CreatePayment(payment_service_pb2.CreatePaymentRequest(), timeout=60)
                for _ in range(3000)
            )
            responses = await asyncio.gather(*calls, return_exceptions=True)
        return Counter(
            from_rpc(answer).reason if isinstance(answer, grpc.RpcError) else str(answer)
            for answer in responses
        )

    assert asyncio.run(burst()) == {"FIELD_REQUIRED": 3000}


def test_an_internal_error_shows_only_the_trace_id() -> None:
    """INTERNAL: no exception text, no SQL, no path; the error contains the trace id."""

    async def raise_error() -> Message:
        raise ValueError("select secret from /etc/passwd")

    with rpc_client(raise_error) as client, pytest.raises(InternalError) as error:
        client.payment.ListPayments(LIST_REQUEST)
    assert error.value.reason == "INTERNAL"
    assert "secret" not in str(error.value)
    assert list(error.value.metadata) == ["trace_id"]
    assert error.value.trace_id == error.value.metadata["trace_id"]


class _BrokenAuthentication:
    """Fails with an unexpected error."""

    def authenticate(
        self, metadata: Mapping[str, str], peer_identities: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        raise ValueError("select secret from callers")


def test_a_caller_that_cannot_be_identified_gets_an_internal_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As for any unexpected error: the caller gets the trace id, and the log has the cause."""

    async def respond() -> Message:
        raise AssertionError("nobody was identified")

    watch = payment_service_pb2.WatchPaymentRequest(checkout_id="c-1")
    with rpc_client(respond, authenticator=_BrokenAuthentication()) as client:
        for call in (
            lambda: client.payment.ListPayments(LIST_REQUEST),
            lambda: next(iter(client.payment.WatchPayment(watch))),
        ):
            with pytest.raises(InternalError) as error:
                call()
            assert error.value.reason == "INTERNAL"
            assert "secret" not in str(error.value)
            assert error.value.trace_id == error.value.metadata["trace_id"]
    records = [record for record in caplog.records if record.name == "tallystick_server.rpc.server"]
    assert ["select secret from callers" in str(record.exc_info) for record in records] == [
        True
    ] * 2


def test_a_call_past_its_deadline_is_deadline_exceeded() -> None:
    """A handler that does not finish is DEADLINE_EXCEEDED, with the hint that the same id is
    safe.
    """

    async def hangs() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("the deadline ends it")

    with rpc_client(hangs) as client, pytest.raises(DeadlineExceededError):
        client.payment.ListPayments(LIST_REQUEST, timeout=0.3)


class _DeadlineHandlers:
    """Each handler stores the seconds that its call was granted."""

    def __init__(self) -> None:
        self.granted: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        method = DESCRIPTORS["ReconciliationService"].methods_by_name[name]

        async def handle(_request: Message, call: Call) -> Message:
            self.granted[name] = call.deadline - asyncio.get_running_loop().time()
            return GetMessageClass(method.output_type)()

        return handle


def test_only_the_comparison_of_a_file_may_take_minutes() -> None:
    """A million lines take longer than the minute that any other call is granted at most."""
    handlers = _DeadlineHandlers()
    services = {"ReconciliationService": handlers}
    with (
        serve_rpc(RpcServer(NoAuthentication()), services) as (address, _),
        Client(address) as client,
    ):
        request = reconciliation_service_pb2.ReconcileStatementFileRequest()
        client.reconciliation.ReconcileStatementFile(request, timeout=3_000)
        client.reconciliation.GetBreak(reconciliation_service_pb2.GetBreakRequest(), timeout=3_000)
    assert 595 < handlers.granted["ReconcileStatementFile"] <= 600
    assert 55 < handlers.granted["GetBreak"] <= 60


def test_a_stalled_reader_does_not_keep_its_stream_open() -> None:
    """A stream whose reader reads nothing ends at its deadline like any other, with STREAM_EXPIRED,
    and its handler ends too.
    """
    stream_ended = threading.Event()

    async def endless() -> AsyncIterator[Message]:
        try:
            while True:
                yield payment_service_pb2.WatchPaymentResponse(
                    payment=payment_pb2.Payment(buyer_info="x" * 60_000)
                )
        finally:
            stream_ended.set()

    with rpc_client(endless, stream_time=0.3) as client:
        responses = iter(
            client.payment.WatchPayment(payment_service_pb2.WatchPaymentRequest(checkout_id="c"))
        )
        next(responses)
        assert stream_ended.wait(10)
        with pytest.raises(TallystickError) as error:
            list(responses)
    assert error.value.reason == "STREAM_EXPIRED"


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_a_drain_ends_streams_immediately(read: bool) -> None:
    """A drain ends an endless stream within a moment, whether its client reads or not, and releases
    its slot; a client that reads gets SHUTTING_DOWN.
    """
    stream_ended = threading.Event()

    async def endless() -> AsyncIterator[Message]:
        try:
            while True:
                yield payment_service_pb2.WatchPaymentResponse(
                    payment=payment_pb2.Payment(buyer_info="x" * 60_000)
                )
        finally:
            stream_ended.set()

    with ThreadPoolExecutor(1) as readers, rpc_client(endless) as client:
        responses = iter(
            client.payment.WatchPayment(payment_service_pb2.WatchPaymentRequest(checkout_id="c"))
        )
        next(responses)

        def drain() -> None:
            client.loop.call_soon_threadsafe(client.rpc_server.close)
            asyncio.run_coroutine_threadsafe(
                client.rpc_server.wait_until_idle(300), client.loop
            ).result(30)

        def rest() -> str:
            with pytest.raises(TallystickError) as error:
                for _ in responses:
                    pass
            assert error.value.retry_after == 0.5
            return error.value.reason

        def slots_are_free() -> bool:
            return not client.rpc_server.stream_count

        if read:
            reading = readers.submit(rest)
            drain()
            assert eventually(slots_are_free)
            reason = reading.result(30)
        else:
            drain()
            assert eventually(slots_are_free)  # before its reader continues
            reason = rest()
        assert stream_ended.wait(10)
    assert reason == "SHUTTING_DOWN"


def test_a_drain_ends_idle_streams() -> None:
    """A stream that waits for its next message ends with SHUTTING_DOWN as soon as a drain begins,
    long before its deadline.
    """
    stream_begun = threading.Event()

    async def silent() -> AsyncIterator[Message]:
        stream_begun.set()
        await asyncio.Event().wait()
        yield payment_service_pb2.WatchPaymentResponse()

    with ThreadPoolExecutor(1) as readers, rpc_client(silent) as client:
        responses = client.payment.WatchPayment(
            payment_service_pb2.WatchPaymentRequest(checkout_id="c")
        )
        reading = readers.submit(list, responses)
        assert stream_begun.wait(10)
        client.loop.call_soon_threadsafe(client.rpc_server.close)
        asyncio.run_coroutine_threadsafe(
            client.rpc_server.wait_until_idle(300), client.loop
        ).result(30)
        with pytest.raises(TallystickError) as error:
            reading.result(30)
    assert (error.value.reason, error.value.retry_after) == ("SHUTTING_DOWN", 0.5)


def test_busy_streams_do_not_starve_the_event_loop() -> None:
    """However many streams have something to send, the loop runs more often than messages are sent,
    because gRPC delivers one event per iteration.
    """
    streams, items_per_stream = 100, 10
    loop_iterations, open_counter, sent_counter = (
        itertools.count(),
        itertools.count(1),
        itertools.count(1),
    )
    all_open, streams_done, last = asyncio.Event(), threading.Event(), 0

    def count_iteration() -> None:
        nonlocal last
        last = next(loop_iterations)
        if not streams_done.is_set():
            asyncio.get_running_loop().call_soon(count_iteration)

    async def burst() -> AsyncIterator[Message]:
        if next(open_counter) == streams:
            count_iteration()
            all_open.set()
        async with asyncio.timeout(60):
            await all_open.wait()
        for _ in range(items_per_stream):
            yield payment_service_pb2.WatchPaymentResponse()
            if next(sent_counter) == streams * items_per_stream:
                streams_done.set()

    with rpc_client(burst) as client, ThreadPoolExecutor(streams) as readers:
        request = payment_service_pb2.WatchPaymentRequest(checkout_id="c")
        reading = [
            readers.submit(list, client.payment.WatchPayment(request)) for _ in range(streams)
        ]
        assert all(len(responses.result(60)) == items_per_stream for responses in reading)
    assert last > streams * items_per_stream


def test_a_reader_that_disconnects_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """When a watcher disconnects while nothing happens, the handler ends, and nothing is logged as
    failed.
    """
    stream_ended = threading.Event()

    async def silent() -> AsyncIterator[Message]:
        try:
            yield payment_service_pb2.WatchPaymentResponse()
            await asyncio.Event().wait()
        finally:
            stream_ended.set()

    with rpc_client(silent) as client:
        next(
            iter(
                client.payment.WatchPayment(
                    payment_service_pb2.WatchPaymentRequest(checkout_id="c")
                )
            )
        )
        client.close()
        assert stream_ended.wait(10)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_stalled_reader_that_disconnects_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Streams that were drained while their readers were stalled end without an error when the
    readers' connections break.
    """
    stream_ended = threading.Semaphore(0)

    async def endless() -> AsyncIterator[Message]:
        try:
            while True:
                yield payment_service_pb2.WatchPaymentResponse(
                    payment=payment_pb2.Payment(buyer_info="x" * 60_000)
                )
        finally:
            stream_ended.release()

    request = payment_service_pb2.WatchPaymentRequest(checkout_id="c")
    with rpc_client(endless) as client:
        idle = len(asyncio.all_tasks(client.loop))
        readers = [Client(client.address) for _ in range(10)]
        streams = [iter(reader.payment.WatchPayment(request)) for reader in readers]
        for stream in streams:
            next(stream)
        client.loop.call_soon_threadsafe(client.rpc_server.close)
        asyncio.run_coroutine_threadsafe(client.rpc_server.wait_until_idle(10), client.loop).result(
            30
        )
        assert all(stream_ended.acquire(timeout=30) for _ in streams)
        for reader in readers:
            reader.close()
        assert eventually(lambda: len(asyncio.all_tasks(client.loop)) <= idle, 30)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "error", [None, RuntimeError("the connection broke")], ids=["cancelled", "failed"]
)
def test_a_failed_write_to_a_stalled_reader_is_no_error(
    error: Exception | None,
) -> None:
    """When the write to a stalled reader fails, or is cancelled, its stream ends without an error,
    and only then releases its slot.
    """

    async def fail_write() -> int:
        write: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slots = Bulkhead(2, 1.0)
        slots.force_acquire("shop")
        waiting = asyncio.ensure_future(
            StreamSender(FairSemaphore(1), asyncio.Event()).wait_for_reader(write, slots, "shop")
        )
        await asyncio.sleep(0)
        assert slots.used == 0
        write.cancel() if error is None else write.set_exception(error)
        await waiting
        return slots.used

    assert asyncio.run(fail_write()) == 1


def test_a_drain_rejects_new_calls(scratch_database: DatabaseUrls) -> None:
    """SHUTTING_DOWN: a stopping process rejects new calls with a retry delay."""
    with serve_platform(scratch_database) as other_platform:
        other_platform.server.rpc_server.close()
        client = other_platform.client(tries=1)
        with client, pytest.raises(TallystickError) as error:
            client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest())
        assert error.value.reason == "SHUTTING_DOWN"
        assert error.value.may_retry
