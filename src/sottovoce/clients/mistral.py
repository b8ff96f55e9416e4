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
from sottovoce.clients.door import Asked, Door
from sottovoce.protocols import hosts, routes
from sottovoce.protocols.reader import request_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.exchange import HTTPCall
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
    door = _Door(recorder, hooks, own_hosts)

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


class _Door(Door):
    def asked(self, _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        # `do_request(hook_ctx, request, …)`, an httpx or httpx2 request.
        request = kwargs["request"] if "request" in kwargs else args[1]
        url = request.url
        route = routes.match(request.method, url.path)
        if route is None:
            return None
        # Set by the constructor for bodies given whole; uploads have none.
        body = getattr(request, "_content", None)
        facts = request_facts(route.protocol, body) if isinstance(body, bytes) else {}
        server = exchange.server(url.scheme, url.host, url.port, url.path, self._own_hosts)
        if url.fragment == "fim":
            # On Vertex AI code is completed at the path of a chat.
            route = route._replace(operation="text_completion")
        named = "mistral_ai" if server.provider == hosts.UNKNOWN else None
        return Asked(route, facts, server, named)

    def answered(self, call: HTTPCall, result: Any) -> None:
        # Of an answer that is an error the method above makes an exception.
        if result.status_code >= 400:  # noqa: PLR2004 - HTTP's errors
            call.fail(str(result.status_code))
