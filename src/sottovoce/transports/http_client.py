"""http.client, and with it urllib.request: each request and response of a connection.

A request is sent by `HTTPConnection.request` and answered by `getresponse`; between them the
connection remembers for which call. One that is sent step by step begins with `putrequest`: of its
body nothing is known, and its headers are the app's alone. urllib3 has its own `request` (since
2.0) and its own room.
urllib follows redirects with requests of their own, which are GETs: a POST that is redirected is
a call that failed with that status.

Seen in CPython 3.10 to 3.13.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import guard
from sottovoce.transports import TRANSPORTS, context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.awaited import Awaited
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
    transport.patches.wrap(
        module.HTTPConnection,
        "putrequest",
        functools.partial(_wrap_putrequest, module.HTTPConnection),
    )
    transport.patches.wrap(module.HTTPConnection, "getresponse", _wrap_getresponse)


@guard.never_raise("http_client.begin")
def _begin(connection: Any, method: str, url: str, body: Any) -> Sending | None:
    return _transport.begin(method, url, body, _where, connection, url)


def _wrap_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(
        connection: Any, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        begun = _begin(connection, method, url, body)
        args = _carrying(connection, url, body, args, kwargs) or args
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


def _wrap_putrequest(owner: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def putrequest(connection: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        begun = None
        # Who makes requests another way has a room of its own.
        if type(connection).request is owner.request:
            begun = _begin(connection, method, url, None)
        if begun is None:
            return original(connection, method, url, *args, **kwargs)
        try:
            result = original(connection, method, url, *args, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _await(connection, begun)
        return result

    return putrequest


@guard.never_raise("http_client.carrying")
def _carrying(
    connection: Any, url: str, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...] | None:
    """Give `args`, or write `kwargs`, with headers of ours in the place of the app's."""
    carried = context.carried(_transport, body, _where, connection, url)
    if carried is None:
        return None
    headers = context.added(args[0] if args else kwargs.get("headers", {}), carried)
    if headers is None:
        return None
    if args:
        return (headers, *args[1:])
    kwargs["headers"] = headers
    return None


@guard.never_raise("http_client.await")
def _await(connection: Any, begun: Sending) -> None:
    from sottovoce.transports.awaited import Awaited  # noqa: PLC0415 - most requests ask no model

    vars(connection)[_AWAITED] = Awaited(begun)


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


@guard.never_raise("http_client.awaited")
def _awaited(connection: Any) -> Sending | None:
    awaited: Awaited | None = vars(connection).pop(_AWAITED, None)
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
