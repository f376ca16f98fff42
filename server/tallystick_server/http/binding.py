"""Makes the request of a call from path, query, body and headers, as `google.api.http` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError
from tallystick_server.http.field_types import INTEGER_RANGES
from tallystick_server.http.http_rules import HttpRule
from tallystick_server.http.json_reader import read_object
from tallystick_server.http.message_decoder import decode_message, invalid, unknown_field
from tallystick_server.http.request import Request

IDEMPOTENCY_KEY, LAST_EVENT_ID = "Idempotency-Key", "Last-Event-ID"
_MAX_QUERY_FIELDS = 200
_MAX_PAGE_SIZE = 2**31 - 1  # the service reduces it further
_DIGITS = re.compile(r"-?[0-9]{1,40}", re.ASCII)


class RequestBinder:
    """Binds the requests of one call."""

    def __init__(self, rule: HttpRule) -> None:
        self._rule = rule
        self._request_type: type[Message] = GetMessageClass(rule.method.input_type)
        self._query_fields = {
            alias: (name, field)
            for name, field in rule.query_fields.items()
            for alias in (name, _json_path(name))
        }
        self._path_names = {
            alias: name
            for name in rule.path_fields
            for alias in (name, rule.method.input_type.fields_by_name[name].json_name)
        }
        self._key_field = rule.key_field
        self._cursor_field = rule.cursor[0] if rule.cursor else ""
        # fails at the start for a message that has no JSON
        decode_message(self._request_type(), {})

    async def bind(self, request: Request) -> Message:
        """The request's message. Raises HttpError, or ApiError with the path of the field."""
        values = self._read_query(request.http.rel_url.raw_query_string)
        if self._rule.has_body:
            values.update(await self._read_body(request))
        elif request.http.body_exists:
            raise ApiError(
                ErrorReason.MESSAGE_MALFORMED, "This call has no body: use the query instead."
            )
        values.update(request.variables)
        headers = request.http.headers
        if not self._rule.is_read and IDEMPOTENCY_KEY in headers:
            self._apply_key(values, headers[IDEMPOTENCY_KEY])
        message = self._request_type()
        decode_message(message, values)
        if self._cursor_field and LAST_EVENT_ID in headers:
            # after a reconnection, whose query still has the cursor of the first request
            decode_message(message, {self._cursor_field: headers[LAST_EVENT_ID]})
        return message

    async def _read_body(self, request: Request) -> Mapping[str, Any]:
        body = await request.read_body()
        if body and request.http.content_type != "application/json":
            raise HttpError(
                ApiError(
                    ErrorReason.MESSAGE_MALFORMED,
                    "The body must be JSON: send the header Content-Type: application/json.",
                ),
                415,
            )
        values = read_object(body)
        request.release_body()
        for key in values.keys() & self._path_names.keys():
            raise invalid(self._path_names[key], "is in the path: leave it out of the body")
        return values

    def _read_query(self, query: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if not query:
            return values
        pairs = query.split("&")
        if len(pairs) > _MAX_QUERY_FIELDS:
            raise ApiError(
                ErrorReason.TOO_MANY_ITEMS,
                f"The query must have at most {_MAX_QUERY_FIELDS} fields.",
            )
        for pair in filter(None, pairs):
            key, _, text = pair.partition("=")
            name, field = self._find_query_field(_decode_part(key, "The query"))
            _put(values, name, field, _decode_part(text, name))
        return values

    def _find_query_field(self, key: str) -> tuple[str, FieldDescriptor]:
        if key in self._query_fields:
            return self._query_fields[key]
        if self._rule.has_body:
            raise ApiError(
                ErrorReason.FIELD_INVALID, "This call has no query: put its fields into the body."
            )
        raise unknown_field("", key)

    def _apply_key(self, values: dict[str, Any], key: str) -> None:
        """Compares an Idempotency-Key with the id of the call, or fills the request_id."""
        field = self._key_field
        if not field:
            raise invalid(IDEMPOTENCY_KEY, "must be absent: this call can be repeated without it")
        if field == "request_id":
            values.setdefault(field, key)
        if values.get(field) != key:
            raise ApiError(
                ErrorReason.FIELD_INVALID,
                f"{field} must equal the header {IDEMPOTENCY_KEY}; it is the idempotency key.",
                field=field,
            )


def _json_path(path: str) -> str:
    """A path in the spelling of JSON: filter.aCause for filter.a_cause."""
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), path)


def _decode_part(text: str, name: str) -> str:
    """Decodes a part of a query: of a form, in which + is a space."""
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise ApiError(ErrorReason.MESSAGE_MALFORMED, f"{name} must be UTF-8.") from None


def _put(values: dict[str, Any], path: str, field: FieldDescriptor, text: str) -> None:
    """Puts a value of a query at its path. A repeated field may be there several times."""
    *parents, name = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    value: Any = text
    if field.type == FieldDescriptor.TYPE_BOOL:
        value = {"true": True, "false": False}.get(text, text)
    elif field.type in INTEGER_RANGES and _DIGITS.fullmatch(text):
        value = min(int(text), _MAX_PAGE_SIZE) if name == "page_size" else int(text)
    if field.is_repeated:
        values.setdefault(name, []).append(value)
    elif name in values:
        raise invalid(path, "must be in the query once")
    else:
        values[name] = value
