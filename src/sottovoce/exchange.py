"""A call over HTTP: what the client that opens it and the transport that serves it share.

A client (`clients/`) opens the call above an SDK's retries; a transport (`transports/`) sends
its requests and reads its facts, or opens a call itself when no SDK is at work. Both meet in
`call.current_call`, which holds the call only while its request is being made.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce import dropped, guard
from sottovoce.call import Call, current_call
from sottovoce.protocols import hosts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token

    from sottovoce.call import Facts, Recorder
    from sottovoce.protocols.routes import Route

    Tokens = tuple[Any, Token[Call | None]]

_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}

_STOPS: Final = (GeneratorExit, KeyboardInterrupt, SystemExit)
"""The app dropped its coroutine or is being stopped: nothing failed."""


class Server:
    """Where a request goes.

    Attributes:
        host: as in the URL.
        port: the scheme's own where the URL names none.
        provider: who answers there.
        third_party: the host is known to be a provider's, or was named by the operator.
        local: the host is this machine or the operator's own.
        named: the operator said who answers there.
    """

    __slots__ = ("host", "local", "named", "port", "provider", "third_party")

    def __init__(
        self,
        host: str | None,
        port: int | None,
        provider: str,
        *,
        third_party: bool,
        local: bool,
        named: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.provider = provider
        self.third_party = third_party
        self.local = local
        self.named = named


@functools.lru_cache(maxsize=256)
def server(
    scheme: str, host: str, port: int | None, path: str, own_hosts: tuple[str, ...]
) -> Server:
    """Say where a request goes; `port` is ``None`` for the scheme's own.

    `own_hosts` are hosts of the operator's own, besides this machine, and endpoints that he
    named (see `hosts.endpoint`).
    """
    port = port or _PORTS.get(scheme)
    local = hosts.is_local(host, own_hosts)
    named = hosts.endpoint(host, port, path, own_hosts)
    if named is not None:
        local = local if named.local is None else named.local
        return Server(host or None, port, named.provider, third_party=True, local=local, named=True)
    provider, third_party = hosts.provider(host, port, path)
    return Server(host or None, port, provider, third_party=third_party is True, local=local)


class HTTPCall(Call):
    """A call over HTTP.

    Attributes:
        broken: what the last attempt's body broke off with while the SDK read it, which may
            have tried again or made do with what came.
        route: what it asks for, where it may be sent to a path that does not say so.
        sending: the request of this call that a transport is sending right now, else ``None``;
            what the app's own hooks and transports do meanwhile is no attempt of this call.
        entered: the frame that opened the call has not left it yet.
        left: what undoes `enter`, while one that entered later has yet to leave.
        watched: whoever reads the response's body ends the call; whoever opened it does not.
    """

    __slots__ = ("broken", "entered", "left", "route", "sending", "watched")

    broken: type[BaseException] | None
    entered: bool
    left: Tokens | None
    route: Route | None
    sending: Any
    watched: bool


def open_call(
    recorder: Recorder, route: Route, facts: Facts, target: Server, provider: str | None = None
) -> HTTPCall:
    """Open a call.

    Args:
        recorder: what turns the call into telemetry.
        route: what the request's path says.
        facts: what the request's body says; may be empty, counts before what the path says.
        target: where the request goes.
        provider: who answers, when the client knows better than the address; the operator
            knows better still.
    """
    if provider is None or target.named:
        provider = target.provider
        if provider == hosts.UNKNOWN and route.provider is not None and not target.named:
            provider = route.provider
    if route.facts:
        facts = {**route.facts, **facts}
    call = HTTPCall(
        recorder,
        operation=route.operation,
        provider=provider,
        model=facts.get("request_model"),
        local=target.local,
        address=target.host,
        port=target.port,
    )
    call.entered = call.watched = False
    call.sending = call.left = call.broken = None
    call.route = route if route.anywhere else None
    call.facts.update(facts)
    call.stream = facts.get("request_stream") is True
    return call


def current() -> Call | None:
    """The call that this frame works for, if any.

    A task that was started inside a call keeps what was current then for as long as it runs:
    once the call was left, what such a task asks a model is another call.
    """
    call = current_call.get()
    if call is None or not call.is_open or (isinstance(call, HTTPCall) and not call.entered):
        return None
    return call


def expected(method: str) -> Route | None:
    """Say what a request asks for whose path does not say it, when a client knows it instead."""
    call = current_call.get()
    if isinstance(call, HTTPCall) and call.route is not None and call.entered and method == "POST":
        return call.route
    return None


def enter(call: HTTPCall) -> Tokens:
    """Make `call` the current one, and its span; undo it in the same frame with `leave`."""
    call.entered = True
    return call.recorder.enter(call), current_call.set(call)


def leave(call: HTTPCall, tokens: Tokens) -> None:
    """Undo `enter`. Never raises.

    Coroutines that share a context may leave in another order than they entered: what was
    current before is restored once the last that entered has left.
    """
    try:
        call.entered = False
        call.left = tokens
        top: Call | None = call
        if current_call.get() is not call:
            return
        while isinstance(top, HTTPCall) and top.left is not None:
            span, before = top.left
            try:
                current_call.reset(before)
            except ValueError:
                # A coroutine that was dropped is closed in another context, never entered.
                return
            top.left = None
            top.recorder.leave(span)
            top = current_call.get()
    except Exception:  # noqa: BLE001 - never into the app
        guard.failed("exchange.leave")


@guard.never_raise("exchange.cut_short")
def end_cut_short(call: Call, error: BaseException) -> None:
    """End `call` because of an exception on its way to the app. Never raises."""
    if isinstance(error, _STOPS):
        dropped.stop(call)
    else:
        call.fail(error)


def end(call: HTTPCall) -> None:
    """End `call` because its request was answered. Never raises."""
    try:
        if call.broken is not None:
            call.fail(call.broken)
        call.end()
    except Exception:  # noqa: BLE001 - never into the app
        guard.failed("exchange.end")
