"""httpx and httpx2: each request of a call is counted, and its body read in passing.

One seam serves everything that these libraries do: `Client.send` and `AsyncClient.send`, which
every verb, `stream()`, every SDK and every user-given transport goes through. A body that is
read later is watched by putting a byte stream of ours around `response.stream`: the innermost
place that has the app's timing, below `iter_raw`, `iter_bytes`, `iter_lines`, `read` and the
SDKs' decoders alike, so that neither the response nor its type changes, no method is replaced
on an instance, and no reference cycle is made.

The seams were read in httpx 0.23 to 0.28 and httpx2 2.16.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce import exchange, guard
from sottovoce.protocols import routes
from sottovoce.protocols.reader import request_facts
from sottovoce.transports import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.exchange import Tokens
    from sottovoce.protocols.routes import Route

MODULES: Final = ("httpx", "httpx2")

_UNMISTAKABLE: Final = "/chat/completions"
"""A path that nobody uses for anything else: the body need not name a model, nor be readable."""


class _State:
    """Who uses the wire: hooks are in place while `users` is not 0."""

    def __init__(self) -> None:
        self.users = 0
        self.hooks = guard.ImportHooks()
        self.patches = guard.Patches()
        self.recorder: Recorder | None = None
        self.own_hosts: tuple[str, ...] = ()


_state = _State()


def install_wire() -> None:
    """Hook httpx and httpx2, now or when they are imported; each call needs a `remove_wire`."""
    _state.users += 1
    if _state.users > 1:
        return
    _state.hooks = guard.ImportHooks()
    _state.patches = guard.Patches()
    for module in MODULES:
        _state.hooks.when_imported(module, _patch)


def remove_wire() -> None:
    """Undo one `install_wire`; the last one puts everything back. Calls in flight still end."""
    if _state.users == 0:
        return
    _state.users -= 1
    if _state.users == 0:
        _state.hooks.stop()
        _state.patches.undo()


def set_raw_recorder(recorder: Recorder | None, own_hosts: tuple[str, ...] = ()) -> None:
    """Record requests that no SDK made, too, while a recorder is set.

    Args:
        recorder: what turns such calls into telemetry; ``None`` to leave them alone.
        own_hosts: hosts of the operator's own, besides this machine.
    """
    _state.own_hosts = own_hosts
    _state.recorder = recorder


def _patch(module: ModuleType, _late: bool) -> None:
    # `httpx2.alias_httpx` makes both names one module: `wrap` marks what it replaced.
    library = _Library(module)
    _state.patches.wrap(module.Client, "send", library.wrap_send)
    _state.patches.wrap(module.AsyncClient, "send", library.wrap_async_send)


class _Sending(NamedTuple):
    """A request that is on its way for a call."""

    call: exchange.HTTPCall
    route: Route
    tokens: Tokens | None
    """Of a call that the wire itself opened: how to undo what made it the current one."""


@guard.never_raise("httpx.begin")
def _begin(request: Any) -> _Sending | None:
    """Say for which call `request` is sent, or open one for it; ``None`` to leave it alone."""
    current = exchange.current()
    if current is not None:
        # A call in process, or a request that the app's own transport passes on.
        if not isinstance(current, exchange.HTTPCall) or _same(current.sending, request):
            return None
        if current.sending is None:
            route = routes.match(request.method, request.url.path)
            if route is None:
                return None
            current.attempts += 1
            current.sending = request
            return _Sending(current, route, None)
    recorder = _state.recorder
    if recorder is None or _state.users == 0:
        return None
    url = request.url
    route = routes.match(request.method, url.path)
    if route is None or not exchange.enabled(recorder):
        return None
    facts = _facts(route, request)
    server = exchange.server(url.scheme, url.host, url.port, url.path, _state.own_hosts)
    known = server.third_party or _UNMISTAKABLE in url.path
    if not known and "request_model" not in facts:
        # Somebody else's `/responses`.
        return None
    call = exchange.open_call(recorder, route, facts, server)
    call.attempts = 1
    call.sending = request
    return _Sending(call, route, exchange.enter(call))


def _same(sending: Any, request: Any) -> bool:
    """Whether `request` asks what is being sent already; so it does where it cannot be told."""
    if sending is None or sending is request:
        return sending is request
    body = getattr(request, "_content", None)
    return body is None or body == getattr(sending, "_content", body)


@guard.never_raise("httpx.facts")
def _request_facts(route: Route, request: Any) -> Any:
    # Set by the constructor for bodies given whole; an upload's stream is never read here.
    body = getattr(request, "_content", None)
    return request_facts(route.protocol, body) if isinstance(body, bytes) else None


def _facts(route: Route, request: Any) -> Any:
    return _request_facts(route, request) or {}


def _sent(sending: _Sending) -> None:
    """In the frame that called `_begin`: the request is no longer on its way."""
    call, _, tokens = sending
    call.sending = None
    if tokens is not None:
        exchange.leave(call, tokens)


def _broken(sending: _Sending, error: BaseException) -> None:
    # An attempt that failed is not yet a call that failed: an SDK may try again.
    if sending.tokens is not None:
        exchange.end_cut_short(sending.call, error)


class _Library:
    """httpx or httpx2: what has to be made of its own classes."""

    def __init__(self, module: ModuleType) -> None:
        self._streams = (module.SyncByteStream, module.AsyncByteStream)
        self._decoders = getattr(module, "_decoders", None)
        self._watched: tuple[Any, Any] = (
            _watched_stream(module.SyncByteStream),
            _watched_async_stream(module.AsyncByteStream),
        )

    def wrap_send(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            sending = _begin(request)
            if sending is None:
                return original(client, request, *args, **kwargs)
            try:
                response = original(client, request, *args, **kwargs)
            except BaseException as error:
                _sent(sending)
                _broken(sending, error)
                raise
            _sent(sending)
            self._answered(sending, response)
            return response

        return send

    def wrap_async_send(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            sending = _begin(request)
            if sending is None:
                return await original(client, request, *args, **kwargs)
            try:
                response = await original(client, request, *args, **kwargs)
            except BaseException as error:
                _sent(sending)
                _broken(sending, error)
                raise
            _sent(sending)
            self._answered(sending, response)
            return response

        return send

    def _answered(self, sending: _Sending, response: Any) -> None:
        try:
            self._read(sending, response)
        except Exception:  # noqa: BLE001 - between the library and the app
            guard.failed("httpx.answered")
        if sending.tokens is not None and not sending.call.watched:
            exchange.end(sending.call)

    def _read(self, sending: _Sending, response: Any) -> None:
        """Learn the facts of a body that is there, or watch one that is yet to be read."""
        call, route, tokens = sending
        status = response.status_code
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's successes
            if tokens is not None:
                call.fail(str(status))
            return
        content_type = response.headers.get("content-type")
        if hasattr(response, "_content"):
            error = wire.read_whole(call, route, content_type, response.content)
            if error is not None:
                # Answered with a success all the same: no SDK tries again, most don't raise.
                call.fail(error)
            return
        stream = response.stream
        for base, watched in zip(self._streams, self._watched, strict=True):
            if isinstance(stream, base):
                coding = response.headers.get("content-encoding")
                watch = wire.watch(call, route, content_type, coding, self._decoder)
                response.stream = watched(stream, watch)
                call.watched = True
                return

    def _decoder(self, coding: str) -> wire.Decompress | None:
        """What the library itself would undo `coding` with: its optional extras, br and zstd."""
        make = getattr(self._decoders, "SUPPORTED_DECODERS", {}).get(coding)
        if make is None:
            return None
        decode = make().decode

        def decompress(data: bytes) -> Any:
            # httpx gives bytes, httpx2 an iterator of pieces.
            plain = decode(data)
            return (plain,) if isinstance(plain, bytes) else plain

        return decompress


def _of_the_inner_stream(stream: Any, name: str) -> Any:
    inner = vars(stream).get("_sottovoce_stream")
    if inner is None:  # being copied: not initialised
        raise AttributeError(name)
    return getattr(inner, name)


def _watched_stream(base: type[Any]) -> type[Any]:
    class WatchedStream(base):  # type: ignore[misc]
        """A response's byte stream that tells a `Watch` of each chunk before it passes on."""

        def __init__(self, stream: Any, watch: wire.Watch) -> None:
            self._sottovoce_stream = stream
            self._sottovoce_watch = watch

        def __getattr__(self, name: str) -> Any:
            # `elapsed`, and whatever else a transport put on its stream.
            return _of_the_inner_stream(self, name)

        def __iter__(self) -> Iterator[bytes]:
            watch = self._sottovoce_watch
            feed = watch.feeder()
            try:
                for chunk in self._sottovoce_stream:
                    feed(chunk)
                    yield chunk
            except GeneratorExit:
                # Thrown by whoever stopped reading, not by the stream: closing follows.
                raise
            except BaseException as error:
                watch.broken(error)
                raise
            watch.exhausted()

        def close(self) -> None:
            self._sottovoce_watch.closed()
            self._sottovoce_stream.close()

    return WatchedStream


def _watched_async_stream(base: type[Any]) -> type[Any]:
    class WatchedAsyncStream(base):  # type: ignore[misc]
        """The same for an asynchronous stream."""

        def __init__(self, stream: Any, watch: wire.Watch) -> None:
            self._sottovoce_stream = stream
            self._sottovoce_watch = watch

        def __getattr__(self, name: str) -> Any:
            return _of_the_inner_stream(self, name)

        def __aiter__(self) -> AsyncIterator[bytes]:
            chunks = self._sottovoce_stream.__aiter__()
            kind = _WatchedGenerator if isinstance(chunks, AsyncGenerator) else _WatchedIterator
            return kind(chunks, self._sottovoce_watch)

        async def aclose(self) -> None:
            self._sottovoce_watch.closed()
            await self._sottovoce_stream.aclose()

    return WatchedAsyncStream


class _WatchedIterator:
    """Not an async generator: one more of those would have to be finalized by the event loop."""

    __slots__ = ("_chunks", "_feed", "_watch")

    def __init__(self, chunks: Any, watch: wire.Watch) -> None:
        self._chunks = chunks
        self._feed = watch.feeder()
        self._watch = watch

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await self._chunks.__anext__()
        except StopAsyncIteration:
            self._watch.exhausted()
            raise
        except BaseException as error:
            self._watch.broken(error)
            raise
        self._feed(chunk)
        return chunk


class _WatchedGenerator(_WatchedIterator):
    """For a stream that is a generator: httpx2 closes it as such when the app stops early."""

    __slots__ = ()

    async def asend(self, value: Any) -> Any:
        return await self._chunks.asend(value)

    async def athrow(self, *error: Any) -> Any:
        return await self._chunks.athrow(*error)

    async def aclose(self) -> None:
        await self._chunks.aclose()
