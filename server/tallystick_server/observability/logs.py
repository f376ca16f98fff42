"""Log lines: text at a terminal, and elsewhere one JSON object a line.

Every line has the trace that is current where it is logged. No line shows a card number, a secret
of the settings, or the values of a row that the database rejects.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tallystick_core.card_numbers import mask_card_numbers
from tallystick_server.observability import names

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

_MAX_MESSAGE, _MAX_EXCEPTION = 4_000, 12_000
_MIN_SECRET_LENGTH = 8
"""Shorter ones would also be found in other texts."""
# what PostgreSQL adds to its message: rows and parameters, as long as they are
_DATABASE_VALUES = re.compile(
    r"\n(?:DETAIL|CONTEXT|HINT|QUERY|LINE \d+):"
    r".*?(?=\n\nThe above exception|\n\nDuring handling|\Z)",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(slots=True)
class _Process:
    """What the lines of this process have in common."""

    service: str = "tallystick"
    secrets: tuple[str, ...] = ()
    handler: logging.Handler = field(default_factory=logging.NullHandler)


_process = _Process()


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, with the same fields in every line."""

    def format(self, record: logging.LogRecord) -> str:
        context = _current_context()
        fields: dict[str, Any] = {
            "time": _format_time(record),
            "level": record.levelname,
            "logger": record.name,
            "event": getattr(record, "event_name", ""),
            "message": _message_of(record),
            "trace_id": f"{context.trace_id:032x}" if context.is_valid else "",
            "span_id": f"{context.span_id:016x}" if context.is_valid else "",
            "service": _process.service,
            "process": record.process,
        }
        if exception := _exception_of(self, record):
            fields["exception"] = exception
        return json.dumps(fields)


class TextFormatter(logging.Formatter):
    """Text for a person. A traceback has lines of its own, which are indented, and nothing else
    has: so no text of an error begins a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        context = _current_context()
        message = _escape(_message_of(record))
        event = getattr(record, "event_name", "-")
        line = f"{_format_time(record)} {record.levelname} {record.name} {event} {message}"
        if context.is_valid:
            line += f" (trace {context.trace_id:032x})"
        exception = _exception_of(self, record)
        traceback = [f"  {_escape(part)}" for part in exception.split("\n") if part]
        return "\n".join([line, *traceback])


def configure(level: int) -> None:
    """Writes the log of this process to standard error. `level`: the least severe that is
    written.
    """
    _process.handler = logging.StreamHandler()
    _set_format("auto")
    logging.basicConfig(level=level, handlers=[_process.handler])
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error
    log.setLevel(logging.INFO)  # the steps of a process that serves are always written


def configure_service(service: str, level: str, line_format: str) -> None:
    """Configures the log of a process that serves. `line_format`: json, text, or auto: text at a
    terminal.
    """
    _process.service = service
    _set_format(line_format)
    logging.getLogger().setLevel(level)


def hide(secrets: Iterable[str]) -> None:
    """Sets the texts that no line may show."""
    texts = {secret for secret in secrets if len(secret) >= _MIN_SECRET_LENGTH}
    _process.secrets = tuple(sorted(texts, key=len, reverse=True))


def report(line: str) -> None:
    """Reports a step of a process that serves: as a log line if those are JSON, else as text."""
    if isinstance(_process.handler.formatter, JsonFormatter):
        log.info("%s", line, extra=names.PROCESS_STEP.extra)
    else:
        print(line, file=sys.stderr, flush=True)


def redact(text: str) -> str:
    """The text without values of the database, card numbers and secrets of the settings."""
    text = mask_card_numbers(_DATABASE_VALUES.sub("", text))
    for secret in _process.secrets:
        text = text.replace(secret, "[secret]")
    return text


def _set_format(line_format: str) -> None:
    is_json = line_format == "json" or (line_format == "auto" and not sys.stderr.isatty())
    _process.handler.setFormatter(JsonFormatter() if is_json else TextFormatter())
    if is_json:
        # gRPC's core writes lines of its own past Python's log
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _escape(text: str) -> str:
    """The text without characters that begin another line, or change what a terminal shows."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _message_of(record: logging.LogRecord) -> str:
    return redact(record.getMessage())[:_MAX_MESSAGE]


def _exception_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback, or its end if it is long; "": there is none."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return redact(formatter.formatException(record.exc_info))[-_MAX_EXCEPTION:]


def _format_time(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    return time.replace("+00:00", "Z")


def _current_context() -> SpanContext:
    # a short command logs nothing, and need not load it
    from opentelemetry import trace  # noqa: PLC0415

    return trace.get_current_span().get_span_context()


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Logs what ended a thread; by default it is written past the log."""
    if error.exc_type is not SystemExit:
        log.error(
            "the thread %s ended with an error",
            error.thread.name if error.thread else "",
            exc_info=(error.exc_type, error.exc_value, error.exc_traceback),  # type: ignore[arg-type]
            extra=names.THREAD_FAILED.extra,
        )
