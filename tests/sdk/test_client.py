"""The SDK against a server that misbehaves, and its examples against the platform."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any

import grpc
import pytest

from tallystick import (
    AsyncClient,
    Client,
    ClientSettings,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    TallystickError,
    UnavailableError,
    new_order,
)
from tallystick._settings import CHANNEL_OPTIONS, CONCLUSIVE_REASONS, NOT_STARTED_REASONS
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import SERVICES
from tallystick_server.rpc.errors import CODE_BY_REASON, to_status
from tallystick_server.rpc.service_client import SERVICE_CHANNEL_OPTIONS
from tests.support.platform import (
    ROOT,
    ServedPlatform,
    eventually,
    free_address,
    serve_platform,
    unique_id,
)


class ScriptedPaymentService(payment_service_pb2_grpc.PaymentServiceServicer):
    """Answers GetPayment by a script: errors and lost answers, then the payment. Its streams send
    the versions 1 to 6, or nothing.
    """

    def __init__(self) -> None:
        self.script: list[ApiError | str] = []
        self.calls: list[dict[str, str]] = []
        self.hang_after_calls: int | None = None
        self.stop_event = threading.Event()
        self.opened_after_versions: list[int] = []
        """The version after which each stream was opened."""
        self.silent_streams = 0
        """The number of next streams that send nothing."""
        self.stream_error: ApiError | None = None
        """The status with which every stream ends immediately."""
        self.ended_streams = threading.Semaphore(0)
        """Released by each stream that ends."""

    def WatchPayment(self, request: Any, context: grpc.ServicerContext) -> Any:
        stream_ended = threading.Event()

        def on_end() -> None:
            stream_ended.set()
            self.ended_streams.release()

        context.add_callback(on_end)
        self.opened_after_versions.append(request.after_version)
        if self.stream_error is not None:
            _abort(context, self.stream_error)
        if self.silent_streams:
            self.silent_streams -= 1
            stream_ended.wait(30)
            return
        for version in range(request.after_version + 1, 7):
            yield payment_service_pb2.WatchPaymentResponse(
                payment=payment_pb2.Payment(version=version)
            )
        if request.checkout_id == "open" and request.after_version < 2:
            stream_ended.wait(30)

    def GetPayment(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append(dict(context.invocation_metadata()))  # type: ignore[arg-type]
        if self.hang_after_calls is not None and len(self.calls) > self.hang_after_calls:
            self.stop_event.wait(30)
        if self.script:
            error = self.script.pop(0)
            if isinstance(error, str):  # as if the connection broke
                context.abort(grpc.StatusCode.UNAVAILABLE, error)
            _abort(context, error)
        return payment_service_pb2.GetPaymentResponse(
            payment=payment_pb2.Payment(checkout_id=request.checkout_id)
        )


def _abort(context: grpc.ServicerContext, error: ApiError) -> None:
    """Ends a call with an error."""
    context.set_trailing_metadata(
        (
            ("grpc-status-details-bin", to_status(error).SerializeToString()),
            ("tallystick-trace-id", "abc"),
        )
    )
    context.abort(CODE_BY_REASON[error.reason], error.message)


@contextmanager
def serve_scripted(address: str) -> Iterator[ScriptedPaymentService]:
    """A server at an address."""
    server, servicer = grpc.server(ThreadPoolExecutor(4)), ScriptedPaymentService()  # type: ignore[abstract]
    payment_service_pb2_grpc.add_PaymentServiceServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    server.start()
    try:
        yield servicer
    finally:
        servicer.stop_event.set()
        server.stop(None)


@pytest.fixture
def scripted_server() -> Iterator[tuple[ScriptedPaymentService, str]]:
    address = free_address()
    with serve_scripted(address) as servicer:
        yield servicer, address


def call_variants(address: str, **settings: Any) -> list[Any]:
    """GetPayment by the sync and by the asyncio client, as callables."""
    client_settings = ClientSettings(**{"jitter": lambda: 0.0, **settings})

    def sync() -> Any:
        with Client(address, settings=client_settings) as client:
            return client.get_payment("c")

    def async_() -> Any:
        async def call() -> Any:
            async with AsyncClient(address, settings=client_settings) as client:
                return await client.get_payment("c")

        return asyncio.run(call())

    return [sync, async_]


def test_client_settings_do_not_show_the_token() -> None:
    """The repr of the settings, which a traceback or a log may show, excludes the bearer token."""
    text = repr(ClientSettings(token="secret-token", tries=7))
    assert "secret" not in text
    assert "tries=7" in text


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_rejections_with_retry_info_are_retried(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """The platform sends a retry delay, and the SDK retries after it, with the same request and
    page token.
    """
    servicer, address = scripted_server
    servicer.script = [
        ApiError(ErrorReason.OVERLOADED, "x", retry_after=0.01),
        ApiError(ErrorReason.KEY_IN_USE, "x", retry_after=0.01),
    ]
    assert call_variants(address, token="secret-token")[kind]().checkout_id == "c"
    assert len(servicer.calls) == 3
    assert {call["authorization"] for call in servicer.calls} == {"Bearer secret-token"}


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_permanent_errors_are_not_retried(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """A permanent error is raised immediately, as its own class with all details."""
    servicer, address = scripted_server
    servicer.script = [ApiError(ErrorReason.FIELD_INVALID, "fix it", field="a.b")]
    with pytest.raises(InvalidArgumentError) as error:
        call_variants(address)[kind]()
    assert (error.value.reason, error.value.field_violations[0].field, error.value.trace_id) == (
        "FIELD_INVALID",
        "a.b",
        "abc",
    )
    assert len(servicer.calls) == 1


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_deadline_error_has_the_last_rejection(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int, hangs: bool
) -> None:
    """When a call is rejected until its deadline, the error has the last rejection's reason and
    details and the number of tries. If the last try got no answer it may have taken effect:
    the error is that of the deadline. It then names only the earlier rejection's reason, because
    its text may be misleading.
    """
    servicer, address = scripted_server
    wrong = "The wallet does not answer. Nothing was stored."
    servicer.script = [
        ApiError(
            ErrorReason.DEPENDENCY_UNAVAILABLE,
            wrong,
            metadata={"service": "wallet"},
            retry_after=0.01,
        )
        for _ in range(3)
    ]
    if hangs:
        servicer.hang_after_calls = 3
    else:
        servicer.script.append(
            ApiError(
                ErrorReason.DEPENDENCY_UNAVAILABLE,
                wrong,
                metadata={"service": "wallet"},
                retry_after=60,
            )
        )
    with pytest.raises(
        DeadlineExceededError if hangs else UnavailableError, match="4 tries"
    ) as error:
        call_variants(address, deadlines={"GetPayment": 3.0})[kind]()
    assert len(servicer.calls) == 4
    if hangs:
        assert (error.value.reason, error.value.metadata, error.value.retry_after) == (
            "DEADLINE_EXCEEDED",
            {},
            None,
        )
        assert "the outcome is not known" in str(error.value)
        assert "DEPENDENCY_UNAVAILABLE" in str(error.value)
        assert "stored" not in str(error.value)
    rejection = error.value.__cause__ if hangs else error.value
    assert isinstance(rejection, UnavailableError)
    assert (rejection.reason, rejection.metadata, rejection.trace_id) == (
        "DEPENDENCY_UNAVAILABLE",
        {"service": "wallet"},
        "abc",
    )
    assert rejection.message.startswith(wrong)
    assert rejection.retry_after is not None


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_a_call_without_an_answer_has_the_deadline_reason(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """The error of a call whose only try got no answer has the reason of the deadline too, as
    after earlier rejections.
    """
    servicer, address = scripted_server
    servicer.hang_after_calls = 0
    with pytest.raises(DeadlineExceededError) as error:
        call_variants(address, deadlines={"GetPayment": 1.0})[kind]()
    assert (error.value.reason, error.value.__cause__) == ("DEADLINE_EXCEEDED", None)
    assert "the outcome is not known" in str(error.value)


OVERLOADED_MESSAGE = "Too many operations; nothing was stored."


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
@pytest.mark.parametrize(
    "lost",
    [
        "Socket closed",
        ApiError(
            ErrorReason.SHUTTING_DOWN, "The process is shutting down; retry.", retry_after=0.01
        ),
    ],
    ids=["", "stopped"],
)
def test_a_temporary_rejection_does_not_hide_a_lost_attempt(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int, lost: ApiError | str
) -> None:
    """After a try with an unknown outcome a rejection such as "nothing was stored" is not
    raised as the call's error: the outcome is unknown.
    """
    servicer, address = scripted_server
    servicer.script = [lost, ApiError(ErrorReason.OVERLOADED, OVERLOADED_MESSAGE, retry_after=60)]
    with pytest.raises(DeadlineExceededError, match="the outcome is not known") as error:
        call_variants(address)[kind]()
    assert error.value.reason == "DEADLINE_EXCEEDED"
    assert "stored" not in str(error.value)
    assert isinstance(error.value.__cause__, UnavailableError)
    assert error.value.__cause__.reason == "OVERLOADED"


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
@pytest.mark.parametrize(
    ("first", "reason", "doubt"),
    [
        ("Socket closed", ErrorReason.INVALID_STATE, True),
        ("Socket closed", ErrorReason.NOT_FOUND, True),
        ("Socket closed", ErrorReason.FIELD_INVALID, True),
        ("Socket closed", ErrorReason.IDEMPOTENCY_KEY_REUSED, False),
        ("Socket closed", ErrorReason.CARD_NUMBER_REJECTED, False),
        (
            ApiError(ErrorReason.KEY_IN_USE, "in use", retry_after=0.01),
            ErrorReason.INSUFFICIENT_FUNDS,
            True,
        ),
        (
            ApiError(ErrorReason.OVERLOADED, OVERLOADED_MESSAGE, retry_after=0.01),
            ErrorReason.INVALID_STATE,
            False,
        ),
    ],
)
def test_a_permanent_rejection_names_an_earlier_lost_attempt(
    scripted_server: tuple[ScriptedPaymentService, str],
    kind: int,
    first: ApiError | str,
    reason: ErrorReason,
    doubt: bool,
) -> None:
    """A permanent rejection keeps its reason. It says that an earlier try's outcome is unknown,
    unless the request would be rejected in any case.
    """
    servicer, address = scripted_server
    servicer.script = [first, ApiError(reason, "no")]
    with pytest.raises(TallystickError) as error:
        call_variants(address)[kind]()
    assert error.value.reason == reason
    assert ("the outcome of an earlier one is not known" in error.value.message) == doubt
    assert error.value.message.startswith("no")


def test_the_sdk_rules_use_reasons_of_the_contract() -> None:
    """The SDK's rule for lost tries names only reasons of the platform, and none of them is of
    two kinds.
    """
    assert set(ErrorReason) >= CONCLUSIVE_REASONS | NOT_STARTED_REASONS
    assert not CONCLUSIVE_REASONS & NOT_STARTED_REASONS


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_a_slow_reader_loses_nothing(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """A stream whose deadline passes while its reader is busy, or while nothing happens, resumes at
    its position, without loss or repetition.
    """
    servicer, address = scripted_server
    servicer.silent_streams = 4
    settings = ClientSettings(stream_seconds=0.5, stream_tries=2)

    def busy(version: int) -> int:
        if version == 2:
            while servicer.ended_streams.acquire(blocking=False):  # of earlier streams
                pass
            assert servicer.ended_streams.acquire(timeout=30)
        return version

    def sync() -> list[int]:
        with Client(address, settings=settings) as client:
            return [busy(payment.version) for payment in client.watch_payment("open")]

    async def async_() -> list[int]:
        async with AsyncClient(address, settings=settings) as client:
            return [
                await asyncio.to_thread(busy, payment.version)
                async for payment in client.watch_payment("open")
            ]

    assert (asyncio.run(async_()) if kind else sync()) == [1, 2, 3, 4, 5, 6]
    assert servicer.opened_after_versions[:5] == [0, 0, 0, 0, 0]
    assert servicer.opened_after_versions[5] in (2, 3)


def test_a_timed_out_wait_closes_its_stream(
    scripted_server: tuple[ScriptedPaymentService, str],
) -> None:
    """When wait_for_payment times out, its stream ends too, even while the error is kept; an
    iterator that is closed early ends its stream too.
    """
    servicer, address = scripted_server

    async def calls() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(DeadlineExceededError) as error:
                await client.wait_for_payment("open", 0.5)
            assert await asyncio.to_thread(servicer.ended_streams.acquire, timeout=10)
            versions = client.watch_payment("open")
            assert (await anext(versions)).version == 1
            await versions.aclose()
            assert await asyncio.to_thread(servicer.ended_streams.acquire, timeout=10)
            assert "not final" in str(error.value)

    asyncio.run(calls())
    with Client(address) as client:
        versions = client.watch_payment("open")
        assert next(versions).version == 1
        versions.close()
        assert servicer.ended_streams.acquire(timeout=10)


@pytest.mark.parametrize("waits", [False, True], ids=["in flight", "between tries"])
def test_closing_a_client_ends_its_calls(
    scripted_server: tuple[ScriptedPaymentService, str], waits: bool
) -> None:
    """When the client is closed, a call in flight or waiting for a retry ends immediately with
    TallystickError, never as a cancelled task.
    """
    servicer, address = scripted_server
    settings = ClientSettings(deadlines={"GetPayment": 300.0})

    def prepare() -> None:
        servicer.calls.clear()
        servicer.hang_after_calls = None if waits else 0
        servicer.script = [ApiError(ErrorReason.OVERLOADED, "x", retry_after=100)] if waits else []

    prepare()
    with ThreadPoolExecutor(1) as callers, Client(address, settings=settings) as client:
        call = callers.submit(client.get_payment, "c")
        assert eventually(lambda: servicer.calls)
        client.close()
        with pytest.raises(TallystickError, match="the client is closed"):
            call.result(30)

    async def calls() -> None:
        other_client = AsyncClient(address, settings=settings)
        task = asyncio.ensure_future(other_client.get_payment("c"))
        assert await asyncio.to_thread(eventually, lambda: servicer.calls)
        await other_client.close()
        with pytest.raises(TallystickError, match="the client is closed"):
            await asyncio.wait_for(task, 30)

    prepare()
    asyncio.run(calls())


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_closing_a_client_ends_its_streams(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """When the client is closed, a stream that waits to be reopened ends immediately with
    TallystickError.
    """
    servicer, address = scripted_server
    servicer.stream_error = ApiError(ErrorReason.OVERLOADED, "x", retry_after=100)

    async def calls() -> None:
        client = AsyncClient(address)
        version = asyncio.ensure_future(anext(client.watch_payment("c")))
        assert await asyncio.to_thread(eventually, lambda: servicer.opened_after_versions)
        await asyncio.to_thread(servicer.ended_streams.acquire, timeout=30)
        await client.close()
        with pytest.raises(TallystickError, match="the client is closed"):
            await asyncio.wait_for(version, 30)

    if kind:
        asyncio.run(calls())
        return
    with ThreadPoolExecutor(1) as callers, Client(address) as client:
        version = callers.submit(next, client.watch_payment("c"))
        assert servicer.ended_streams.acquire(timeout=30)
        client.close()
        with pytest.raises(TallystickError, match="the client is closed"):
            version.result(30)


def test_closing_an_asyncio_client_requires_its_event_loop(
    scripted_server: tuple[ScriptedPaymentService, str],
) -> None:
    """Closing an asyncio client in another event loop than that of its calls is a TallystickError
    that says so; it works once that loop is closed.
    """
    _, address = scripted_server
    client = AsyncClient(address)

    async def calls() -> None:
        await client.get_payment("c")
        with pytest.raises(TallystickError, match="close it there"):
            await asyncio.to_thread(asyncio.run, client.close())
        assert (await client.get_payment("c")).checkout_id == "c"

    asyncio.run(calls())
    asyncio.run(client.close())


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
@pytest.mark.parametrize("reason", [ErrorReason.DEADLINE_EXCEEDED, ErrorReason.STREAM_EXPIRED])
def test_reopening_a_stream_is_bounded(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int, reason: ErrorReason
) -> None:
    """If an address ends every stream immediately, as if its deadline had passed, the SDK opens
    `stream_tries` streams; then their error is raised.
    """
    servicer, address = scripted_server
    servicer.stream_error = ApiError(
        reason, "x", retry_after=0.01 if reason is ErrorReason.STREAM_EXPIRED else None
    )
    settings = ClientSettings(stream_tries=4, jitter=lambda: 0.0)

    async def calls() -> None:
        async with AsyncClient(address, settings=settings) as client:
            await asyncio.wait_for(anext(client.watch_payment("c")), 30)

    with pytest.raises(TallystickError) as error:
        if kind:
            asyncio.run(calls())
        else:
            with Client(address, settings=settings) as client:
                next(client.watch_payment("c"))
    assert error.value.reason == reason
    assert len(servicer.opened_after_versions) == 4


def test_cancelling_a_task_cancels_its_call(
    scripted_server: tuple[ScriptedPaymentService, str],
) -> None:
    """Cancelling a task cancels its call, in flight or between two tries, and raises
    CancelledError; nothing is sent after it.
    """
    servicer, address = scripted_server
    servicer.script = [ApiError(ErrorReason.OVERLOADED, "x", retry_after=1)]

    async def calls() -> None:
        async with AsyncClient(address) as client:
            task = asyncio.ensure_future(client.get_payment("c"))
            assert await asyncio.to_thread(eventually, lambda: servicer.calls)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.get_payment("d")).checkout_id == "d"

    asyncio.run(calls())
    assert len(servicer.calls) == 2


def test_an_asyncio_client_belongs_to_one_event_loop(
    scripted_server: tuple[ScriptedPaymentService, str],
) -> None:
    """A client that is created outside of any event loop works in the first that uses it; a call in
    another is a TallystickError that says so.
    """
    _, address = scripted_server
    client = AsyncClient(address)

    async def call() -> str:
        return (await client.get_payment("c")).checkout_id

    assert asyncio.run(call()) == "c"
    for use in (call, lambda: anext(client.watch_payment("c"))):

        async def use_again(use: Any = use) -> None:
            await use()

        with pytest.raises(TallystickError, match="another event loop"):
            asyncio.run(use_again())


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_retries_are_bounded(
    scripted_server: tuple[ScriptedPaymentService, str], kind: int
) -> None:
    """After the maximum number of tries the last rejection is raised; a retry beyond the
    deadline is not awaited.
    """
    servicer, address = scripted_server
    servicer.script = [ApiError(ErrorReason.OVERLOADED, "x", retry_after=0.01) for _ in range(9)]
    with pytest.raises(UnavailableError):
        call_variants(address, tries=3)[kind]()
    assert len(servicer.calls) == 3
    servicer.script = [ApiError(ErrorReason.OVERLOADED, "x", retry_after=60)]
    with pytest.raises(UnavailableError) as error:
        call_variants(address, deadlines={"GetPayment": 1.0})[kind]()
    assert error.value.retry_after == 60
    assert len(servicer.calls) == 4


@pytest.mark.parametrize("tries", [1, 6, 7, 1_024, 1_025, 1_080, 10**9])
def test_retry_waits_are_bounded(tries: int) -> None:
    """The wait before the next try doubles up to 2 s and stays there: no number of tries
    makes it an error, or longer.
    """
    settings = ClientSettings(jitter=lambda: 0.0, stream_tries=10**9)
    assert settings.wait(UnavailableError("away"), tries) == min(
        0.05 * 2 ** min(tries - 1, 10), 2.0
    )


@pytest.mark.parametrize("kind", [0, 1], ids=["sync", "asyncio"])
def test_a_server_restart_within_the_deadline_is_hidden(kind: int) -> None:
    """A call whose server is down at first is retried until its deadline, not only a few times, and
    is answered once the server is up.
    """
    address, tries = free_address(), threading.Semaphore(0)

    def jitter() -> float:
        tries.release()
        return 0.0

    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(
            call_variants(address, deadlines={"GetPayment": 60.0}, jitter=jitter)[kind]
        )
        for _ in range(7):  # by then more than 3 s have passed
            assert tries.acquire(timeout=30)
        with serve_scripted(address):
            assert call.result(60).checkout_id == "c"


def test_a_client_uses_every_process_behind_its_target() -> None:
    """Calls of one client rotate over all addresses of its target."""
    addresses = [free_address(), free_address()]
    with (
        serve_scripted(addresses[0]) as first_service,
        serve_scripted(addresses[1]) as other_service,
        Client(f"ipv4:{','.join(addresses)}") as client,
    ):
        assert eventually(
            lambda: (
                client.get_payment("c").checkout_id and first_service.calls and other_service.calls
            )
        )


def test_a_channel_connects_again_soon() -> None:
    """However often a connection has failed, the next try is about 2 s later, for the SDK and
    for internal clients.
    """

    def gaps(open_channel: Callable[[str], grpc.Channel]) -> list[float]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(30)
            channel = open_channel(f"127.0.0.1:{listener.getsockname()[1]}")
            channel.subscribe(lambda _state: None, try_to_connect=True)
            times = []
            for _ in range(8):
                listener.accept()[0].close()
                times.append(time.monotonic())
            channel.close()
        return [later - earlier for earlier, later in pairwise(times)]

    def as_services(address: str) -> grpc.Channel:
        return grpc.insecure_channel(address, SERVICE_CHANNEL_OPTIONS)

    def as_client(address: str) -> grpc.Channel:
        return grpc.insecure_channel(address, CHANNEL_OPTIONS)

    with ThreadPoolExecutor(2) as threads:
        for gap_count in threads.map(gaps, (as_services, as_client)):
            assert max(gap_count) < 5, gap_count  # gRPC's own wait would be more than 10 s


def test_an_unreachable_platform_is_unavailable() -> None:
    """An unreachable platform is UnavailableError, within the deadline."""
    for call in call_variants(free_address(), deadlines={"GetPayment": 0.5}, tries=2):
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            call()


def test_a_read_that_reaches_nobody_has_no_doubtful_outcome() -> None:
    """A read has no effect, so its error does not speak of an outcome; that of a write does."""
    settings = ClientSettings(tries=2)
    with Client(free_address(), settings=settings) as client:
        with pytest.raises(UnavailableError, match=r"\(after 2 tries\)$"):
            client.get_payment("c-1")
        with pytest.raises(UnavailableError, match="after 2 tries; .* outcome is not known"):
            client.create_payment("c-1", [], credit_card_info="tok_visa")


@pytest.mark.parametrize(
    "token", ["secret\n", "se\ncret", "sécret", "secret ", "sec\0ret", "сервис"]
)
def test_an_invalid_token_is_a_value_error(token: str) -> None:
    """A token that no header can contain is a ValueError that names the token setting and does not
    show its value, before any call is made.
    """
    with pytest.raises(ValueError, match="^token ") as error:
        ClientSettings(token=token)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("timeout", "metadata", "named"),
    [
        (0.0, (), "timeout"),
        (float("nan"), (), "timeout"),
        (float("inf"), (), "timeout"),
        (5.0, (("a", "b\n"),), "metadata a"),
        (5.0, (("A", "b"),), "metadata"),
        (5.0, (("grpc-x", "b"),), "metadata"),
        (5.0, (("a-bin", "b"),), "metadata a-bin"),
    ],
)
def test_invalid_call_options_are_value_errors(
    scripted_server: tuple[ScriptedPaymentService, str], timeout: float, metadata: Any, named: str
) -> None:
    """A timeout or metadata that cannot be sent is a ValueError that names it, in both clients, and
    nothing is sent.
    """
    servicer, address = scripted_server
    request = payment_service_pb2.GetPaymentRequest(checkout_id="c")
    with Client(address) as client, pytest.raises(ValueError, match=named):
        client.payment.GetPayment(request, timeout=timeout, metadata=metadata)

    async def call() -> None:
        async with AsyncClient(address) as client:
            await client.payment.GetPayment(request, timeout=timeout, metadata=metadata)

    with pytest.raises(ValueError, match=named):
        asyncio.run(call())
    assert servicer.calls == []


def test_calls_of_a_closed_client_raise_an_sdk_error(
    scripted_server: tuple[ScriptedPaymentService, str],
) -> None:
    """A call or stream of a closed client is a TallystickError in both clients, never one of gRPC's
    own exceptions.
    """
    _, address = scripted_server
    client = Client(address)
    client.close()
    for use in (lambda: client.get_payment("c"), lambda: list(client.watch_payment("c"))):
        with pytest.raises(TallystickError, match="the client is closed"):
            use()

    async def calls() -> None:
        other_client = AsyncClient(address)
        await other_client.close()
        with pytest.raises(TallystickError, match="the client is closed"):
            await other_client.get_payment("c")
        with pytest.raises(TallystickError, match="the client is closed"):
            [payment async for payment in other_client.watch_payment("c")]

    asyncio.run(calls())


@pytest.mark.parametrize("amount", [1.5, 1, None])
def test_money_is_text_or_decimal(amount: object) -> None:
    """Floating point numbers, and all other types except text and Decimal, are rejected before
    sending.
    """
    with pytest.raises(TypeError, match="str or a Decimal"):
        new_order("o", "b", "s", amount, "EUR")  # type: ignore[arg-type]
    assert new_order("o", "b", "s", Decimal("1E+3"), "EUR").amount == "1000"
    with pytest.raises(ValueError, match="finite"):
        new_order("o", "b", "s", Decimal("NaN"), "EUR")


def test_waiting_for_a_payment_is_bounded(platform: ServedPlatform) -> None:
    """wait_for_payment returns the final payment or raises DeadlineExceededError; a missing payment
    is NOT_FOUND.
    """
    checkout = unique_id("c")
    with platform.client() as client:
        client.create_payment(
            checkout,
            [new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")],
            credit_card_info="tok_pending",
        )
        with pytest.raises(DeadlineExceededError):
            client.wait_for_payment(checkout, 0.5)
        with pytest.raises(NotFoundError):
            client.wait_for_payment(unique_id("c"), 5)


@pytest.mark.parametrize(
    "example", sorted(p.name for p in (ROOT / "clients/python/examples").glob("*.py"))
)
def test_the_examples_run(platform: ServedPlatform, example: str) -> None:
    """Each example runs unchanged against the platform, and prints something."""
    path = ROOT / "clients/python/examples" / example
    completed = subprocess.run(
        [sys.executable, str(path), platform.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout


def test_the_payout_example_runs_with_a_release_delay(
    scratch_database: DatabaseUrls,
) -> None:
    """The payout example runs against a platform like the demo's, on which sales are pending until
    they are delivered.
    """
    with serve_platform(
        scratch_database, Settings().replace(release_delay=604_800, payout__destination_cooldown=0)
    ) as platform:
        test_the_examples_run(platform, "pay_a_seller.py")


@pytest.mark.parametrize("client_class", [Client, AsyncClient])
def test_a_client_has_a_stub_of_each_service(client_class: type[Client | AsyncClient]) -> None:
    """A client has a stub of every service of the platform. A target of an unknown service is an
    error, and not ignored.
    """
    client = client_class("127.0.0.1:1", ledger="127.0.0.1:2")
    for spec in SERVICES:
        for method in spec.descriptor.methods:
            assert hasattr(getattr(client, spec.name), method.name)
    with pytest.raises(TypeError, match="There is no service ledgr"):
        client_class("127.0.0.1:1", ledgr="127.0.0.1:2")  # type: ignore[call-arg]
