"""The HTTP application: authorization, limits, and the response to each error."""

# no `from __future__ import annotations`: FastAPI reads the annotations of functions whose imports are local
import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardlit.rewards.remote.wire import JSON, MSGPACK
from guardlit.serving.messages import Refusal, read_request, reward_request, write_response
from guardlit.serving.worker import Scores, Worker

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request


@dataclass(frozen=True)
class ServerLimits:
    """Limits of a server.

    Attributes:
        queue: requests in progress at once, the one being scored included; others get status 429.
        max_body_mb: megabytes (1e6 bytes) of a request's body, and of its decoded images.
        upload_s: seconds for the upload of a body.
    """

    queue: int = 64
    max_body_mb: float = 256
    upload_s: float = 60

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limits.{name}={value} must be positive")

    @property
    def max_bytes(self) -> int:
        """Bytes of a body."""
        return int(self.max_body_mb * 1e6)


def create_app(worker: Worker, facts: Mapping[str, Any], limits: ServerLimits, token: str | None = None) -> "FastAPI":
    """The application around a worker.

    Args:
        worker: computes the scores; closed when the application shuts down.
        facts: included in `/info`, with the scorers and the limits.
        limits: of the server.
        token: clients must send it as `Authorization: Bearer TOKEN`; None for no authorization.
    """
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    async def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not secrets.compare_digest(given, f"Bearer {token}".encode()):
            raise Refusal(401, "a bearer token is needed, and it must be the server's", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    requests = _Requests(worker, limits)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "under_way": requests.in_progress}

    @app.get("/info", dependencies=[Depends(authorize)])
    async def info() -> dict[str, Any]:
        scorers = {name: {"provenance": dict(scorer.provenance)} for name, scorer in worker.scorers.items()}
        allowed = {"queue": limits.queue, "max_body_bytes": limits.max_bytes}
        return {**facts, "limits": allowed, "scorers": scorers}

    @app.post("/v1/score", dependencies=[Depends(authorize)], response_class=Response)
    async def score(request: Request) -> Response:
        body, media_type = await requests.serve(request)
        return Response(body, media_type=media_type)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)

    return app


class _Requests:
    """Receives requests within the limits and sends responses. Runs in the event loop."""

    def __init__(self, worker: Worker, limits: ServerLimits) -> None:
        from starlette.requests import ClientDisconnect

        self._disconnected = ClientDisconnect
        self._worker, self._limits = worker, limits
        self.in_progress = 0

    async def serve(self, request: "Request") -> tuple[bytes, str]:
        """The response's body and media type; raises `Refusal`."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in (JSON, MSGPACK):
            raise Refusal(415, f"content type {media_type!r}: expected {MSGPACK} or {JSON}")
        if self.in_progress >= self._limits.queue:
            await self._receive(request, keep=False)  # a client that is still uploading would not read the response
            raise Refusal(429, f"{self.in_progress} requests are in progress already", {"Retry-After": "1"})
        self.in_progress += 1
        try:
            body = await self._receive(request)
            return await self._respond(request, body, media_type), media_type
        finally:
            self.in_progress -= 1

    async def _respond(self, request: "Request", body: bytes, media_type: str) -> bytes:
        message = await asyncio.to_thread(read_request, body, media_type)  # megabytes: not in the event loop
        name = self._name(message.scorer)
        images = await asyncio.to_thread(reward_request, message, self._limits.max_bytes)
        del body, message
        future = asyncio.wrap_future(self._worker.submit(name, images))
        scores = await _unless_disconnected(request, future)
        return await asyncio.to_thread(write_response, name, scores.items, scores.provenance, media_type)

    def _name(self, requested: str | None) -> str:
        served = list(self._worker.scorers)
        if requested is None and len(served) == 1:
            return served[0]
        if requested is None:
            raise Refusal(400, f"scorer: several are served, name one of {', '.join(served)}")
        if requested not in served:
            raise Refusal(404, f"scorer {requested!r} is not served here; there are {', '.join(served)}")
        return requested

    async def _receive(self, request: "Request", keep: bool = True) -> bytes:
        """The body, empty without `keep`; raises `Refusal` if it is too large or too slow."""
        most = self._limits.max_bytes
        too_large = Refusal(413, f"the body exceeds {most} bytes (limits.max_body_mb={self._limits.max_body_mb:g})")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        body, received = bytearray(), 0
        try:
            async with asyncio.timeout(self._limits.upload_s):
                async for chunk in request.stream():
                    received += len(chunk)
                    if received > most:
                        raise too_large
                    if keep:
                        body += chunk
        except TimeoutError:
            raise Refusal(408, f"the body took more than {self._limits.upload_s:g} s to arrive") from None
        except self._disconnected:
            raise Refusal(400, "the connection was closed within the body") from None
        return bytes(body)


async def _unless_disconnected(request: "Request", future: asyncio.Future[Scores]) -> Scores:
    """The scores; if the client disconnects, the request leaves the queue."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise Refusal(400, "the client closed the connection")
        return future.result()
    finally:
        future.cancel()
        watch.cancel()
