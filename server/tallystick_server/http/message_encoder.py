"""Messages as JSON objects, by the rules of proto3, with the field names of the protos.

A function is compiled for each message type, so that a response costs no descriptor work.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tallystick_server.http.field_types import (
    ANY,
    DURATION,
    INTEGER_RANGES,
    TIMESTAMP,
    WIDE_TYPES,
    enum_type_of,
    is_map,
    message_type_of,
    no_json_error,
)

Encode = Callable[[Any], Any]


@cache
def encoder(descriptor: Descriptor) -> Callable[[Message], dict[str, Any]]:
    """Returns the function that makes a JSON object of a message. Fields without presence are
    always in it, the others if they are set.
    """
    always: list[tuple[str, Encode | None]] = []
    present: list[tuple[str, Encode | None]] = []
    for field in descriptor.fields:
        (present if field.has_presence else always).append((field.name, _field_encoder(field)))

    def encode(message: Message) -> dict[str, Any]:
        fields = {
            name: getattr(message, name) if convert is None else convert(getattr(message, name))
            for name, convert in always
        }
        for name, convert in present:
            if message.HasField(name):
                value = getattr(message, name)
                fields[name] = value if convert is None else convert(value)
        return fields

    return encode


def _field_encoder(field: FieldDescriptor) -> Encode | None:
    """None: the value is its own JSON."""
    if is_map(field):
        convert = _value_encoder(message_type_of(field).fields_by_name["value"]) or _itself
        return lambda value: {str(key): convert(item) for key, item in value.items()}
    one = _value_encoder(field)
    if not field.is_repeated:
        return one
    return list if one is None else lambda items: [one(item) for item in items]


def _itself(value: Any) -> Any:
    return value


def _value_encoder(field: FieldDescriptor) -> Encode | None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _message_encoder(message_type_of(field))
    if field.type == FieldDescriptor.TYPE_ENUM:
        enum_names = {value.number: value.name for value in enum_type_of(field).values}
        return lambda number: enum_names.get(number, number)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: b64encode(value).decode()
    if field.type in WIDE_TYPES:
        return str
    if field.type in INTEGER_RANGES or field.type in (
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_DOUBLE,
    ):
        return None
    raise no_json_error(field)


def _message_encoder(descriptor: Descriptor) -> Encode:
    if descriptor.full_name in (TIMESTAMP, DURATION):
        return lambda value: value.ToJsonString()
    if descriptor.full_name == ANY:
        return lambda value: MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    return encoder(descriptor)
