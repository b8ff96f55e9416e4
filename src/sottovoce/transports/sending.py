"""What every transport does with a request: says for which call it is sent, or opens one for it.

A transport calls `Transport.begin` before it sends a request, in the same frame `Sending.sent`
when the library has returned or raised, and then `broken` or `finish`. What other libraries,
further in, do with the same request meanwhile is no request of its own. Attempts of a call are:

* each request that an SDK sends for it (its retries);
* each redirect that the library followed, by its response's history;
* each try of urllib3's, also below requests, whose retries it makes.

An attempt that nobody tells of is not counted: aiohttp sends a request once more when the pooled
connection turns out to be closed, http.client's users follow redirects with requests of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sottovoce import exchange, guard
from sottovoce.protocols.bodies import request_facts
from sottovoce.transports import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sottovoce.exchange import HTTPCall, Server, Tokens
    from sottovoce.protocols.routes import Route
    from sottovoce.transports import Transport
    from sottovoce.transports.wire import Watch

    Where = tuple[str, str, int | None, str]
    """Scheme, host, port (``None`` for the scheme's own) and path of a request."""


class Sending:
    """A request that is on its way for a call.

    Attributes:
        call: whose attempt it is.
        route: what its path asks for.
        tokens: of a call that the transport itself opened: how to undo what made it current.
    """

    __slots__ = ("_before", "_body", "_tries", "call", "route", "tokens")

    def __init__(self, call: HTTPCall, route: Route, tokens: Tokens | None, body: Any) -> None:
        self.call = call
        self.route = route
        self.tokens = tokens
        self._before = call.attempts
        self._body = body
        self._tries = 0
        call.attempts += 1
        call.broken = None
        call.sending = self

    def asks(self, body: Any) -> bool:
        """Whether a request with this body is the same one; so it is where it cannot be told."""
        mine = self._body
        if body is mine:
            return True
        if isinstance(body, str):
            body = body.encode()
        if isinstance(mine, str):
            mine = mine.encode()
        return not isinstance(body, (bytes, dict)) or type(body) is not type(mine) or body == mine

    def tried(self) -> None:
        """A library further in sends it, for the first time or again."""
        self._tries += 1
        self.followed(self._tries - 1)

    def followed(self, redirects: int) -> None:
        """It was sent that many times more."""
        attempts = self._before + 1 + redirects
        if attempts > self.call.attempts:
            self.call.attempts = attempts

    def sent(self) -> None:
        """In the frame that began: it is no longer on its way. Never raises."""
        self.call.sending = None
        if self.tokens is not None:
            exchange.leave(self.call, self.tokens)

    def broken(self, error: BaseException) -> None:
        """The library raised `error`. Never raises."""
        # An attempt that failed is not yet a call that failed: an SDK may try again.
        if self.tokens is not None:
            exchange.end_cut_short(self.call, error)

    def answered(self, history: Sequence[Any] | None, status: int) -> bool:
        """The library returned a response: say whether its body is worth reading.

        Args:
            history: the responses before it, of redirects that were followed.
            status: its HTTP status.
        """
        if history:
            self.followed(len(history))
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP's successes
            return True
        if self.tokens is not None:
            self.call.fail(str(status))
        return False

    def read(self, content_type: str | None, body: bytes, coding: str | None = None) -> None:
        """Learn the facts of a body that is there; see `wire.read_whole`. May raise."""
        error = wire.read_whole(self.call, self.route, content_type, body, coding)
        if error is not None:
            # Answered with a success all the same: no SDK tries again, most don't raise.
            self.call.fail(error)

    def watch(
        self, content_type: str | None, coding: str | None, *, open_ended: bool = False
    ) -> Watch:
        """Watch a body that the app is going to read; see `wire.watch`. May raise."""
        return wire.watch(self.call, self.route, content_type, coding, open_ended=open_ended)

    def open_ended(self, headers: Mapping[str, str], version: str) -> bool:
        """Whether a body ends when the server closes the connection; see `wire.open_ended`."""
        return wire.open_ended(headers, version)

    def tap(self, response: Any) -> None:
        """Watch the body of a response of http.client's; see `tap.tap`. May raise."""
        from sottovoce.transports import tap  # noqa: PLC0415 - not every app has http.client

        tap.tap(self.call, self.route, response)

    def finish(self) -> None:
        """End the call of an answered request, unless its body is yet to be read. Never raises."""
        if self.tokens is not None and not self.call.watched:
            exchange.end(self.call)


def begin(
    transport: Transport,
    route: Route | None,
    method: str,
    body: Any,
    where: Callable[..., Where],
    *of: Any,
    tries: bool,
) -> Sending | None:
    """Do what `Transport.begin` says, for a request that could be a call's. May raise."""
    if route is None or route.sign is not None:
        route = _meant(route, method, body)
        if route is None:
            return None
    current = exchange.current()
    if current is not None:
        if not isinstance(current, exchange.HTTPCall):
            # A call in process.
            return None
        sending = current.sending
        if sending is None:
            return Sending(current, route, None, body)
        if sending.asks(body):
            if tries:
                sending.tried()
            return None
        # The app asks something else while a request is sent: in a hook of its own.
    recorder = transport.recorder
    if recorder is None or not transport.records:
        return None
    target = exchange.server(*where(*of), transport.own_hosts)
    facts = _facts_of_a_call(route, body, target)
    if facts is None:
        return None
    call = exchange.open_call(recorder, route, facts, target)
    return Sending(call, route, exchange.enter(call), body)


def _meant(route: Route | None, method: str, body: Any) -> Route | None:
    """What a request asks for whose path does not say it, or is used by others as well.

    A client knows it; else the body tells: AWS's other services are asked at no path, too.
    """
    sign = None if route is None else route.sign
    told = route if sign is not None and _names(body, sign) else None
    return exchange.expected(method) or told


def _facts_of_a_call(route: Route, body: Any, target: Server) -> Any:
    """Read a request that no SDK makes; ``None`` when it is somebody else's ``/responses``."""
    known = target.third_party or route.unmistakable
    if route.sign is not None:
        known = known or target.local
        if not known:
            return None
    facts: Any = _facts(route, body) or {}
    named = "request_model" in facts or "request_model" in route.facts
    return facts if known or named else None


def _names(body: Any, key: str) -> bool:
    """Whether a body has a key; no quote inside a string of JSON stands without a backslash."""
    if isinstance(body, dict):
        return key in body
    text = body.encode() if isinstance(body, str) else body
    return isinstance(text, bytes) and b'"%s"' % key.encode() in text


@guard.never_raise("transport.facts")
def _facts(route: Route, body: Any) -> Any:
    if isinstance(body, dict):
        return route.protocol.request(body)
    if isinstance(body, str):
        body = body.encode()
    return request_facts(route.protocol, body, _left_out) if isinstance(body, bytes) else None


def _left_out(reason: str) -> None:
    # That a body is no JSON is the app's own affair.
    if reason == "size":
        guard.undecodable[reason] += 1
    else:
        guard.let_through()
