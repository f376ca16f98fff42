"""What a browser sends: the fields of a query or a form, and an uploaded file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError

_MAX_FIELDS = 50
SELECTED = "selected"
"""The name of the checkboxes with which items of a list are selected."""
_BOUNDARY = re.compile(r'multipart/form-data *;.*boundary="?([^";,]{1,70})"?', re.IGNORECASE)
_NAME, _FILE_NAME = re.compile(rb'; name="([^"]*)"'), re.compile(rb'; filename="([^"]*)"')


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file of a form. `name`: as the browser names it, without folders."""

    name: str
    content: bytes


def read_fields(text: str) -> dict[str, str]:
    """The fields of a query or a form; of two with one name, the last. Raises HttpError."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise _malformed(f"The form must be UTF-8 and have at most {_MAX_FIELDS} fields.") from None
    return dict(pairs)


def read_selection(text: str) -> list[str]:
    """The values of the checkboxes of a form that `read_fields` accepts, each once."""
    pairs = parse_qsl(text, max_num_fields=_MAX_FIELDS)
    return list(dict.fromkeys(value for name, value in pairs if name == SELECTED))


def read_multipart(content_type: str, body: bytes) -> tuple[dict[str, str], UploadedFile | None]:
    """The fields and the file of a form with a file. Raises HttpError."""
    match = _BOUNDARY.match(content_type)
    delimiter = b"\r\n--" + match[1].encode("latin-1", "replace") if match else b""
    # one part more than is allowed, and not millions of them
    parts = (b"\r\n" + body).split(delimiter, _MAX_FIELDS) if delimiter else []
    if len(parts) < 2 or len(parts) > _MAX_FIELDS or parts[0] or parts[-1][:2] != b"--":
        raise _malformed("The form must be multipart/form-data, complete, and have few fields.")
    fields: dict[str, str] = {}
    uploaded = None
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name, file_name = _NAME.search(head), _FILE_NAME.search(head)
        if name is None:
            raise _malformed("Each part of the form must have a name.")
        if file_name is None:
            fields[_text(name[1])] = _text(content)
        elif file_name[1]:
            uploaded = UploadedFile(re.split(r"[/\\]", _text(file_name[1]))[-1], content)
    return fields, uploaded


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _malformed("The form must be UTF-8.") from None


def _malformed(message: str) -> HttpError:
    return HttpError(ApiError(ErrorReason.MESSAGE_MALFORMED, message))
