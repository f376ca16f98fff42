"""Runbooks, followed as an operator would: runs their commands, and compares what these print with
the table of causes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from tests.architecture.test_docs import anchors_of
from tests.support.platform import run_command

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CAUSE_TABLE = re.compile(r"^\| found \|.*\n\|---.*\n((?:\|.*\n)+)", re.MULTILINE)
_HEALTH = health_pb2.DESCRIPTOR.name  # so that the pool knows its service


class Runbook:
    """A page, or the part of it below a heading. `values` replace the words in capitals of its
    commands.
    """

    def __init__(self, path: Path, heading: str, values: Mapping[str, str]) -> None:
        text = path.read_text()
        self._text = _below(text, heading) if heading else text
        self._values = values

    def follow(
        self, addresses: Mapping[str, str], http_url: str, database_url: str, token: str
    ) -> str:
        """Runs the commands and queries of the page. Returns what they print. `addresses`: by
        service.
        """
        outputs = []
        for language, block in _FENCE.findall(self._text):
            filled_block = self._fill(block)
            if language == "sql":
                outputs.append(_query(filled_block, database_url))
                continue
            for words in _commands(filled_block):
                match words[0]:
                    case "tallystick":
                        outputs.append(_tallystick(words, addresses, token))
                    case "grpcurl":
                        outputs.append(_grpcurl(words, addresses, token))
                    case "curl":
                        outputs.append(_curl(words, http_url))
        assert outputs, "the runbook has no commands"
        return "\n".join(outputs)

    def found(self, output: str) -> list[str]:
        """The entries of the column `found` in the table of causes that the output contains."""
        (table,) = _CAUSE_TABLE.findall(self._text)
        entries = [
            entry
            for row in table.splitlines()
            for entry in re.findall(r"`([^`]+)`", row.split(" | ")[0])
        ]
        assert entries, "the table of causes is empty"
        return [entry for entry in entries if _contains(output, entry)]

    def _fill(self, block: str) -> str:
        for word, value in self._values.items():
            block = re.sub(rf"\b{word}\b", value, block)
        return block


def _below(text: str, heading: str) -> str:
    """The section whose heading has this anchor."""
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    (section,) = (part for part in sections if heading in anchors_of(part))
    return section


def _contains(output: str, entry: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(entry)}(?!\w)", output) is not None


def _commands(block: str) -> Iterator[list[str]]:
    """The commands of a block as words. A command ends with a line that leaves no quote open."""
    text = ""
    for line in block.splitlines():
        text += line + "\n"
        if line.endswith("\\"):
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quote is open
            continue
        text = ""
        if words:
            yield words
    assert not text, f"no command: {text}"


def _tallystick(words: list[str], addresses: Mapping[str, str], token: str) -> str:
    service = words[words.index("--service") + 1] if "--service" in words else "payment"
    address = addresses[service]
    completed = run_command(*words[1:], "--address", address, TALLYSTICK_TOKEN=token)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def _query(statements: str, database_url: str) -> str:
    lines = []
    with psycopg.connect(database_url, autocommit=True) as connection:
        cursor = connection.execute(statements.encode())
        while True:
            lines += ["\t".join(map(str, row)) for row in cursor.fetchall()]
            if not cursor.nextset():
                return "\n".join(lines)


def _curl(words: list[str], http_url: str) -> str:
    url = re.sub(r"http://127\.0\.0\.1:7080", http_url, words[-1])
    assert url.startswith(http_url), words
    return httpx.post(url, timeout=30).text


def _grpcurl(words: list[str], addresses: Mapping[str, str], token: str) -> str:
    """The response as JSON, or the error as grpcurl prints it. A loopback address of the page means
    the service that has the method.
    """
    target, method_path = words[-2], words[-1]
    data = words[words.index("-d") + 1] if "-d" in words else "{}"
    if re.fullmatch(r"127\.0\.0\.1:70\d\d", target):
        target = addresses[method_path.split(".")[1]]
    service, _, name = method_path.partition("/")
    method = Default().FindServiceByName(service).methods_by_name[name]
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        request = json_format.ParseDict(json.loads(data), GetMessageClass(method.input_type)())
        try:
            response = call(request, timeout=10, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            details = error.details() or ""
            if "Connection refused" in details:
                return f"Failed to dial target host: connect: connection refused ({target})"
            return f"ERROR: Code: {error.code().name} Message: {details}"
    return json_format.MessageToJson(response)
