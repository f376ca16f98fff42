"""Protobuf messages as JSON objects with stable keys, and as readable text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tallystick_server.rpc.enums import EnumNames

FieldDescriptor = Any  # the stubs have two classes for it

_TIMESTAMP = "google.protobuf.Timestamp"
_STATUS = "google.rpc.Status"


@dataclass(frozen=True, slots=True)
class Table:
    """The items of a repeated field."""

    title: str
    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Record:
    """A message as readable text: its set fields, and its lists."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def to_json(message: Message) -> dict[str, Any]:
    """The message as ProtoJSON with the names of the contract. Every key is there: a field that is
    not set has its default value, or null.
    """
    values: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _add_unset(message, values)
    return values


def _add_unset(message: Message, values: dict[str, Any]) -> None:
    for descriptor in message.DESCRIPTOR.fields:
        value = values.setdefault(descriptor.name, None)
        if value is None or not _is_own_message(descriptor):
            continue
        nested = getattr(message, descriptor.name)
        if descriptor.is_repeated:
            for item, item_values in zip(nested, value, strict=True):
                _add_unset(item, item_values)
        else:
            _add_unset(nested, value)


def _is_own_message(descriptor: FieldDescriptor) -> bool:
    """Whether the field holds messages of the contract: neither google's nor the entries of a
    map.
    """
    type_ = descriptor.message_type
    return (
        type_ is not None
        and not type_.GetOptions().map_entry
        and not type_.full_name.startswith("google.")
    )


def to_row(message: Message, field_names: Sequence[str]) -> list[str]:
    """The fields as texts, in this order."""
    descriptors = message.DESCRIPTOR.fields_by_name
    return [_field_text(message, descriptors[name]) for name in field_names]


def to_record(message: Message) -> Record:
    """The message with its nested messages flattened and its lists as tables."""
    record = Record()
    _collect(message, "", record)
    return record


def _collect(message: Message, prefix: str, record: Record) -> None:
    for descriptor in message.DESCRIPTOR.fields:
        name = f"{prefix}{descriptor.name}"
        if _is_own_message(descriptor) and descriptor.is_repeated:
            if items := getattr(message, descriptor.name):
                record.tables.append(_table(name, items))
        elif _is_own_message(descriptor):
            if message.HasField(descriptor.name):
                # a response has one resource, whose fields need no prefix
                is_response = message.DESCRIPTOR.name.endswith("Response")
                _collect(
                    getattr(message, descriptor.name), "" if is_response else f"{name}.", record
                )
        elif text := _field_text(message, descriptor):
            record.fields.append((name, text))


def _table(title: str, items: Sequence[Message]) -> Table:
    """The fields that at least one item has a text for."""
    records = [dict(_item_fields(item)) for item in items]
    position = {descriptor.name: descriptor.index for descriptor in items[0].DESCRIPTOR.fields}
    names = {name for record in records for name in record}
    headings = sorted(names, key=lambda name: (position[name.partition(".")[0]], name))
    return Table(
        title, headings, [[record.get(name, "") for name in headings] for record in records]
    )


def _item_fields(item: Message) -> Iterator[tuple[str, str]]:
    record = to_record(item)
    yield from record.fields
    for table in record.tables:
        yield table.title, "; ".join(" ".join(filter(None, row)) for row in table.rows)


def _field_text(message: Message, descriptor: FieldDescriptor) -> str:
    if descriptor.has_presence and not message.HasField(descriptor.name):
        return ""
    value = getattr(message, descriptor.name)
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return ", ".join(f"{key}={value[key]}" for key in sorted(value))
    if descriptor.is_repeated:
        return ", ".join(_value_text(descriptor, item) for item in value)
    return _value_text(descriptor, value)


def _value_text(descriptor: FieldDescriptor, value: Any) -> str:
    if descriptor.enum_type is not None:
        return EnumNames(descriptor.enum_type).parse(value, descriptor.name, default="")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Message):
        name = value.DESCRIPTOR.full_name
        if name == _TIMESTAMP:
            time = getattr(value, "ToDatetime")().replace(microsecond=0)  # noqa: B009 - generated
            return f"{time.isoformat()}Z"
        return str(getattr(value, "message", "")) if name == _STATUS else str(value)
    return str(value)
