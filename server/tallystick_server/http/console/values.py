"""Messages as plain values for templates."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tallystick_server.http.field_types import (
    ANY,
    DURATION,
    STATUS,
    TIMESTAMP,
    enum_type_of,
    is_map,
)

Values = dict[str, Any]
"""The fields of a message by name: text, numbers, booleans, bytes in hexadecimal, times in UTC,
enum values without their prefix ("" for UNSPECIFIED), lists, maps as dictionaries, the message of a
google.rpc.Status, and Values of other messages (None: unset).
"""


def to_values(message: Message) -> Values:
    """All fields of a message."""
    return {
        field.name: _field_value(message, field)  # type: ignore[arg-type]
        for field in message.DESCRIPTOR.fields
        if field.message_type is None or field.message_type.full_name != ANY
    }


def _field_value(message: Message, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    if is_map(field):
        return dict(value)
    if field.is_repeated:
        return [_plain(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _plain(value, field)


def _plain(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == TIMESTAMP:
            return value.ToDatetime(tzinfo=UTC)
        if field.message_type.full_name == DURATION:
            return value.ToJsonString()
        if field.message_type.full_name == STATUS:
            return value
        return to_values(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return enum_name(field, value)
    return value.hex() if isinstance(value, bytes) else value


def enum_name(field: FieldDescriptor, number: int) -> str:
    """The name of an enum value without its prefix, such as OPEN; "" for UNSPECIFIED."""
    values = enum_type_of(field).values_by_number
    if not number:
        return ""
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    return values[number].name.removeprefix(prefix) if number in values else str(number)
