"""http.client, and with it urllib.request: each request and response of a connection.

A request is sent by `HTTPConnection.request` and answered by `getresponse`; between them the
connection remembers for which call. urllib3 has its own `request` (since 2.0) and its own room.
urllib follows redirects with requests of their own, which are GETs: a POST that is redirected is
a call that failed with that status.

Seen in CPython 3.10 to 3.14.
"""

from __future__ import annotations

import functools
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import dropped, guard
from sottovoce.transports import TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where

_transport = TRANSPORTS["http_client"]
install_wire = _transport.install_wire
remove_wire = _transport.remove_wire
set_raw_recorder = _transport.set_raw_recorder

_AWAITED: Final = "_sottovoce_awaited"
_HTTPS: Final = 443


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook http.client."""
    transport.patches.wrap(module.HTTPConnection, "request", _wrap_request)
    transport.patches.wrap(module.HTTPConnection, "getresponse", _wrap_getresponse)


class _Awaited:
    """On a connection: what was asked on it last, and is not answered yet."""

    __slots__ = ("_begun", "_sent_ns")

    def __init__(self, begun: Sending) -> None:
        self._sent_ns = perf_counter_ns()
        self._begun: Sending | None = begun

    def take(self) -> Sending | None:
        begun, self._begun = self._begun, None
        return begun

    def __del__(self) -> None:
        # The connection was dropped, or used for something else: nobody wants the answer.
        try:
            begun = self.take()
            if begun is not None and begun.tokens is not None:
                dropped.stop(begun.call, self._sent_ns)
        except Exception:  # noqa: BLE001, S110 - half-built, or the interpreter is going away
            pass


def _wrap_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(
        connection: Any, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        begun = _transport.begin(method, url, body, _where, connection, url)
        if begun is None:
            return original(connection, method, url, body, *args, **kwargs)
        try:
            result = original(connection, method, url, body, *args, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _await(connection, begun)
        return result

    return request


@guard.never_raise("http_client.await")
def _await(connection: Any, begun: Sending) -> None:
    if begun.tokens is not None:
        dropped.keep(begun.call)
    vars(connection)[_AWAITED] = _Awaited(begun)


def _wrap_getresponse(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def getresponse(connection: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _awaited(connection)
        if begun is None:
            return original(connection, *args, **kwargs)
        try:
            response = original(connection, *args, **kwargs)
        except BaseException as error:
            begun.broken(error)
            raise
        _answered(begun, response)
        begun.finish()
        return response

    return getresponse


def _awaited(connection: Any) -> Sending | None:
    awaited: _Awaited | None = vars(connection).pop(_AWAITED, None)
    return None if awaited is None else awaited.take()


@guard.never_raise("http_client.answered")
def _answered(begun: Sending, response: Any) -> None:
    if begun.answered(None, response.status):
        begun.tap(response)


def _where(connection: Any, url: str) -> Where:
    if "://" in url:
        # Through a proxy.
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port, parts.path
    scheme = "https" if connection.default_port == _HTTPS else "http"
    host = connection._tunnel_host or connection.host
    port = connection._tunnel_port or connection.port
    return scheme, host, port, url.partition("?")[0]
