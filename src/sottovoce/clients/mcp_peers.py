"""Who is at the other end of an MCP session: found where the transport is made.

A session knows two streams and nothing of what is behind them. The functions that make a
transport know: a child process, or a URL. What they find is kept for as long as the stream
lives; behind a stream that nobody noted may be anyone, so no trace context goes there.
"""

from __future__ import annotations

import contextlib
import functools
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from sottovoce import exchange, guard

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from types import ModuleType

    from sottovoce.guard import ImportHooks, Patches


@dataclass
class Peer:
    """The other end.

    Attributes:
        transport: ``pipe`` or ``tcp``; ``None``: not known.
        local: it is this machine or the operator's own.
        host: of its URL.
        port: of its URL, or the scheme's own.
        session: gives the protocol's id of the session, once there is one.
        version: of the protocol, once the two sides agreed; kept for 1.x, of which no request
            says it.
    """

    transport: str | None = None
    local: bool = False
    host: str | None = None
    port: int | None = None
    session: Callable[[], Any] | None = None
    version: str | None = None


UNKNOWN: Final = Peer()
HERE: Final = Peer(local=True)

_behind: WeakKeyDictionary[Any, Peer] = WeakKeyDictionary()
_connecting: ContextVar[Peer | None] = ContextVar("sottovoce_mcp_connecting", default=None)

served_by_pipe: ContextVar[bool] = ContextVar("sottovoce_mcp_served_by_pipe", default=False)
"""Whether the code of this frame serves over standard input and output."""


def behind(session: Any) -> Peer:
    """Say who is at the other end of a session or dispatcher. May raise."""
    # `_write_stream`: seen in mcp 1.9 to 2.3; `_inner`: in 2.x, which sends contexts along.
    stream = getattr(session, "_write_stream", None)
    found: Peer | None = _behind.get(getattr(stream, "_inner", stream))
    return UNKNOWN if found is None else found


@guard.never_raise("mcp.agreed")
def agreed(session: Any, version: str | None) -> None:
    """Keep the version on which a session agreed. Never raises."""
    peer = behind(session)
    if peer is not UNKNOWN:
        peer.version = version


def install(hooks: ImportHooks, patches: Patches, own_hosts: tuple[str, ...]) -> None:
    """Note the other end of every transport that is made from now on."""

    def patch(names: Mapping[str, Callable[..., Any]]) -> Callable[[ModuleType, bool], None]:
        def run(module: ModuleType, late: bool) -> None:
            for name, make in names.items():
                patches.wrap(module, name, make)
            transport = getattr(module, "StreamableHTTPTransport", None)
            if transport is not None:
                patches.wrap(transport, "__init__", _constructor)
            if late:
                patches.rebind()

        return run

    to_url = functools.partial(_client, hooks, functools.partial(_at, own_hosts))
    to_child = functools.partial(_client, hooks, _child)
    # Seen in mcp 1.9 to 2.3; `streamablehttp_client` in 1.x alone.
    hooks.when_imported("mcp.client.stdio", patch({"stdio_client": to_child}))
    hooks.when_imported("mcp.client.sse", patch({"sse_client": to_url}))
    hooks.when_imported(
        "mcp.client.streamable_http",
        patch({"streamable_http_client": to_url, "streamablehttp_client": to_url}),
    )
    hooks.when_imported("mcp.server.stdio", patch({"stdio_server": _server}))
    # Seen in mcp 1.9 to 2.3.
    in_memory = functools.partial(_memory, hooks)
    hooks.when_imported(
        "mcp.shared.memory", patch({"create_client_server_memory_streams": in_memory})
    )


def _child(*_args: Any, **_kwargs: Any) -> Peer:
    return Peer("pipe", local=True)


def _at(own_hosts: tuple[str, ...], url: Any = "", *_args: Any, **_kwargs: Any) -> Peer:
    parts = urlsplit(url)
    host = parts.hostname or ""
    # The path is no business of ours: it may hold a key.
    server = exchange.server(parts.scheme, host, parts.port, "", own_hosts)
    return Peer("tcp", server.local, server.host, server.port)


def _client(
    hooks: ImportHooks, find: Callable[..., Peer], original: Callable[..., Any]
) -> Callable[..., Any]:
    """Replace a function that makes a transport by one that notes where it leads."""

    @guard.never_raise("mcp.peer")
    def found(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Peer | None:
        return find(*args, **kwargs) if hooks.active else None

    @functools.wraps(original)
    @contextlib.asynccontextmanager
    async def client(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        peer = found(args, kwargs)
        token = _connecting.set(peer)
        manager = original(*args, **kwargs)
        try:
            streams = await manager.__aenter__()
        finally:
            _unset(_connecting, token)
        if peer is not None:
            _note(streams, peer)
        async with _Entered(manager):
            yield streams

    return client


def _memory(hooks: ImportHooks, original: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a function that joins a client and a server in this process."""

    @guard.never_raise("mcp.note")
    def note(pair: Any) -> None:
        if hooks.active:
            for _, stream in pair:
                _behind[getattr(stream, "_inner", stream)] = Peer(local=True)

    @functools.wraps(original)
    @contextlib.asynccontextmanager
    async def streams(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        async with original(*args, **kwargs) as pair:
            note(pair)
            yield pair

    return streams


class _Entered:
    """A context manager that was entered already."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *raised: object) -> Any:
        return await self._manager.__aexit__(*raised)


@guard.never_raise("mcp.note")
def _note(streams: Any, peer: Peer) -> None:
    # In 1.x the third tells the session's id.
    if len(streams) > 2 and callable(streams[2]):  # noqa: PLR2004
        peer.session = streams[2]
    stream = streams[1]
    _behind[getattr(stream, "_inner", stream)] = peer


def _constructor(original: Callable[..., Any]) -> Callable[..., Any]:
    """Learn from a transport that is made meanwhile where its session's id will be."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        peer = _connecting.get()
        if peer is not None:
            peer.session = functools.partial(getattr, self, "session_id", None)

    return init


def _server(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let what is served over standard input and output know that it is."""

    @functools.wraps(original)
    @contextlib.asynccontextmanager
    async def server(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        token = served_by_pipe.set(True)
        try:
            async with original(*args, **kwargs) as streams:
                yield streams
        finally:
            _unset(served_by_pipe, token)

    return server


def _unset(variable: ContextVar[Any], token: Any) -> None:
    # Elsewhere than where it was set there is nothing to undo.
    with contextlib.suppress(ValueError):
        variable.reset(token)
