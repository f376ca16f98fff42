"""`GET /healthz`: the health of the services, as the gRPC health service says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tallystick_server.http.request import Request
from tallystick_server.http.responses import json_response
from tallystick_server.http.routing import Route

PATH = "/healthz"
_TIMEOUT_SECONDS = 2.0


def health_route(channels: Sequence[grpc.aio.Channel], stopping: asyncio.Event) -> Route:
    """The route. It is SERVING (200) if all servers are, and else NOT_SERVING (503). `stopping` is
    set when the process begins to stop.
    """
    stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]

    async def check(_request: Request) -> web.StreamResponse:
        answers = await asyncio.gather(*(_is_serving(stub) for stub in stubs))
        is_serving = all(answers) and not stopping.is_set()
        status = "SERVING" if is_serving else "NOT_SERVING"
        return json_response(b'{"status": "%s"}' % status.encode(), 200 if is_serving else 503)

    return Route("GET", PATH, check)


async def _is_serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        response = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS
        )
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
