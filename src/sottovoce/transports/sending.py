"""What every transport does with a request: says for which call it is sent, or opens one for it.

A transport calls `begin` before it sends a request, in the same frame `sent` when the library
has returned or raised, and then `broken` or `finish`. What other libraries, further in, do with
the same request meanwhile is no request of its own. Attempts of a call are:

* each request that an SDK sends for it (its retries);
* each redirect that the library followed, by its response's history;
* each try of urllib3's, also below requests, whose retries it makes.

An attempt that nobody tells of is not counted: aiohttp sends a request once more when the pooled
connection turns out to be closed, http.client's users follow redirects with requests of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sottovoce import exchange, guard
from sottovoce.protocols import routes
from sottovoce.protocols.reader import request_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sottovoce.exchange import HTTPCall, Tokens
    from sottovoce.protocols.routes import Route
    from sottovoce.transports import Transport

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


@guard.never_raise("transport.begin")
def begin(
    transport: Transport,
    method: str,
    path: str,
    body: Any,
    where: Callable[..., Where],
    *of: Any,
    tries: bool = False,
) -> Sending | None:
    """Say for which call a request is sent, or open one for it; ``None`` to leave it alone.

    Args:
        transport: who sends it.
        method: its method.
        path: the path of its URL; the whole URL does as well.
        body: as the library was given it; read where it is text or a dict, never consumed.
        where: says where it goes, when given `of`.
        of: arguments of `where`.
        tries: each time is an attempt, also below another library.
    """
    route = routes.match(method, path) or exchange.expected(method)
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
    if recorder is None or transport.users == 0 or not exchange.enabled(recorder):
        return None
    facts: Any = _facts(route, body) or {}
    target = exchange.server(*where(*of), transport.own_hosts)
    known = target.third_party or route.unmistakable
    if not known and "request_model" not in facts and "request_model" not in route.facts:
        # Somebody else's `/responses`.
        return None
    call = exchange.open_call(recorder, route, facts, target)
    return Sending(call, route, exchange.enter(call), body)


@guard.never_raise("transport.facts")
def _facts(route: Route, body: Any) -> Any:
    if isinstance(body, dict):
        return route.protocol.request(body)
    if isinstance(body, str):
        body = body.encode()
    return request_facts(route.protocol, body) if isinstance(body, bytes) else None


def sent(sending: Sending) -> None:
    """In the frame that called `begin`: the request is no longer on its way. Never raises."""
    call = sending.call
    call.sending = None
    if sending.tokens is not None:
        exchange.leave(call, sending.tokens)


def broken(sending: Sending, error: BaseException) -> None:
    """The library raised `error`. Never raises."""
    # An attempt that failed is not yet a call that failed: an SDK may try again.
    if sending.tokens is not None:
        exchange.end_cut_short(sending.call, error)


def answered(sending: Sending, history: Sequence[Any] | None, status: int) -> bool:
    """The library returned a response: say whether its body is worth reading.

    Args:
        sending: what it answers.
        history: the responses before it, of redirects that were followed.
        status: its HTTP status.
    """
    if history:
        sending.followed(len(history))
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's successes
        return True
    if sending.tokens is not None:
        sending.call.fail(str(status))
    return False


def finish(sending: Sending) -> None:
    """End the call of an answered request, unless its body is still to be read. Never raises."""
    if sending.tokens is not None and not sending.call.watched:
        exchange.end(sending.call)
