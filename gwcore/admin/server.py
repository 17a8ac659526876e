"""The admin server: starlette on uvicorn, in the supervisor's loop. uvicorn takes no signals, writes no log and does not tick."""

from __future__ import annotations

import asyncio
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

from gwcore.admin import cache, degrade, drill, resilience
from gwcore.admin.metrics import CONTENT_TYPE, render
from gwcore.admin.status import build

if TYPE_CHECKING:
    from gwcore.supervisor import Supervisor

Handler = Callable[[Request], Awaitable[Response]]
GRACE_S = 1  # for requests under way when the server stops


def build_app(s: Supervisor) -> Starlette:
    """The application. With a token configured everything but the two probes asks for it."""

    def guarded(handler: Handler) -> Handler:
        async def check(request: Request) -> Response:
            token = s.config.admin.token
            if token and not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
                return PlainTextResponse("send the admin token: Authorization: Bearer …\n", 401, {"WWW-Authenticate": "Bearer"})
            return await handler(request)

        return check

    async def metrics(_: Request) -> Response:
        return Response(render(s), media_type=CONTENT_TYPE)

    async def status(_: Request) -> Response:
        return JSONResponse(build(s))

    async def events(request: Request) -> Response:
        since = request.query_params.get("since", "0")
        s.take_events()
        return JSONResponse({"events": s.events.list(int(since) if since.isdecimal() else 0), "last": s.events.serial})

    async def breakers(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not force breakers\n", 403)
        result, code = resilience.force(s, request.query_params)
        return JSONResponse(result, code)

    async def owed(_: Request) -> Response:
        return JSONResponse(s.compensation.list())

    async def settle(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not settle what is owed\n", 403)
        result, code = s.compensation.settle(request.path_params["what"], request.query_params)
        return JSONResponse(result, code)

    async def switch(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not degrade requests\n", 403)
        result, code = degrade.switch(s, request.query_params)
        return JSONResponse(result, code)

    async def drills(request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            return JSONResponse({"drills": drill.rows(s)})
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not drill\n", 403)
        result, code = (drill.start if request.method == "POST" else drill.stop)(s, request.query_params)
        return JSONResponse(result, code)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        return PlainTextResponse("ready\n") if s.state == "serving" else PlainTextResponse(f"{s.state}\n", 503)

    def from_a_page(request: Request) -> bool:
        return "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none"

    async def forget(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not forget sessions\n", 403)
        s.segment.forget_sessions()
        return JSONResponse({"ok": True})

    async def copies(_: Request) -> Response:
        return JSONResponse(cache.figures(s))

    async def purge(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not purge copies\n", 403)
        result, code = await cache.purge(s, request.query_params)
        return PlainTextResponse(result, code) if isinstance(result, str) else JSONResponse(result, code)

    def drain(out: bool) -> Handler:
        async def handler(request: Request) -> Response:
            if from_a_page(request):
                return PlainTextResponse("a page in a browser may not drain endpoints\n", 403)
            upstream, endpoint = request.query_params.get("upstream", ""), request.query_params.get("endpoint", "")
            if s.health.drain(upstream, endpoint, out):
                return JSONResponse({"ok": True})
            return PlainTextResponse(
                f"there is no endpoint {endpoint!r} in an upstream {upstream!r}; name both as /status does: ?upstream=…&endpoint=…\n",
                404,
            )

        return handler

    async def reload(request: Request) -> Response:
        if from_a_page(request):
            return PlainTextResponse("a page in a browser may not reload the gateway\n", 403)
        result = await s.reload()
        return JSONResponse(result, 200 if result["ok"] else 422)

    return Starlette(
        routes=[
            Route("/metrics", guarded(metrics)),
            Route("/status", guarded(status)),
            Route("/status/events", guarded(events)),
            Route("/breakers", guarded(breakers), methods=["POST"]),
            Route("/degrade", guarded(switch), methods=["POST"]),
            Route("/drill", guarded(drills), methods=["GET", "POST", "DELETE"]),
            Route("/compensation", guarded(owed)),
            Route("/compensation/{what}", guarded(settle), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/sessions/forget", guarded(forget), methods=["POST"]),
            Route("/cache", guarded(copies)),
            Route("/cache/purge", guarded(purge), methods=["POST"]),
            Route("/endpoints/drain", guarded(drain(True)), methods=["POST"]),
            Route("/endpoints/undrain", guarded(drain(False)), methods=["POST"]),
            Route("/reload", guarded(reload), methods=["POST"]),
        ]
    )


class _Server(uvicorn.Server):
    """uvicorn looks ten times a second whether it should stop; here it is told."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the supervisor's

    async def main_loop(self) -> None:
        await self.stopped.wait()


class Admin:
    """The server, which may be started again on another socket after it was stopped."""

    def __init__(self, supervisor: Supervisor):
        self.app = build_app(supervisor)
        self.server: _Server | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self, listening: socket.socket) -> None:
        """Serve on a duplicate of a listening socket."""
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self.server = _Server(config)
        self.task = asyncio.get_running_loop().create_task(self.server.serve(sockets=[listening.dup()]))

    async def stop(self) -> None:
        """Finish the requests under way, at most a second, and end."""
        if self.server and self.task:
            self.server.stopped.set()
            await asyncio.wait([self.task])
            self.server = self.task = None
