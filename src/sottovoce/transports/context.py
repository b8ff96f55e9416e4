"""Trace context that goes with the requests of a call, to hosts of the operator's own alone.

Each request that a library really sends is judged by where it goes: retries carry the context of
their call, a redirect to somebody else's host loses it. What the app or another instrumentation
put into the headers stays. Headers and requests that the app could send again are never written
to; a transport makes the change in a copy, or in what the library makes anew for each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sottovoce import guard
from sottovoce.call import current_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.exchange import HTTPCall
    from sottovoce.transports import Transport
    from sottovoce.transports.sending import Where


def carried(
    transport: Transport, body: Any, where: Callable[..., Where], *of: Any
) -> Mapping[str, str] | None:
    """Give the headers to add to a request that is about to be sent. Never raises.

    Args:
        transport: the library that sends it.
        body: as the library was given it.
        where: says where it goes, when given `of`.
        of: arguments of `where`.

    Returns:
        ``None`` for a request that is no call's, and where nothing may be said.
    """
    call = current_call.get()
    if call is None or getattr(call, "sending", None) is None:
        return None
    return _carried(transport, cast("HTTPCall", call), body, where, *of)


def none_to(host: str) -> bool:
    """Whether nothing may go along to `host`, as far as the host alone can tell. May raise.

    So it is where the call itself goes there, and it is somebody else's.
    """
    call = current_call.get()
    if call is None or getattr(call, "sending", None) is None:
        return True
    if call.local or call.address != host:
        return False
    withholds: Callable[..., bool] | None = getattr(call.recorder, "withholds", None)
    return withholds is not None and withholds(call)


@guard.never_raise("transport.carried")
def _carried(
    transport: Transport, call: HTTPCall, body: Any, where: Callable[..., Where], *of: Any
) -> Mapping[str, str] | None:
    from sottovoce import exchange  # noqa: PLC0415 - loaded by the first call

    # A recorder of the contract need not have it.
    ask: Callable[..., Mapping[str, str] | None] | None = getattr(call.recorder, "carried", None)
    # Something else may be asked meanwhile, in a hook of the app's.
    if ask is None or not call.sending.asks(body):
        return None
    target = exchange.server(*where(*of), transport.own_hosts)
    there = target.port == call.port and target.host == call.address
    return ask(call, local=call.local if there else target.local) or None


def added(headers: Any, carried: Mapping[str, str]) -> Any:
    """Give a copy of headers of any kind with `carried`; ``None`` where they must stay as they are.

    So it is where one of the names is there, and where no copy can be made.
    """
    if has_any(headers, carried) or not hasattr(headers, "copy"):
        return None
    copy = headers.copy()
    copy.update(carried)
    return copy


def has_any(headers: Any, names: Mapping[str, str]) -> bool:
    """Whether one of these names is in headers of any kind, text or bytes, in any case."""
    return any(
        (name.decode("latin-1") if isinstance(name, bytes) else str(name)).lower() in names
        for name in headers
    )
