"""The schemas of messages and enums in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tallystick_server.http.field_types import (
    ANY,
    DURATION,
    INTEGER_RANGES,
    TIMESTAMP,
    WIDE_TYPES,
    enum_type_of,
    is_map,
    message_type_of,
)
from tallystick_server.http.http_rules import HttpRule
from tallystick_server.rpc.message_limits import MAX_ITEMS

Schema = dict[str, Any]
Comments = Mapping[str, str]
"""By full name."""
STATUS = "google.rpc.Status"


class Schemas:
    """The schemas of all messages and enums that requests and responses have."""

    def __init__(self, rules: Iterable[HttpRule], comments: Comments) -> None:
        self._comments = comments
        self._schemas: dict[str, Schema] = {}
        requests = [rule for rule in rules if rule.has_body]
        self._in_requests = {
            name
            for rule in requests
            for field in rule.method.input_type.fields
            for name in _reachable(field)
        }
        for rule in requests:
            name = rule.method.input_type.full_name
            self._schemas.setdefault(name, self._request(rule.method.input_type, rule.path_fields))

    def all(self) -> dict[str, Schema]:
        """By full name."""
        return dict(sorted(self._schemas.items()))

    def reference(self, descriptor: Descriptor) -> Schema:
        """A reference to the schema of a message."""
        name = descriptor.full_name
        if name == STATUS:
            return {"$ref": f"#/components/schemas/{name}"}
        if name not in self._schemas:
            self._schemas[name] = {}  # before its fields, which may refer to it
            self._schemas[name] = (
                self._request(descriptor, ())
                if name in self._in_requests
                else self._response(descriptor)
            )
        return {"$ref": f"#/components/schemas/{name}"}

    def _request(self, descriptor: Descriptor, path_fields: Iterable[str]) -> Schema:
        """Every field may be null, as if it were absent."""
        properties = {
            field.name: _nullable(self.field(field, in_request=True))
            for field in descriptor.fields
            if field.name not in path_fields
        }
        return self._object(descriptor, properties) | {"additionalProperties": False}

    def _response(self, descriptor: Descriptor) -> Schema:
        properties = {field.name: self.field(field) for field in descriptor.fields}
        required = [field.name for field in descriptor.fields if not field.has_presence]
        return self._object(descriptor, properties) | ({"required": required} if required else {})

    def _object(self, descriptor: Descriptor, properties: Schema) -> Schema:
        return {
            "type": "object",
            "description": self._comments[descriptor.full_name],
            "properties": properties,
        }

    def field(self, field: FieldDescriptor, *, in_request: bool = False) -> Schema:
        """The schema of a field, with its comment."""
        if is_map(field):
            value = message_type_of(field).fields_by_name["value"]
            schema: Schema = {"type": "object", "additionalProperties": self._value(value, False)}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._value(field, in_request)}
            if in_request:
                schema["maxItems"] = MAX_ITEMS
        else:
            schema = self._value(field, in_request)
        description = self._comments[field.full_name]
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            names = " and ".join(other.name for other in oneof.fields)
            description += f" Only one of {names}."
        return {**schema, "description": description}

    def _value(self, field: FieldDescriptor, in_request: bool) -> Schema:
        if field.enum_type is not None:
            return self._enum_reference(field)
        if field.message_type is not None:
            return self._message_value(field.message_type)
        if field.type in INTEGER_RANGES:
            return _integer_schema(field, in_request)
        return _SCALAR_SCHEMAS.get(field.type, {"type": "string"})

    def _message_value(self, descriptor: Descriptor) -> Schema:
        if descriptor.full_name == TIMESTAMP:
            return {"type": "string", "format": "date-time"}
        if descriptor.full_name == DURATION:
            return {"type": "string", "pattern": r"^-?[0-9]{1,11}(\.[0-9]{1,9})?s$"}
        if descriptor.full_name == ANY:
            return detail_schema()
        return self.reference(descriptor)

    def _enum_reference(self, field: FieldDescriptor) -> Schema:
        enum = enum_type_of(field)
        values = [value.name for value in enum.values]
        lines = [f"- {name}: {self._comments[f'{enum.full_name}.{name}']}" for name in values]
        self._schemas[enum.full_name] = {
            "type": "string",
            "enum": values,
            "description": "\n".join([self._comments[enum.full_name], "", *lines]),
        }
        return {"$ref": f"#/components/schemas/{enum.full_name}"}


_SCALAR_SCHEMAS: dict[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}


def _nullable(schema: Schema) -> Schema:
    description = {"description": schema["description"]}
    rest = {key: value for key, value in schema.items() if key != "description"}
    if "type" in rest:
        return {**rest, "type": [rest["type"], "null"], **description}
    return {"anyOf": [*rest.get("anyOf", [rest]), {"type": "null"}], **description}


def _reachable(field: FieldDescriptor) -> Iterator[str]:
    """The messages in a field of a request."""
    message = field.message_type
    if message is not None and not message.full_name.startswith("google."):
        yield message.full_name
        for nested in message.fields:
            yield from _reachable(nested)


def _integer_schema(field: FieldDescriptor, in_request: bool) -> Schema:
    low, high = INTEGER_RANGES[field.type]
    number: Schema = {"type": "integer", "minimum": low, "maximum": high}
    if field.type not in WIDE_TYPES:
        return {**number, "format": "int32"}
    text: Schema = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,18}$"}
    return {"anyOf": [text, number]} if in_request else text


def detail_schema() -> Schema:
    return {
        "type": "object",
        "description": "google.rpc.ErrorInfo with `reason`, BadRequest with `field_violations`, or "
        "RetryInfo with `retry_delay`.",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    }
