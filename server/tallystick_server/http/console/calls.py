"""The calls of a page: those of the public API, with the token of the person."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.console.values import Values, to_values
from tallystick_server.http.errors import HTTP_STATUS_BY_CODE
from tallystick_server.http.message_decoder import decode_message
from tallystick_server.http.transcoder import DEFAULT_TIMEOUT, DEFAULT_TIMEOUTS, grpc_call
from tallystick_server.rpc.errors import to_status
from tallystick_server.rpc.grpc_status import status_of

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_UNCERTAIN_REASONS = frozenset(
    {ErrorReason.DEADLINE_EXCEEDED, ErrorReason.DEPENDENCY_UNAVAILABLE, ErrorReason.INTERNAL}
)
MAX_CALLS = 20
"""How many calls one page may make."""


class CallFailed(Exception):
    """A call that failed. `code`: of google.rpc. `text`: the error of the service, for people."""

    def __init__(self, method: str, status: status_pb2.Status) -> None:
        super().__init__(f"{method}: {status.message}")
        self.method = method
        self.code: int = status.code
        self.text: str = status.message
        self.reason = next(
            (info.reason for detail in status.details if (info := _error_info(detail))), ""
        )

    @property
    def is_missing(self) -> bool:
        """The resource does not exist, or the value is no id of one."""
        return self.code in (code_pb2.NOT_FOUND, code_pb2.INVALID_ARGUMENT)

    @property
    def rejects_token(self) -> bool:
        return bool(self.code == code_pb2.UNAUTHENTICATED)

    @property
    def is_uncertain(self) -> bool:
        """Whether the call may have changed something all the same."""
        return self.reason in _UNCERTAIN_REASONS

    @property
    def http_status(self) -> int:
        return HTTP_STATUS_BY_CODE.get(self.code, 500)


def _error_info(detail: Any) -> error_details_pb2.ErrorInfo | None:
    info = error_details_pb2.ErrorInfo()
    return info if detail.Unpack(info) else None


@dataclass(frozen=True, slots=True)
class Result:
    """The response of a call that a page can do without, or its error."""

    values: Values
    error: CallFailed | None = None


class PublicCalls:
    """The calls that have an HTTP rule. `channels`: by the full name of the service."""

    def __init__(
        self, methods: Iterable[MethodDescriptor], channels: Mapping[str, grpc.aio.Channel]
    ) -> None:
        self._calls = {
            _key(method): (method, grpc_call(channels[method.containing_service.full_name], method))
            for method in methods
            if not method.server_streaming
        }

    def method(self, name: str) -> MethodDescriptor:
        """The method of a name such as payment.GetPayment."""
        return self._calls[name][0]

    def services_with(self, method: str) -> list[str]:
        """The services that have a method of this name, such as ListAlerts."""
        parts = (name.split(".") for name in self._calls)
        return [service for service, name in parts if name == method]

    def full_names(self) -> dict[str, str]:
        """The name of each method in metrics and spans, by its name here."""
        return {
            name: f"{method.containing_service.full_name}/{method.name}"
            for name, (method, _) in self._calls.items()
        }

    async def send(self, name: str, message: Message, token: str) -> Message:
        """Makes a call. Raises CallFailed."""
        method, call = self._calls[name]
        metadata = [("authorization", f"Bearer {token}")] if token else []
        timeout = DEFAULT_TIMEOUTS.get(method.name, DEFAULT_TIMEOUT)
        try:
            response: Message = await call(message, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(name, status_of(error)) from None
        return response


def _key(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name.split('.')[1]}.{method.name}"


def _to_json(value: Any, *, is_int32: bool) -> Any:
    """The value of a field. In JSON a 32-bit number is no text, as it is in forms and paths."""
    is_number = is_int32 and isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)
    return int(value) if is_number else value


class PageCalls:
    """The calls of one page, at most `limit`."""

    def __init__(self, calls: PublicCalls, token: str, limit: int = MAX_CALLS) -> None:
        self._calls = calls
        self._token = token
        self._limit = limit
        self._count = 0

    def with_limit(self, limit: int) -> PageCalls:
        """The calls of an act that needs more than those of a page."""
        return PageCalls(self._calls, self._token, limit)

    async def call(self, name: str, /, **fields: Any) -> Values:
        """Makes a call such as payment.GetPayment, with fields in the JSON of the API or as texts
        of a form; empty ones are left out. Raises CallFailed, also for a field that is invalid.
        """
        message = GetMessageClass(self._calls.method(name).input_type)()
        fields_by_name = message.DESCRIPTOR.fields_by_name
        values = {
            key: _to_json(
                value, is_int32=fields_by_name[key].cpp_type == FieldDescriptor.CPPTYPE_INT32
            )
            for key, value in fields.items()
            if value not in (None, "")
        }
        try:
            decode_message(message, values)
        except ApiError as error:
            raise CallFailed(name, to_status(error)) from None
        return to_values(await self.send(name, message))

    async def send(self, name: str, message: Message) -> Message:
        """As `call`, with a message, and returns one."""
        self._count += 1
        if self._count > self._limit:
            raise RuntimeError(f"a page must make at most {self._limit} calls")
        return await self._calls.send(name, message, self._token)

    def services_with(self, method: str) -> list[str]:
        """The services that have a method of this name, such as ListAlerts."""
        return self._calls.services_with(method)

    def full_names(self) -> dict[str, str]:
        """The name of each method in metrics and spans, by its name such as payment.GetPayment."""
        return self._calls.full_names()

    async def attempt(self, name: str, /, **fields: Any) -> Result:
        """As `call`, for a part of a page that others do not need. Raises CallFailed only if the
        token is rejected.
        """
        try:
            return Result(await self.call(name, **fields))
        except CallFailed as error:
            if error.rejects_token:
                raise
            return Result({}, error)


async def gather_results(
    *calls: Awaitable[Result], max_concurrent: int = MAX_CALLS
) -> list[Result]:
    """The results of calls, in their order. Up to `max_concurrent` are made at the same time."""
    semaphore = asyncio.Semaphore(max_concurrent)

    async def make(call: Awaitable[Result]) -> Result:
        async with semaphore:
            return await call

    return list(await asyncio.gather(*map(make, calls)))
