"""The admin server: starlette on uvicorn, in the supervisor's loop. uvicorn takes no signals and writes no log."""

from __future__ import annotations

import contextlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gwcore.admin.metrics import render
from gwcore.config.schema import split_address

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the supervisor's


def build_app(s: Supervisor) -> Starlette:
    """The application. With a token configured everything but the two probes asks for it."""

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def check(request: Request) -> Response:
            token = s.config.admin.token
            if token and not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
                return PlainTextResponse("send the admin token: Authorization: Bearer …\n", 401, {"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return check

    async def metrics(_: Request) -> Response:
        return Response(render(s), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(_: Request) -> Response:
        return JSONResponse(s.status())

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        if s.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("draining\n" if s.stopping else "starting\n", 503)

    async def reload(request: Request) -> Response:
        if request.headers.get("origin"):  # a page in the operator's browser has no business here
            return PlainTextResponse("cross-origin requests are refused\n", 403)
        result = await s.reload()
        return JSONResponse(result, 200 if result["ok"] else 422)

    return Starlette(
        routes=[
            Route("/metrics", guarded(metrics)),
            Route("/status", guarded(status)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/reload", guarded(reload), methods=["POST"]),
        ]
    )


def bind(address: str) -> socket.socket:
    host, port = split_address(address)
    if not port:
        s = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            import os

            os.unlink(host)
        s.bind(host)
    else:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        s = socket.socket(family, socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(where)
    s.listen(128)
    return s


async def serve(supervisor: Supervisor) -> None:
    """Serve until cancelled. OSError when the address cannot be had."""
    sock = bind(supervisor.config.admin.address)
    config = uvicorn.Config(
        build_app(supervisor), log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=1
    )
    try:
        await _Server(config).serve(sockets=[sock])
    finally:
        sock.close()
