"""urllib3: each request to a pool or through a manager, retries and redirects included.

`HTTPConnectionPool.urlopen` calls itself for each retry; `PoolManager.urlopen` calls it, for each
redirect too. The outermost is the request, each call of the pool's an attempt. requests and
botocore sit on the pool as well: their requests are theirs, and their tries are told here.

A body that is read on request is watched where http.client reads it (`tap.py`); a preloaded one
is there. Responses over HTTP/2, which is experimental in urllib3 2, are not read.

Seen in urllib3 1.26 and 2.8.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sottovoce import guard
from sottovoce.transports import TRANSPORTS, context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where

_transport = TRANSPORTS["urllib3"]
install_wire = _transport.install_wire
remove_wire = _transport.remove_wire
set_raw_recorder = _transport.set_raw_recorder


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook urllib3."""
    pool, manager = module.connectionpool.HTTPConnectionPool, module.poolmanager.PoolManager
    transport.patches.wrap(pool, "urlopen", _wrapper(_where_of_pool, tries=True))
    transport.patches.wrap(manager, "urlopen", _wrapper(_where, tries=False))


_begin = guard.never_raise("urllib3.begin")(_transport.begin)


def _wrapper(where: Callable[[Any, str], Where], *, tries: bool) -> Any:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def urlopen(pool: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            # `urlopen(method, url, body=None, …)` of a pool; a manager's has keywords alone.
            body = args[0] if args and tries else kwargs.get("body")
            begun = _begin(method, url, body, where, pool, url, tries=tries)
            if tries:
                args = _carrying(pool, url, body, args, kwargs) or args
            if begun is None:
                return original(pool, method, url, *args, **kwargs)
            try:
                response = original(pool, method, url, *args, **kwargs)
            except BaseException as error:
                begun.sent()
                begun.broken(error)
                raise
            begun.sent()
            _answered(begun, response, decoded=kwargs.get("decode_content", True))
            begun.finish()
            return response

        return urlopen

    return wrap


@guard.never_raise("urllib3.carrying")
def _carrying(
    pool: Any, url: str, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...] | None:
    """Give `args`, or write `kwargs`, with headers of ours in the place of the app's."""
    carried = context.carried(_transport, body, _where_of_pool, pool, url)
    if carried is None:
        return None
    given = args[1] if len(args) > 1 else kwargs.get("headers")
    headers = context.added(pool.headers if given is None else given, carried)
    if headers is None:
        return None
    if len(args) > 1:
        return (args[0], headers, *args[2:])
    kwargs["headers"] = headers
    return None


@guard.never_raise("urllib3.answered")
def _answered(begun: Sending, response: Any, *, decoded: bool) -> None:
    """Learn the facts of a body that is there, or watch one that is yet to be read."""
    if not begun.answered(None, response.status):
        return
    body = response._body  # what was preloaded, in every version seen
    if body is None:
        original = response._original_response
        if original is not None and response.tell() == 0:
            begun.tap(original)
        return
    headers = response.headers
    coding = None if decoded else headers.get("content-encoding")
    begun.read(headers.get("content-type"), body, coding)


def _where(_: Any, url: str) -> Where:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port, parts.path


def _where_of_pool(pool: Any, url: str) -> Where:
    if "://" in url:
        # Through a proxy.
        return _where(pool, url)
    return pool.scheme, pool.host, pool.port, url.partition("?")[0]
