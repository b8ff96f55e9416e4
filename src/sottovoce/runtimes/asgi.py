"""Requests over HTTP that this process answers, seen from outermost in an ASGI app.

Of a request the route and the scheme are looked at, of its headers those that name the caller's
span, of the answer the status; no body, no path, no query. What passes is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sottovoce import dropped
from sottovoce.call import Call
from sottovoce.guard import failed, never_raise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from sottovoce.call import Recorder

_STOPS: Final = (GeneratorExit, KeyboardInterrupt, SystemExit)
"""The server is being stopped: nothing failed."""

_FAILED: Final = 500
"""From here on a status says that it was the server who failed."""


class Headers:
    """Headers of a request, of which few are ever asked for.

    Args:
        pairs: names and values, as an ASGI scope has them.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._pairs = pairs

    def get(self, name: str) -> str | None:
        """Give the last header of a name, which is in lower case here. May raise."""
        wanted, found = name.encode("latin-1"), None
        for key, value in self._pairs:
            # Servers may leave them as they were sent; most do not.
            if len(key) == len(wanted) and (key == wanted or key.lower() == wanted):
                found = value
        return None if found is None else found.decode("latin-1")


class ServedRequest(Call):
    """A request that this process answers: it asks no model itself.

    Attributes:
        headers: of the request.
        method: of HTTP.
        route: the template that it fits, never its path.
        scheme: ``http`` or ``https``.
        status: of the answer, once it began.
    """

    __slots__ = ("headers", "method", "route", "scheme", "status")

    def __init__(
        self, recorder: Recorder, method: str, route: str, scheme: str, headers: Headers
    ) -> None:
        self.method = method
        self.route = route
        self.scheme = scheme
        self.headers = headers
        self.status: int | None = None
        # Not by way of `super`, which looks for the class each time.
        Call.__init__(self, recorder, operation="", provider="", served=True, local=True)

    def sent(self, message: Mapping[str, Any]) -> None:
        """A part of the answer was sent. Never raises."""
        # Written out: `never_raise` costs a call more.
        try:
            kind = message.get("type")
            if kind == "http.response.start":
                self.status = message["status"]
            elif kind == "http.response.body" and not message.get("more_body"):
                self.finish()
        except Exception:  # noqa: BLE001 - as it does
            failed("asgi.sent")

    def finish(self) -> None:
        """All of the answer was sent."""
        if self.status is not None and self.status >= _FAILED:
            self.fail(str(self.status))
        else:
            self.end()

    @never_raise("asgi.broken")
    def broken(self, error: BaseException) -> None:
        """The app raised `error`. Never raises."""
        if isinstance(error, _STOPS):
            dropped.stop(self)
        else:
            self.fail(error)


class Served:
    """Middleware that records some requests and passes on all.

    Args:
        app: what answers.
        open_: opens the request that an ASGI scope begins; ``None`` for one that is nobody's. Never
            raises.
    """

    def __init__(self, app: Any, open_: Callable[[Any], ServedRequest | None]) -> None:
        self._app = app
        self._open = open_

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        request = self._open(scope)
        if request is None:
            await self._app(scope, receive, send)
            return
        entered = request.recorder.enter(request)
        try:
            await self._app(scope, receive, _watched(request, send))
        except BaseException as error:
            request.broken(error)
            raise
        else:
            if request.is_open:
                # The client had left before the end.
                request.abandon()
        finally:
            request.recorder.leave(entered)


def _watched(
    request: ServedRequest, send: Callable[[Any], Awaitable[None]]
) -> Callable[[Any], Awaitable[None]]:
    async def noted(message: Any) -> None:
        await send(message)
        request.sent(message)

    def watched(message: Any) -> Awaitable[None]:
        # A piece of a stream says nothing, and there is one for every token.
        if type(message) is dict and message.get("more_body") is True:
            return send(message)
        return noted(message)

    return watched
