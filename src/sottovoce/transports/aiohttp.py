"""aiohttp's client: each request that a session sends, redirects included.

`ClientSession._request` is what every verb goes through. A response's `content` has slots, and
is left as it is: what we put into two of them lets us see every chunk when the app takes it out,
and every exception that is raised while the app waits. A third seam, of the class, says that the
server broke off or that the app closed the response, which need not be reading then.

Bodies are decompressed before they get there, unless the session is told not to.

Seen in aiohttp 3.8 and 3.14.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from sottovoce import guard
from sottovoce.transports import TRANSPORTS, context

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType, TracebackType

    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Sending, Where
    from sottovoce.transports.wire import Watch

_transport = TRANSPORTS["aiohttp"]
install_wire = _transport.install_wire
remove_wire = _transport.remove_wire
set_raw_recorder = _transport.set_raw_recorder


def patch(transport: Transport, module: ModuleType) -> None:
    """Hook aiohttp."""
    closed = module.ClientConnectionError
    transport.patches.wrap(module.ClientSession, "_request", _wrap_request)
    transport.patches.wrap(module.ClientRequest, "send", _wrap_send)
    transport.patches.wrap(
        module.StreamReader, "set_exception", functools.partial(_wrap_set_exception, closed)
    )


def _wrap_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(session: Any, method: str, url: Any, *args: Any, **kwargs: Any) -> Any:
        begun = _begin(session, method, url, kwargs)
        if begun is None:
            return await original(session, method, url, *args, **kwargs)
        try:
            response = await original(session, method, url, *args, **kwargs)
        except BaseException as error:
            begun.sent()
            begun.broken(error)
            raise
        begun.sent()
        _answered(begun, response, session, kwargs)
        begun.finish()
        return response

    return request


def _wrap_send(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        _carry(request)
        return await original(request, *args, **kwargs)

    return send


@guard.never_raise("aiohttp.carry")
def _carry(request: Any) -> None:
    """Write into the headers of a request that aiohttp made, one for each redirect."""
    carried = context.carried(_transport, None, _where_of, request.url)
    # What opens a tunnel is the proxy's.
    if carried is not None and request.method != "CONNECT":
        headers = request.headers
        if not context.has_any(headers, carried):
            headers.update(carried)


@guard.never_raise("aiohttp.begin")
def _begin(session: Any, method: str, url: Any, asked: dict[str, Any]) -> Sending | None:
    body = asked.get("json")
    if body is None:
        body = asked.get("data")
    path = url if isinstance(url, str) else url.path
    return _transport.begin(method, path, body, _where, session, url)


def _where(session: Any, url: Any) -> Where:
    return _where_of(session._build_url(url))


def _where_of(url: Any) -> Where:
    return url.scheme, url.host or "", url.port, url.path


def _decompressed(session: Any, asked: dict[str, Any]) -> bool:
    told = asked.get("auto_decompress")
    return bool(getattr(session, "_auto_decompress", True) if told is None else told)


@guard.never_raise("aiohttp.answered")
def _answered(begun: Sending, response: Any, session: Any, asked: dict[str, Any]) -> None:
    """Watch the body, which is always yet to be read."""
    if not begun.answered(response.history, response.status):
        return
    content = response.content
    if not isinstance(getattr(content, "_buffer", None), deque):
        # `EMPTY_PAYLOAD`: there is no body.
        return
    headers = response.headers
    coding = None if _decompressed(session, asked) else headers.get("content-encoding")
    version = "HTTP/{}.{}".format(*response.version) if response.version else ""
    watch = begun.watch(
        headers.get("content-type"),
        coding,
        open_ended=begun.open_ended(headers, version),
    )
    buffer = _WatchedBuffer(content._buffer)
    buffer.protocol = content._protocol
    buffer.watch = watch
    buffer.feed = watch.feeder()
    content._buffer = buffer
    content._timer = _WatchedTimer(content._timer, watch)
    if content.is_eof():
        buffer.arrived(by_closing=False)
    else:
        # Before aiohttp's own, which gives the connection back.
        content._eof_callbacks.insert(0, buffer.complete)


class _WatchedBuffer(deque[bytes]):
    """What arrived and was not taken out yet. Tells a `Watch` of what is."""

    __slots__ = ("at_end", "feed", "protocol", "seen", "watch")

    at_end: Callable[[], None] | None
    feed: Callable[[bytes], None]
    protocol: Any
    seen: int  # bytes at the beginning that the watch was told of already
    watch: Watch | None

    def __init__(self, chunks: deque[bytes]) -> None:
        super().__init__(chunks)
        self.seen = 0
        self.watch = None
        self.at_end = None

    @guard.never_raise("aiohttp.complete")
    def complete(self) -> None:
        """All has arrived, or the app closed the session: then the connection is no more."""
        self.arrived(by_closing=self.protocol.transport is None)

    def arrived(self, *, by_closing: bool) -> None:
        """Nothing more comes: what there is may still be read."""
        watch = self.watch
        if watch is not None:
            self.at_end = watch.closed if by_closing else watch.exhausted
            if not self:
                self.at_end()

    def popleft(self) -> bytes:
        chunk = super().popleft()
        self._take(chunk)
        if self.at_end is not None and not self:
            self.at_end()
        return chunk

    def __getitem__(self, index: Any) -> Any:
        # Who reads lines looks at the first chunk and takes a part of it; the rest of the last
        # one, a blank line, may never be read.
        chunk = super().__getitem__(index)
        if index == 0 and self.seen < len(chunk):
            self.feed(chunk[self.seen :])
            self.seen = len(chunk)
        return chunk

    # `StreamReader.unread_data`, deprecated since 3.6, cuts the first chunk and puts one before.

    def __setitem__(self, index: Any, rest: Any) -> None:
        self.seen -= len(self[index]) - len(rest)
        super().__setitem__(index, rest)

    def appendleft(self, chunk: bytes) -> None:
        super().appendleft(chunk)
        self.seen += len(chunk)

    def _take(self, chunk: bytes) -> None:
        if self.seen < len(chunk):
            self.feed(chunk[self.seen :] if self.seen else chunk)
            self.seen = 0
        else:
            self.seen -= len(chunk)


class _WatchedTimer:
    """Entered while the app waits for more: what is raised there ends the call."""

    __slots__ = ("_timer", "_watch")

    def __init__(self, timer: Any, watch: Watch) -> None:
        self._timer = timer
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timer, name)

    def assert_timeout(self) -> None:
        try:
            self._timer.assert_timeout()
        except BaseException as error:
            self._watch.broken(error)
            raise

    def __enter__(self) -> Any:
        try:
            return self._timer.__enter__()
        except BaseException as error:
            self._watch.broken(error)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        try:
            swallowed = self._timer.__exit__(kind, error, trace)
        except BaseException as raised:
            self._watch.broken(raised)
            raise
        if error is not None and not swallowed:
            self._watch.broken(error)
        return swallowed


def _wrap_set_exception(closed: type[Exception], original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def set_exception(content: Any, error: Any, *args: Any, **kwargs: Any) -> Any:
        buffer = getattr(content, "_buffer", None)
        if isinstance(buffer, _WatchedBuffer) and buffer.watch is not None:
            if type(error) is closed:
                # What aiohttp sets when the app closes or releases a response.
                buffer.watch.closed()
            else:
                buffer.watch.broken(error)
        return original(content, error, *args, **kwargs)

    return set_exception
