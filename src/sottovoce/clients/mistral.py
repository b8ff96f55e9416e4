"""mistralai, on Mistral's own API, on Azure and on Vertex AI: where a call is opened and closed.

Every method, whole or streamed, goes through `BaseSDK.do_request`, or its async twin, above the
retry loop. What the answer says is read off the wire beneath.

The SDK has a tracer of its own. From 1.10 on it made a span of every request as soon as there was
a tracer provider; beside ours it would be the call's second, so it is told that there is none
while a call of ours is being made. Since 2.6 it is off unless the app or `MISTRAL_SDK_TELEMETRY`
turns it on. Who does gets its spans besides ours: with ``dedicated`` they go to Mistral and not
through the app's pipeline, with ``global`` they go through it, and its gate.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce import exchange
from sottovoce.clients.speakeasy import RequestDoor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches


_TRACERS: Final = ("mistralai._hooks.tracing", "mistralai.client._hooks.tracing")


def install(
    recorder: Recorder,
    hooks: ImportHooks,
    patches: Patches,
    modules: Collection[str],
    own_hosts: tuple[str, ...] = (),
) -> None:
    """Open a call for every model request of mistralai, now or once it is imported.

    Args:
        recorder: what turns the calls into telemetry.
        hooks: registers the import hooks; once they are stopped, kept wrappers pass through.
        patches: undoes everything.
        modules: where the SDK has its base class, one for each cloud.
        own_hosts: hosts of the operator's own, besides this machine.
    """
    door = RequestDoor(recorder, hooks, own_hosts, "mistral_ai")

    def patch(module: ModuleType, _late: bool) -> None:
        # Seen in 1.0 to 1.12, whose SDKs for clouds are packages of their own, and in 2.0 to 3.7.
        patches.wrap(module.BaseSDK, "do_request", door.wrap)
        patches.wrap(module.BaseSDK, "do_request_async", door.wrap_async)

    def silence(module: ModuleType, _late: bool) -> None:
        if not hasattr(module, "configure_telemetry_for_hook"):
            patches.wrap(module, "get_traced_request_and_span", _none_in_our_calls)

    for name in modules:
        hooks.when_imported(name, patch)
    for name in _TRACERS:
        hooks.when_imported(name, silence)


def _none_in_our_calls(original: Callable[..., Any]) -> Callable[..., Any]:
    # Called before every request, with all arguments by name; seen in 1.10 to 2.4.
    @functools.wraps(original)
    def traced_request(*args: Any, **kwargs: Any) -> Any:
        if "tracing_enabled" in kwargs and isinstance(exchange.current(), exchange.HTTPCall):
            kwargs |= {"tracing_enabled": False, "span": None}
        return original(*args, **kwargs)

    return traced_request
