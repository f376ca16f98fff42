"""A Stripe that answers as a script says, without a server."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from tallystick_core.provider.outcome import FinalNotFound
from tallystick_server.providers.provider_type import CallLimits, ProviderTerms
from tallystick_server.providers.stripe.client import RequestBody, StripeApi, Transport
from tallystick_server.providers.stripe.errors import ForeignAnswer
from tallystick_server.providers.stripe.settings import StripeSettings

TERMS = ProviderTerms("stripe", CallLimits(30.0, 100), 86_400.0, FinalNotFound(60.0, 2))
URL = "http://stripe.invalid"


@dataclass
class Request:
    """A request as it was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    values: dict[str, str]

    @property
    def key(self) -> str:
        return self.headers.get("Idempotency-Key", "")


@dataclass
class Answer:
    """An answer, or the exception that comes in its place."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None


class ScriptedTransport(Transport):
    """Answers each request with the next answer of its script: "POST /v1/payouts". The last answer
    of a script is repeated. A request without a script fails the test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)

    def script(self, request: str, *answers: Answer | dict[str, Any] | Exception) -> None:
        """Replaces the script of a request."""
        self._scripts[request].clear()
        for answer in answers:
            match answer:
                case Exception():
                    self._scripts[request].append(Answer(error=answer))
                case dict():
                    self._scripts[request].append(Answer(body=answer))
                case _:
                    self._scripts[request].append(answer)

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        parts = urlsplit(url)
        values = dict(parse_qsl(str(body or "") or parts.query))
        self.requests.append(Request(method.upper(), parts.path, headers, values))
        script = self._scripts[f"{method.upper()} {parts.path}"]
        assert script, f"no script for {method} {parts.path}"
        answer = script.popleft() if len(script) > 1 else script[0]
        if answer.error is not None:
            raise answer.error
        content = answer.body if isinstance(answer.body, bytes) else orjson.dumps(answer.body)
        return answer.status, answer.headers, content

    async def download(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> AsyncIterator[bytes]:
        status, answer_headers, content = await self.send("GET", url, headers, None)
        if status != 200 or len(content) > max_bytes:
            raise ForeignAnswer(status, answer_headers)
        yield content

    def sent(self, pattern: str) -> list[Request]:
        """The requests whose method and path match."""
        return [r for r in self.requests if re.fullmatch(pattern, f"{r.method} {r.path}")]


def api_of(transport: Transport, **settings: Any) -> StripeApi:
    return StripeApi(settings_with(**settings), transport)


def settings_with(**values: Any) -> StripeSettings:
    return StripeSettings(**{"api_key": "sk_test_scripted", "url": URL, **values})


def error(status: int, type_: str, code: str = "", **details: Any) -> Answer:
    """An error in Stripe's form."""
    headers = details.pop("headers", {})
    body = {"type": type_, **({"code": code} if code else {}), **details}
    return Answer(status, {"error": body}, headers)
