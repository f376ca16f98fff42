"""Fills messages from JSON objects, by the rules of proto3. A function is compiled for each message
type. No error shows a value, and each names the path of its field.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.field_types import (
    DURATION,
    INTEGER_RANGES,
    TIMESTAMP,
    WIDE_TYPES,
    enum_type_of,
    is_map,
    message_type_of,
    no_json_error,
)
from tallystick_server.http.json_reader import is_shown
from tallystick_server.rpc.message_limits import MAX_ITEMS

Decode = Callable[[Any, str], Any]
"""The value of a field, from its JSON and its path. Raises ApiError."""
_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)


def invalid(path: str, text: str) -> ApiError:
    """The error for a field of a request."""
    return ApiError(ErrorReason.FIELD_INVALID, f"{path} {text}.", field=path)


def decode_message(message: Message, value: object, path: str = "") -> None:
    """Fills a message from a JSON object. A null is an absent field. Raises FIELD_INVALID or
    TOO_MANY_ITEMS with the path of the field; no error shows a value.
    """
    _message_filler(message.DESCRIPTOR)(message, value, path)


@cache
def _message_filler(descriptor: Descriptor) -> Callable[[Any, object, str], None]:
    setters = {field.name: _setter(field) for field in descriptor.fields}
    field_names = {
        alias: field.name for field in descriptor.fields for alias in (field.name, field.json_name)
    }
    # the fields that exclude each other, by each of them
    alternatives = {
        field.name: " and ".join(other.name for other in field.containing_oneof.fields)
        for field in descriptor.fields
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
    }

    def fill(message: Any, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise invalid(path, "must be an object")
        prefix = f"{path}." if path else ""
        taken: set[str] = set()
        for key, item in value.items():
            name = field_names.get(key)
            if name is None:
                raise unknown_field(prefix, key)
            if item is None:
                continue
            group = alternatives.get(name, name)
            if group in taken:
                raise invalid(f"{prefix}{name}", f"must be absent: only one of {group} is allowed")
            taken.add(group)
            setters[name](message, item, f"{prefix}{name}")

    return fill


def unknown_field(prefix: str, name: str) -> ApiError:
    """The error for a field that does not exist. A name that may be a secret is not shown."""
    if is_shown(name):
        return invalid(f"{prefix}{name}", "does not exist; /docs has the fields of each call")
    place = prefix.rstrip(".")
    return ApiError(
        ErrorReason.FIELD_INVALID,
        f"{place or 'The request'} has a field that does not exist; /docs has those of each call.",
        field=place,
    )


def _setter(field: FieldDescriptor) -> Callable[[Any, Any, str], None]:
    name = field.name
    if is_map(field):
        return _map_setter(field)
    if field.is_repeated:
        return _list_setter(field)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        fill = _filler(message_type_of(field))

        def set_message(message: Any, value: Any, path: str) -> None:
            part = getattr(message, name)
            part.SetInParent()
            fill(part, value, path)

        return set_message
    decode = _decoder(field)

    def set_value(message: Any, value: Any, path: str) -> None:
        setattr(message, name, decode(value, path))

    return set_value


def _filler(descriptor: Descriptor) -> Callable[[Any, Any, str], None]:
    if descriptor.full_name == TIMESTAMP:
        return _fill_from_text("must be a time such as 2026-01-31T12:00:00Z")
    if descriptor.full_name == DURATION:
        return _fill_from_text('must be seconds such as "3.5s"')
    if descriptor.full_name.startswith("google.protobuf."):
        raise TypeError(f"requests with {descriptor.full_name} have no JSON here")
    return _message_filler(descriptor)


def _fill_from_text(expected: str) -> Callable[[Any, Any, str], None]:
    def fill(message: Any, value: Any, path: str) -> None:
        try:
            message.FromJsonString(value)
        except (ValueError, AttributeError, TypeError, OverflowError):
            raise invalid(path, expected) from None

    return fill


def _list_setter(field: FieldDescriptor) -> Callable[[Any, Any, str], None]:
    name, is_message = field.name, field.type == FieldDescriptor.TYPE_MESSAGE
    fill = _filler(message_type_of(field)) if is_message else None
    decode = None if is_message else _decoder(field)

    def set_list(message: Any, value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise invalid(path, "must be a list")
        if len(value) > MAX_ITEMS:
            raise ApiError(
                ErrorReason.TOO_MANY_ITEMS,
                f"{path} must have at most {MAX_ITEMS} items.",
                field=path,
            )
        items = getattr(message, name)
        for index, item in enumerate(value):
            if fill is not None:
                fill(items.add(), item, f"{path}[{index}]")
            elif decode is not None:
                items.append(decode(item, f"{path}[{index}]"))

    return set_list


def _map_setter(field: FieldDescriptor) -> Callable[[Any, Any, str], None]:
    entry = message_type_of(field).fields_by_name
    if entry["key"].type != FieldDescriptor.TYPE_STRING or entry["value"].message_type:
        raise no_json_error(field)
    name, decode_key, decode = field.name, _decoder(entry["key"]), _decoder(entry["value"])

    def set_map(message: Any, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise invalid(path, "must be an object")
        if len(value) > MAX_ITEMS:
            raise ApiError(
                ErrorReason.TOO_MANY_ITEMS,
                f"{path} must have at most {MAX_ITEMS} items.",
                field=path,
            )
        target = getattr(message, name)
        for key, item in value.items():
            target[decode_key(key, path)] = decode(item, path)

    return set_map


def _decoder(field: FieldDescriptor) -> Decode:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _decode_text
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _decode_bool
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _decode_bytes
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum_decoder(enum_type_of(field))
    if field.type in INTEGER_RANGES:
        low, high = INTEGER_RANGES[field.type]
        return _integer_decoder(low, high, accepts_text=field.type in WIDE_TYPES)
    raise no_json_error(field)


def _decode_text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise invalid(path, "must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(path, "must be Unicode without lone surrogates") from None
    return value


def _decode_bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(path, "must be true or false")
    return value


def _decode_bytes(value: Any, path: str) -> bytes:
    try:
        return b64decode(value, validate=True)
    except (Base64Error, ValueError, TypeError):
        raise invalid(path, "must be base64") from None


def _integer_decoder(low: int, high: int, *, accepts_text: bool) -> Decode:
    def decode(value: Any, path: str) -> int:
        if accepts_text and isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise invalid(path, f"must be a whole number from {low} to {high}")
        return value

    return decode


def _enum_decoder(enum: EnumDescriptor) -> Decode:
    numbers: Mapping[str, int] = {value.name: value.number for value in enum.values}
    choices = ", ".join(value.name for value in enum.values if value.number)

    def decode(value: Any, path: str) -> int:
        if not isinstance(value, str) or value not in numbers:
            raise invalid(path, f"must be one of {choices}")
        return numbers[value]

    return decode
