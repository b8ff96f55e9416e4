"""lm15, and dspy, which brings its own copy: each request that its transports send.

lm15 speaks HTTP over sockets of its own, so that no other library's hooks see it. Its answers are
always read on request: the iterator of their chunks is watched, and what gives the connection back
tells when the app stops before the end.

Seen in lm15 1.0.0rc3, as in dspy 3.4.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sottovoce import guard
from sottovoce.transports import TRANSPORTS, context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where
    from sottovoce.transports.wire import Watch

_transport = TRANSPORTS["lm15"]


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook one copy of lm15."""
    transport.patches.wrap(module.StdlibTransport, "stream", _wrap)
    transport.patches.wrap(module.StdlibAsyncTransport, "_do_stream", _wrap_async)


@guard.never_raise("lm15.begin")
def _begin(request: Any) -> Sending | None:
    url = request.url
    return _transport.begin(request.method, url, request.body, _where, url)


@guard.never_raise("lm15.carrying")
def _carrying(request: Any) -> Any:
    """Give a copy of the request that takes trace context along, where it may."""
    carried = context.carried(_transport, request.body, _where, request.url)
    if carried is None or context.has_any((name for name, _ in request.headers), carried):
        return None
    return dataclasses.replace(request, headers=[*request.headers, *carried.items()])


def _where(url: str) -> Where:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port, parts.path


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def stream(transport: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(request)
        request = _carrying(request) or request
        if begun is None:
            return original(transport, request, *args, **kwargs)
        try:
            response = original(transport, request, *args, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _answered(begun, response, _watched, _releasing)
        begun.finish()
        return response

    return stream


def _wrap_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def stream(transport: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(request)
        request = _carrying(request) or request
        if begun is None:
            return await original(transport, request, *args, **kwargs)
        try:
            response = await original(transport, request, *args, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _answered(begun, response, _watched_async, _releasing_async)
        begun.finish()
        return response

    return stream


@guard.never_raise("lm15.answered")
def _answered(
    begun: Sending,
    response: Any,
    watched: Callable[[Any, Watch], Any],
    releasing: Callable[[Any, Watch], Any],
) -> None:
    """Watch the body, which is always yet to be read."""
    if not begun.answered(None, response.status):
        return
    chunks, release = response._chunks, response._release
    watch = begun.watch(response.header("content-type"), response.header("content-encoding"))
    response._chunks = watched(chunks, watch)
    response._release = releasing(release, watch)


def _watched(chunks: Iterator[bytes], watch: Watch) -> Iterator[bytes]:
    feed = watch.feeder()
    try:
        for chunk in chunks:
            feed(chunk)
            yield chunk
    except GeneratorExit:
        # Thrown by whoever stopped reading: releasing follows.
        raise
    except BaseException as error:
        watch.broken(error)
        raise
    watch.exhausted()


async def _watched_async(chunks: AsyncIterator[bytes], watch: Watch) -> AsyncIterator[bytes]:
    feed = watch.feeder()
    try:
        async for chunk in chunks:
            feed(chunk)
            yield chunk
    except GeneratorExit:
        raise
    except BaseException as error:
        watch.broken(error)
        raise
    watch.exhausted()


def _releasing(release: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    def released(*args: Any, **kwargs: Any) -> Any:
        watch.closed()
        return release(*args, **kwargs)

    return released


def _releasing_async(release: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    async def released(*args: Any, **kwargs: Any) -> Any:
        watch.closed()
        return await release(*args, **kwargs)

    return released
