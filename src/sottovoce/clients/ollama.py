"""The ollama SDK: where a call is opened and closed, nothing else.

Every method ends in `Client._request`, or its async twin, which makes no second attempt. Asked
for a stream it returns a generator, which makes the request when it is first read. Seen in
ollama 0.4 to 0.6; in 0.1 to 0.3 streams had a method of their own, `_stream`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sottovoce import exchange
from sottovoce.clients.door import Asked
from sottovoce.clients.late import LateDoor
from sottovoce.clients.methods import Method, installer
from sottovoce.protocols import routes

if TYPE_CHECKING:
    from collections.abc import Callable


class _Door(LateDoor):
    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        # `_request(cls, method, path, …)`; without the class before 0.4.
        method, path = (value for value in args if isinstance(value, str))
        route = routes.match(method, path)
        if route is None:
            return None
        base = client._client.base_url  # its httpx client, seen in 0.1 to 0.6
        target = exchange.server(base.scheme, base.host, base.port, path, self._own_hosts)
        return Asked(route, route.protocol.request(kwargs["json"]), target)

    def error(self, raised: BaseException) -> BaseException | str:
        # One class for every error of the server; -1 in a stream that had begun.
        status = getattr(raised, "status_code", None)
        return str(status) if isinstance(status, int) and status > 0 else raised

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        whole = super().wrap(original)
        stream = self.wrap_stream(original)

        @functools.wraps(original)
        def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            return (stream if kwargs.get("stream") else whole)(client, *args, **kwargs)

        return request

    def wrap_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        whole = super().wrap_async(original)
        stream = self.wrap_async_stream(original)

        @functools.wraps(original)
        async def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            return await (stream if kwargs.get("stream") else whole)(client, *args, **kwargs)

        return request

    def wrap_async_stream(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Make the replacement of a coroutine method that returns an asynchronous generator."""

        @functools.wraps(original)
        async def stream(client: Any, *args: Any, **kwargs: Any) -> Any:
            return self.begin(await original(client, *args, **kwargs), (client, args, kwargs))

        return stream


install = installer(
    _Door,
    Method("ollama._client", "Client", "_request", _Door.wrap),
    Method("ollama._client", "AsyncClient", "_request", _Door.wrap_async),
    Method("ollama._client", "Client", "_stream", _Door.wrap_stream),
    Method("ollama._client", "AsyncClient", "_stream", _Door.wrap_async_stream),
)
