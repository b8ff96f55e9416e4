"""A receiver of OTLP over HTTP for development: loopback only, everything into one file.

It is a viewer's store, not a Collector: no processing, no forwarding, no gRPC. It accepts
what any process on this machine sends, so it trusts nothing: sizes are bounded before and
after decompression, what cannot be read is answered as OTLP wants (`google.rpc.Status`) and
kept all the same, because those bytes left an app too.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from google.rpc import code_pb2, status_pb2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from sottovoce.cli import otlp, store
from sottovoce.cli.kept import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request as HttpRequest
    from typing_extensions import Self

DEFAULT_PORT: Final = 4318

_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
_TYPES: Final = (_PROTOBUF, _JSON)
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
# Headers whose values may be credentials: a file for looking at is no place for them.
_SECRETS: Final = ("auth", "cookie", "key", "token", "secret")
_RETRY_AFTER_S: Final = 30
_START_S: Final = 10.0
_TOO_LARGE: Final = 413
_UNAVAILABLE: Final = 503


class CannotListen(Exception):
    """The address cannot be used; the message is for the person who chose it."""


class _Refusal(Exception):
    """An answer that is not 200: HTTP status, code of `google.rpc.Status`, and why."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def loopback(host: str) -> str:
    """The loopback address that `host` names.

    Raises:
        CannotListen: it names another one, which would let the network write into the store.
    """
    name = "127.0.0.1" if host.lower() == "localhost" else host
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise CannotListen(
            f"the local receiver listens on loopback only, not on {host}: it takes what anyone "
            "sends, without authentication. To receive from other machines run an "
            "OpenTelemetry Collector."
        )
    return name


class Receiver:
    """The receiver: an address that is bound, a store that it fills.

    Args:
        into: where requests are kept.
        port: TCP port; 0 takes a free one.
        host: a loopback address.
        on_request: called with each request after it was kept, from a worker thread.

    Raises:
        CannotListen: the address is not loopback, or taken.
    """

    def __init__(
        self,
        into: store.Store,
        *,
        port: int = DEFAULT_PORT,
        host: str = "127.0.0.1",
        on_request: Callable[[Request], None] | None = None,
    ) -> None:
        self._store = into
        self._on_request = on_request
        address = loopback(host)
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((address, port))
            # From here on who connects waits, instead of being refused until we serve.
            self._socket.listen(128)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise CannotListen(
                f"port {port} on {address} cannot be used ({error}): a Collector may have it. "
                "Choose another with --port; 0 takes a free one."
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self.endpoint = (
            f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app(),
                log_level="critical",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Receive until interrupted; for the main thread."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        """Receive in a thread; returns when requests are accepted."""
        self._thread = threading.Thread(target=self.serve, name="sottovoce local", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise CannotListen("the receiver did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop after the requests in progress were answered."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_START_S)

    def _app(self) -> Starlette:
        # HEAD comes with GET only: every other method than POST is answered with 405.
        routes = [
            Route(f"/v1/{signal}", self._endpoint(signal), methods=["POST"])
            for signal in otlp.SIGNALS
        ]
        return Starlette(
            routes=routes,
            exception_handlers={404: _no_route, 405: _no_method},
        )

    def _endpoint(self, signal: str) -> Callable[[HttpRequest], Any]:
        async def receive(http: HttpRequest) -> Response:
            return await self._receive(signal, http)

        return receive

    async def _receive(self, signal: str, http: HttpRequest) -> Response:
        at_ns = time.time_ns()
        media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = http.headers.get("content-encoding", "").strip().lower()
        as_json = media != _PROTOBUF
        body, size = await _body(http)
        plain = 0
        rows = otlp.Rows()
        refusal: _Refusal | None = None
        try:
            _accept(media, encoding, body)
            text, rows = await run_in_threadpool(_read, signal, body or b"", encoding, as_json)
            plain = len(text)
        except _Refusal as error:
            refusal = error
        kept = Request(
            id=0, at_ns=at_ns, signal=signal, head=_head(http), encoding=encoding,
            body=body or b"", size=size, plain=plain, status=refusal.status if refusal else 200,
            service=rows.service, records=rows.count,
        )  # fmt: skip
        try:
            await run_in_threadpool(self._keep, kept, rows)
        except store.StoreError as error:
            refusal = _Refusal(_UNAVAILABLE, code_pb2.UNAVAILABLE, str(error))
        if refusal is not None:
            return _refused(refusal, as_json=as_json)
        answer = otlp.response(signal, rows.rejected, as_json=as_json)
        return Response(answer, media_type=_JSON if as_json else _PROTOBUF)

    def _keep(self, request: Request, rows: otlp.Rows) -> None:
        self._store.add(request, rows)
        if self._on_request is not None:
            self._on_request(request)


async def _body(http: HttpRequest) -> tuple[bytes | None, int]:
    """The body and its length; None and what was announced or seen when it is too large."""
    announced = http.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > otlp.MAX_PLAIN:
        return None, min(int(announced), 2**62)
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > otlp.MAX_PLAIN:
            return None, len(body)
    return bytes(body), len(body)


def _accept(media: str, encoding: str, body: bytes | None) -> None:
    if body is None:
        raise _too_large()
    if media not in _TYPES:
        raise _Refusal(
            415, code_pb2.INVALID_ARGUMENT, f"the content type must be {' or '.join(_TYPES)}"
        )
    if encoding not in _ENCODINGS:
        raise _Refusal(
            415, code_pb2.INVALID_ARGUMENT, "the content encoding must be gzip, deflate or none"
        )


def _read(signal: str, body: bytes, encoding: str, as_json: bool) -> tuple[bytes, otlp.Rows]:
    try:
        text = otlp.decompress(body, encoding)
        return text, otlp.rows(signal, otlp.parse(signal, text, as_json=as_json))
    except otlp.TooLarge:
        raise _too_large() from None
    except otlp.Malformed as error:
        raise _Refusal(400, code_pb2.INVALID_ARGUMENT, str(error)) from None


def _too_large() -> _Refusal:
    return _Refusal(
        _TOO_LARGE,
        code_pb2.RESOURCE_EXHAUSTED,
        f"a body may have at most {otlp.MAX_PLAIN} bytes, decompressed",
    )


def _head(http: HttpRequest) -> str:
    lines = [f"{http.method} {http.url.path}" + (f"?{http.url.query}" if http.url.query else "")]
    for name, value in http.headers.items():
        secret = any(part in name.lower() for part in _SECRETS)
        lines.append(f"{name}: {'***' if secret else value}")
    return "\n".join(lines)


def _refused(refusal: _Refusal, *, as_json: bool) -> Response:
    if as_json:
        status = {"code": refusal.code, "message": refusal.message}
        body = json.dumps(status).encode()
    else:
        body = status_pb2.Status(code=refusal.code, message=refusal.message).SerializeToString()
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if refusal.status == _UNAVAILABLE else {}
    if refusal.status == _TOO_LARGE:
        # The rest of the body was not read, so this connection has no next request.
        headers["Connection"] = "close"
    return Response(
        body, refusal.status, headers=headers, media_type=_JSON if as_json else _PROTOBUF
    )


def _speaks_protobuf(http: HttpRequest) -> bool:
    return http.headers.get("content-type", "").lower().startswith(_PROTOBUF)


def _no_route(http: HttpRequest, _: Exception) -> Response:
    paths = ", ".join(f"/v1/{signal}" for signal in otlp.SIGNALS)
    refusal = _Refusal(404, code_pb2.NOT_FOUND, f"there are {paths}")
    return _refused(refusal, as_json=not _speaks_protobuf(http))


def _no_method(http: HttpRequest, _: Exception) -> Response:
    refusal = _Refusal(405, code_pb2.UNIMPLEMENTED, "OTLP is sent with POST")
    answer = _refused(refusal, as_json=not _speaks_protobuf(http))
    answer.headers["Allow"] = "POST"
    return answer
