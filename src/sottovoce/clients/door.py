"""What every door of an SDK does: open a call before its request is made, close it afterwards.

A door is a wrapper around one method of an SDK, above its retries. It says what is asked of
which model where; what the answer says is read off the wire by the transport beneath. The
SDK's own exception, or its return, ends a call whose body nobody is left to read.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from sottovoce import exchange, guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Facts, Recorder
    from sottovoce.exchange import HTTPCall, Server, Tokens
    from sottovoce.guard import ImportHooks
    from sottovoce.protocols.routes import Route

    Opened = tuple[HTTPCall, Tokens]


class Asked:
    """What a method of an SDK was called for.

    Attributes:
        route: what its path asks for.
        facts: what its arguments say.
        server: where the request will go.
        provider: who answers there, when the SDK knows better than the address.
    """

    __slots__ = ("facts", "provider", "route", "server")

    def __init__(
        self, route: Route, facts: Facts, server: Server, provider: str | None = None
    ) -> None:
        self.route = route
        self.facts = facts
        self.server = server
        self.provider = provider


class Door(ABC):
    """Opens and closes the calls of one method; a subclass says what it was called for.

    Args:
        recorder: what turns the calls into telemetry.
        hooks: once they are stopped, wrappers that someone kept pass through.
        own_hosts: hosts of the operator's own, besides this machine.
    """

    def __init__(
        self, recorder: Recorder, hooks: ImportHooks, own_hosts: tuple[str, ...] = ()
    ) -> None:
        self._recorder = recorder
        self._hooks = hooks
        self._own_hosts = own_hosts
        # One that cannot say whether it wants calls wants all.
        self._enabled: Callable[[], bool] = getattr(recorder, "enabled", _always)
        # Most doors learn nothing from it.
        self._learns = type(self).answered is not Door.answered

    @abstractmethod
    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        """Say what the method was called for; ``None`` when that is no model call. May raise."""

    def answered(self, call: HTTPCall, result: Any) -> None:  # noqa: B027 - most results say nothing more
        """Learn what only the SDK's result says. May raise."""

    def error(self, raised: BaseException) -> BaseException | str:
        """Say what `call.error` becomes: the exception, or the provider's code in it. May raise."""
        return raised

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Make the replacement of a method that returns when it has an answer."""

        @functools.wraps(original)
        def method(client: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._open(client, args, kwargs)
            if opened is None:
                return original(client, *args, **kwargs)
            try:
                result = original(client, *args, **kwargs)
            except BaseException as error:
                self._failed(opened, error)
                raise
            self._returned(opened, result)
            return result

        return method

    def wrap_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Make the replacement of a coroutine method."""

        @functools.wraps(original)
        async def method(client: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._open(client, args, kwargs)
            if opened is None:
                return await original(client, *args, **kwargs)
            try:
                result = await original(client, *args, **kwargs)
            except BaseException as error:
                self._failed(opened, error)
                raise
            self._returned(opened, result)
            return result

        return method

    def _open(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        """Open the call and make it the current one; ``None`` when this is none, or not ours."""
        try:
            outer = exchange.current()
            if outer is not None and not getattr(outer, "sending", None):
                # Another SDK on top of this one has opened it. While a request is being sent no
                # SDK is at work but the app: in a hook or a transport of its own.
                return None
            if not self._hooks.active or not self._enabled():
                return None
            asked = self.asked(client, args, kwargs)
            if asked is None:
                return None
            call = exchange.open_call(
                self._recorder, asked.route, asked.facts, asked.server, asked.provider
            )
            return call, exchange.enter(call)
        except Exception:  # noqa: BLE001 - never into the app
            guard.failed("door.open")
            return None

    def _failed(self, opened: Opened, error: BaseException) -> None:
        exchange.leave(*opened)
        code = self._code(error)
        if isinstance(code, str):
            _fail(opened[0], code)
        exchange.end_cut_short(opened[0], error)

    @guard.never_raise("door.error")
    def _code(self, error: BaseException) -> BaseException | str:
        return self.error(error)

    def _returned(self, opened: Opened, result: Any) -> None:
        call, tokens = opened
        exchange.leave(call, tokens)
        if self._learns:
            try:
                self.answered(call, result)
            except Exception:  # noqa: BLE001 - never into the app
                guard.failed("door.answered")
        # Unless its body is still to be read, the call is over then.
        if not call.watched:
            exchange.end(call)


def _always() -> bool:
    return True


@guard.never_raise("door.fail")
def _fail(call: HTTPCall, code: str) -> None:
    call.fail(code)
