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
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.transports import TRANSPORTS, context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import ModuleType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where
    from sottovoce.transports.wire import Watch

_transport = TRANSPORTS["httpx"]
install_wire = _transport.install_wire
remove_wire = _transport.remove_wire
set_raw_recorder = _transport.set_raw_recorder


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook httpx or httpx2."""
    # `httpx2.alias_httpx` makes both names one module: `wrap` marks what it replaced.
    library = _Library(module)
    transport.patches.wrap(module.Client, "send", library.wrap_send)
    transport.patches.wrap(module.AsyncClient, "send", library.wrap_async_send)
    transport.patches.wrap(module.Client, "_send_single_request", _wrap_single)
    transport.patches.wrap(module.AsyncClient, "_send_single_request", _wrap_async_single)


def _begin(request: Any) -> Sending | None:
    try:
        # `_content` is set by the constructor for bodies given whole; an upload has a stream alone.
        body = getattr(request, "_content", None)
        return _transport.begin(request.method, request.url.path, body, _where, request.url)
    except Exception:  # noqa: BLE001 - never into the app
        guard.failed("httpx.begin")
        return None


def _where(url: Any) -> Where:
    return url.scheme, url.host, url.port, url.path


def _wrap_single(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def single(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        twin = _carrying(request)
        if twin is None:
            return original(client, request, *args, **kwargs)
        try:
            response = original(client, twin.request, *args, **kwargs)
        except BaseException as error:
            _put_back(request, twin, error)
            raise
        _put_back(request, twin, response)
        return response

    return single


def _wrap_async_single(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def single(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        twin = _carrying(request)
        if twin is None:
            return await original(client, request, *args, **kwargs)
        try:
            response = await original(client, twin.request, *args, **kwargs)
        except BaseException as error:
            _put_back(request, twin, error)
            raise
        _put_back(request, twin, response)
        return response

    return single


class _Twin:
    """What is sent in the place of a request, which the app may send again, even meanwhile."""

    __slots__ = ("carried", "headers", "request")

    def __init__(
        self, request: Any, carried: Mapping[str, str], headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.request = request
        self.carried = carried
        self.headers = headers


def _carrying(request: Any) -> _Twin | None:
    """Give a twin of the request that takes trace context along, where it may. Never raises."""
    try:
        # Nearly always; a URL takes long to give all its parts.
        return None if context.none_to(request.url.host) else _twin(request)
    except Exception:  # noqa: BLE001 - never into the app
        guard.failed("httpx.carrying")
        return None


def _twin(request: Any) -> _Twin | None:
    body = getattr(request, "_content", None)
    carried = context.carried(_transport, body, _where, request.url)
    if carried is None:
        return None
    headers = request.headers
    twin = object.__new__(type(request))
    vars(twin).update(vars(request))
    twin.headers = copy = headers.copy()
    for name, value in carried.items():
        # These know no case.
        if name in headers:
            return None
        copy[name] = value
    return _Twin(twin, carried, copy.raw)


@guard.never_raise("httpx.put_back")
def _put_back(request: Any, twin: _Twin, result: Any) -> None:
    """Make a response or an exception the app's request's, with all that was done to the twin."""
    sent, headers = twin.request, request.headers
    if sent.headers.raw != twin.headers:
        # A transport of the app's wrote there.
        for name, value in twin.carried.items():
            if sent.headers.get(name) == value:
                del sent.headers[name]
        headers.update(sent.headers)
    vars(request).update({**vars(sent), "headers": headers})
    if getattr(result, "_request", None) is sent:
        result.request = request


class _Library:
    """What has to be made of the classes of httpx or httpx2."""

    def __init__(self, module: ModuleType) -> None:
        self._streams = (module.SyncByteStream, module.AsyncByteStream)
        self._watched: tuple[Any, Any] = (
            _watched_stream(module.SyncByteStream),
            _watched_async_stream(module.AsyncByteStream),
        )

    def wrap_send(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            begun = _begin(request)
            if begun is None:
                return original(client, request, *args, **kwargs)
            try:
                response = original(client, request, *args, **kwargs)
            except BaseException as error:
                begun.sent()
                begun.broken(error)
                raise
            begun.sent()
            self._answered(begun, response)
            begun.finish()
            return response

        return send

    def wrap_async_send(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            begun = _begin(request)
            if begun is None:
                return await original(client, request, *args, **kwargs)
            try:
                response = await original(client, request, *args, **kwargs)
            except BaseException as error:
                begun.sent()
                begun.broken(error)
                raise
            begun.sent()
            self._answered(begun, response)
            begun.finish()
            return response

        return send

    def _answered(self, begun: Sending, response: Any) -> None:
        """Learn the facts of a body that is there, or watch one that is yet to be read."""
        try:
            if not begun.answered(response.history, response.status_code):
                return
            # What `content` gives where it has been read.
            body = getattr(response, "_content", None)
            if body is not None:
                begun.read(response.headers.get("content-type"), body)
            else:
                self._watch(begun, response)
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("httpx.answered")

    def _watch(self, begun: Sending, response: Any) -> None:
        stream = response.stream
        for base, watched in zip(self._streams, self._watched, strict=True):
            if isinstance(stream, base):
                # All at once: each question goes through all of them.
                headers = dict(response.headers.items())
                # Absent where the app answers with a transport of its own.
                version = response.extensions.get("http_version", b"").decode()
                watch = begun.watch(
                    headers.get("content-type"),
                    headers.get("content-encoding"),
                    open_ended=begun.open_ended(headers, version),
                )
                response.stream = watched(stream, watch)
                return


_OBSERVER: Final = "stream_observer"
"""What anthropic 2.0 to 2.12 asks a stream for at every event: what is not there takes long to say."""


def _of_the_inner_stream(stream: Any, name: str) -> Any:
    inner = vars(stream).get("_sottovoce_stream")
    if inner is None:  # being copied: not initialised
        raise AttributeError(name)
    return getattr(inner, name)


def _watched_stream(base: type[Any]) -> type[Any]:
    class WatchedStream(base):  # type: ignore[misc]
        """A response's byte stream that tells a `Watch` of each chunk before it passes on."""

        def __init__(self, stream: Any, watch: Watch) -> None:
            self._sottovoce_stream = stream
            self._sottovoce_watch = watch
            self.stream_observer = getattr(stream, _OBSERVER, None)

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
                # Thrown by whoever stopped reading, not by the stream. Most close the response
                # then; who keeps it open (huggingface_hub 1.x) cannot read on either.
                watch.closed()
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

        def __init__(self, stream: Any, watch: Watch) -> None:
            self._sottovoce_stream = stream
            self._sottovoce_watch = watch
            self.stream_observer = getattr(stream, _OBSERVER, None)

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

    def __init__(self, chunks: Any, watch: Watch) -> None:
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

    def __del__(self) -> None:
        # Who was reading is gone; the response may be kept.
        try:  # noqa: SIM105 - when the interpreter goes away, imported names may be gone
            self._watch.closed()
        except Exception:  # noqa: BLE001, S110 - half-built, or the interpreter is going away
            pass


class _WatchedGenerator(_WatchedIterator):
    """For a stream that is a generator: httpx2 closes it as such when the app stops early."""

    __slots__ = ()

    async def asend(self, value: Any) -> Any:
        return await self._chunks.asend(value)

    async def athrow(self, *error: Any) -> Any:
        return await self._chunks.athrow(*error)

    async def aclose(self) -> None:
        await self._chunks.aclose()
