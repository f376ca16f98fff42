"""Counts the items of a message in its bytes, before objects are built for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tallystick_core.errors import ApiError, ErrorReason

MAX_ITEMS = 1000
"""Maximum items of one repeated field, in a call and in a batch."""
_MAX_NESTED_ITEMS = 50_000
"""Maximum items of a message in all its repeated fields, at any depth."""
_MAX_FIELDS = 250_000
"""Maximum fields scanned. A legitimate message of MAX_BATCH_BYTES has fewer."""
_MESSAGE = FieldDescriptor.TYPE_MESSAGE
_UNPACKED_TYPES = frozenset(
    {_MESSAGE, FieldDescriptor.TYPE_GROUP, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
)
"""The types whose items are always separate fields. Items of other types may be packed into one
field.
"""
_FIXED_WIDTHS = {
    **dict.fromkeys(
        (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64),
        8,
    ),
    **dict.fromkeys(
        (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32), 4
    ),
}
_CONTINUATION_BYTES = bytes(range(0x80, 0x100))  # a varint ends with any other byte
_VARINT, _BYTES = 0, 2
# By wire type; the start and end of a group have no content.
_FIXED_LENGTHS = {_VARINT: 0, 1: 8, 3: 0, 4: 0, 5: 4}


@dataclass(frozen=True, slots=True, eq=False)
class _MessageShape:
    """The field numbers that are counted, and those that are scanned inside."""

    name: str
    repeated_names: dict[int, str]
    packed_widths: dict[int, int]
    """The bytes per item of each field that may be packed; 0: a varint."""
    children: dict[int, tuple[str, _MessageShape]]
    non_item_bytes: bytes
    """The bytes that start no item at any depth."""


@cache
def _shape_of(descriptor: Descriptor) -> _MessageShape | None:
    """Returns None for a message without items. Messages of the contract are not recursive."""
    repeated = {field.number: field.name for field in descriptor.fields if field.is_repeated}
    packed = {
        field.number: _FIXED_WIDTHS.get(field.type, 0)
        for field in descriptor.fields
        if field.is_repeated and field.type not in _UNPACKED_TYPES
    }
    nested = {
        field.number: (field.name, _shape_of(field.message_type))
        for field in descriptor.fields
        if field.type == _MESSAGE
    }
    children = {
        number: (name, shape) for number, (name, shape) in nested.items() if shape is not None
    }
    if not repeated and not children:
        return None
    first_bytes = (
        set(range(0x100))
        if packed
        else {
            _first_byte(field) | continuation_bit
            for field in descriptor.fields
            if field.is_repeated
            for continuation_bit in (0, 0x80)
        }
    )
    no_items = (set(range(0x100)) - first_bytes).intersection(
        *(shape.non_item_bytes for _, shape in children.values())
    )
    return _MessageShape(descriptor.full_name, repeated, packed, children, bytes(sorted(no_items)))


def _first_byte(field: FieldDescriptor) -> int:
    """The low seven bits of the first byte of a field's tag. The eighth bit continues the tag; a
    sender may also set it for a one-byte tag.
    """
    return (field.number << 3 | (_BYTES if field.type in _UNPACKED_TYPES else _VARINT)) & 0x7F


def has_items(descriptor: Descriptor) -> bool:
    """Whether a message has repeated fields at any depth."""
    return _shape_of(descriptor) is not None


class _ItemCount:
    """The counts of one message, over all depths."""

    __slots__ = ("fields", "items", "small")

    def __init__(self, small: int) -> None:
        self.small = small
        """The size of a nested message that is not scanned."""
        self.fields = 0
        self.items = 0


def check_items(raw: bytes, descriptor: Descriptor) -> None:
    """Rejects a message with too many items, at a bounded cost. Raises TOO_MANY_ITEMS,
    MESSAGE_MALFORMED.
    """
    shape = _shape_of(descriptor)
    if shape is None:
        return
    max_item_count = len(raw.translate(None, shape.non_item_bytes))
    if max_item_count <= MAX_ITEMS and len(raw) <= _MAX_FIELDS:
        return
    # A nested message of up to this size cannot hold too many items, and is not scanned.
    unchecked_bytes = MAX_ITEMS if max_item_count <= _MAX_NESTED_ITEMS else 0
    try:
        _check(raw, 0, len(raw), shape, _ItemCount(unchecked_bytes))
    except IndexError:
        raise ApiError(
            ErrorReason.MESSAGE_MALFORMED, f"The message must be a {descriptor.full_name}."
        ) from None


def _check(raw: bytes, offset: int, end: int, shape: _MessageShape, count: _ItemCount) -> None:
    """Checks one message from `offset` to `end`. Raises IndexError for truncated bytes."""
    repeated, children = shape.repeated_names, shape.children
    counts: dict[int, int] = {}
    while offset < end:
        tag, offset = (raw[offset], offset + 1) if raw[offset] < 0x80 else _read_varint(raw, offset)
        number, wire_type = tag >> 3, tag & 7
        length = _FIXED_LENGTHS.get(wire_type, end)
        if wire_type == _BYTES:
            length, offset = (
                (raw[offset], offset + 1) if raw[offset] < 0x80 else _read_varint(raw, offset)
            )
        elif wire_type == _VARINT:
            _, offset = _read_varint(raw, offset)
        next_offset = offset + length
        if next_offset > end:
            raise IndexError
        count.fields += 1
        if number in repeated:
            items = (
                _count_packed(raw[offset:next_offset], shape.packed_widths[number])
                if wire_type == _BYTES and number in shape.packed_widths
                else 1
            )
            count.items += items
            counts[number] = counts.get(number, 0) + items
            if counts[number] > MAX_ITEMS:
                name = repeated[number]
                raise ApiError(
                    ErrorReason.TOO_MANY_ITEMS,
                    f"{name} must have at most {MAX_ITEMS} items.",
                    field=name,
                )
        if count.items > _MAX_NESTED_ITEMS or count.fields > _MAX_FIELDS:
            raise ApiError(
                ErrorReason.TOO_MANY_ITEMS,
                "The message has too many items and fields; split it into several calls.",
            )
        if wire_type == _BYTES and length > count.small and number in children:
            name, child = children[number]
            try:
                _check(raw, offset, next_offset, child, count)
            except ApiError as error:
                raise (
                    error.with_field_prefix(
                        f"{name}[{counts[number] - 1}]" if number in repeated else name
                    )
                    if error.field
                    else error
                ) from None
        offset = next_offset


def _count_packed(raw: bytes, width: int) -> int:
    """The number of values in one packed field."""
    return len(raw) // width if width else len(raw.translate(None, _CONTINUATION_BYTES))


def _read_varint(raw: bytes, offset: int) -> tuple[int, int]:
    """Reads a varint. Returns its value and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise IndexError
