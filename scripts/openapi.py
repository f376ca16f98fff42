"""Makes the OpenAPI document of the HTTP server from the contract's rules, types and comments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from openapi_examples import field_example, request_example
from openapi_schemas import STATUS, Comments, Schema, Schemas, detail_schema

from tallystick_server.app.services import SERVICES
from tallystick_server.http.binding import IDEMPOTENCY_KEY, LAST_EVENT_ID
from tallystick_server.http.errors import RETRY_AFTER, reasons_by_http_status
from tallystick_server.http.http_rules import HttpRule, http_rules
from tallystick_server.http.transcoder import REPLAYED, REQUEST_TIMEOUT, TRACE_ID


def make_document(files: FileDescriptorSet) -> Schema:
    """The document of a descriptor set that has source info."""
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    services = [pool.FindServiceByName(_service_name(spec.contract)) for spec in SERVICES]
    comments = _read_comments(files)
    rules = http_rules(services)
    schemas = Schemas(rules, comments)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tallystick",
            "version": "1",
            "description": "JSON over HTTP for the calls of the gRPC services. "
            "docs/reference/http-api.md has the rules.",
        },
        "tags": [_tag(service, comments) for service in services if _has_rule(service, rules)],
        "security": [{"bearer": []}],
        "paths": _paths(rules, schemas, comments),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "parameters": _header_parameters(),
            "responses": dict(_error_responses()),
            "schemas": {STATUS: _status_schema(comments), **schemas.all()},
        },
    }


def _service_name(contract: str) -> str:
    module, _, name = contract.partition(":")
    return f"{module.rpartition('.')[0]}.{name}"


def _has_rule(service: ServiceDescriptor, rules: Iterable[HttpRule]) -> bool:
    return any(rule.method.containing_service.full_name == service.full_name for rule in rules)


def _tag(service: ServiceDescriptor, comments: Comments) -> Schema:
    return {"name": service.name, "description": comments[service.full_name]}


def _read_comments(files: FileDescriptorSet) -> dict[str, str]:
    comments = {}
    for file in files.file:
        texts = {
            tuple(location.path): location.leading_comments
            for location in file.source_code_info.location
        }
        for path, name in _named_elements(file, file.package):
            lines = (line.strip() for line in texts.get(path, "").splitlines())
            comments[name] = " ".join(line for line in lines if not line.startswith("buf:lint"))
    return comments


def _named_elements(file: Any, package: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """The path in the source info, and the full name, of each element of a file."""
    for index, message in enumerate(file.message_type):
        yield from _message_elements(message, (4, index), f"{package}.{message.name}")
    for index, enum in enumerate(file.enum_type):
        yield from _enum_elements(enum, (5, index), f"{package}.{enum.name}")
    for index, service in enumerate(file.service):
        yield (6, index), f"{package}.{service.name}"
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{package}.{service.name}.{method.name}"


def _message_elements(
    message: Any, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message_elements(nested, (*path, 3, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from _enum_elements(enum, (*path, 4, index), f"{name}.{enum.name}")


def _enum_elements(
    enum: Any, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"


def _paths(rules: Iterable[HttpRule], schemas: Schemas, comments: Comments) -> Schema:
    paths: Schema = {}
    for rule in rules:
        paths.setdefault(rule.path, {})[rule.http_method.lower()] = _operation(
            rule, schemas, comments
        )
    return dict(sorted(paths.items()))


def _operation(rule: HttpRule, schemas: Schemas, comments: Comments) -> Schema:
    method = rule.method
    description = comments[method.full_name]
    operation: Schema = {
        "operationId": f"{method.containing_service.name}.{method.name}",
        "tags": [method.containing_service.name],
        "summary": f"{description.partition('. ')[0].rstrip('.')}.",
        "description": description,
        "parameters": _parameters(rule, schemas),
    }
    if rule.has_body:
        operation["requestBody"] = {
            "content": {
                "application/json": {
                    "schema": schemas.reference(method.input_type),
                    "example": request_example(method.input_type, rule.path_fields),
                }
            }
        }
    statuses = dict(_error_responses())
    operation["responses"] = {
        "200": _success(rule, schemas, comments),
        **{status: {"$ref": f"#/components/responses/{status}"} for status in statuses},
    }
    return operation


def _success(rule: HttpRule, schemas: Schemas, comments: Comments) -> Schema:
    output = rule.method.output_type
    if rule.method.server_streaming:
        return {
            "description": "Server-sent events. At the end comes the event `end`, or `error` with "
            "a google.rpc.Status.",
            "content": {"text/event-stream": {"schema": _event_schema(schemas.reference(output))}},
        }
    headers = {
        TRACE_ID: {"description": "The trace of the call.", "schema": {"type": "string"}},
    }
    if not rule.is_read:
        headers[REPLAYED] = {
            "description": "true: the call was made before.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    return {
        "description": comments[output.full_name],
        "headers": headers,
        "content": {"application/json": {"schema": schemas.reference(output)}},
    }


def _event_schema(message: Schema) -> Schema:
    """The schema of a server-sent event."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": message}
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The cursor, for Last-Event-ID."},
            "event": {"type": "string", "enum": ["message", "end", "error"]},
            "data": {**data, "description": "JSON."},
        },
        "required": ["data"],
    }


def _parameters(rule: HttpRule, schemas: Schemas) -> list[Schema]:
    fields = rule.method.input_type.fields_by_name
    parameters: list[Schema] = [
        _parameter(name, "path", fields[name], schemas) | {"required": True}
        for name in rule.path_fields
    ]
    parameters += [
        _parameter(name, "query", field, schemas) for name, field in rule.query_fields.items()
    ]
    headers = [REQUEST_TIMEOUT]
    if rule.key_field:
        headers.append(IDEMPOTENCY_KEY)
    if rule.cursor is not None:
        headers.append(LAST_EVENT_ID)
    return parameters + [{"$ref": f"#/components/parameters/{name}"} for name in headers]


def _parameter(name: str, place: str, field: FieldDescriptor, schemas: Schemas) -> Schema:
    schema = schemas.field(field, in_request=True)
    description = schema.pop("description")
    if "anyOf" in schema:  # a number is text in a query
        schema = schema["anyOf"][0]
    if name == "page_size":
        schema = {"type": "integer", "minimum": 0}
    if place == "path":
        schema = {**schema, "minLength": 1}
    return {
        "name": name,
        "in": place,
        "description": description,
        "schema": schema,
        "example": field_example(field),
    }


def _header_parameters() -> Schema:
    texts = {
        REQUEST_TIMEOUT: (
            r"^[0-9]{1,4}(\.[0-9]{1,3})?$",
            "Seconds that the call may take, up to 60. By default 10, for payments and payouts 30.",
            "10",
        ),
        IDEMPOTENCY_KEY: (
            "^[!-~]{1,64}$",
            "Must equal the id of the call, or is its request_id.",
            "checkout-1",
        ),
        LAST_EVENT_ID: ("^[0-9]{1,18}$", "The id of the last event that was received.", "0"),
    }
    return {
        name: {
            "name": name,
            "in": "header",
            "description": description,
            "schema": {"type": "string", "pattern": pattern},
            "example": example,
        }
        for name, (pattern, description, example) in texts.items()
    }


def _error_responses() -> Iterator[tuple[str, Schema]]:
    """The response of each HTTP status, with its reasons."""
    for status, names in reasons_by_http_status().items():
        response: Schema = {
            "description": f"Rejected: {', '.join(names)}.",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{STATUS}"}}},
        }
        if status in (429, 503):
            response["headers"] = {
                RETRY_AFTER: {
                    "description": "Seconds after which the same request may be sent again.",
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
        yield str(status), response


def _status_schema(comments: Comments) -> Schema:
    return {
        "type": "object",
        "description": "Why a request was rejected, see docs/reference/error-reasons.md.",
        "properties": {
            "code": {"type": "integer", "description": "A google.rpc.Code."},
            "message": {"type": "string", "description": "What is wrong, and what to do."},
            "details": {
                "type": "array",
                "items": detail_schema(),
                "description": "The reason, the fields that are wrong, and when to retry.",
            },
        },
        "required": ["code", "message", "details"],
        "additionalProperties": False,
        "example": {
            "code": 3,
            "message": "checkout_id is required.",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "FIELD_REQUIRED",
                    "domain": "tallystick",
                    "metadata": {},
                }
            ],
        },
    }
