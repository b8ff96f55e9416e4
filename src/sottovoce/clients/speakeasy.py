"""SDKs made by Speakeasy's generator (mistralai, a part of google-genai): the one door they share.

Every method, whole or streamed, goes through `do_request`, above the retry loop, with a request
that httpx or httpx2 has built. What the answer says is read off the wire beneath.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.protocols import hosts, routes
from sottovoce.protocols.bodies import request_facts

if TYPE_CHECKING:
    from sottovoce.call import Recorder
    from sottovoce.exchange import HTTPCall
    from sottovoce.guard import ImportHooks


class RequestDoor(Door):
    """Opens and closes the calls of `BaseSDK.do_request` and its async twin.

    Args:
        recorder: what turns the calls into telemetry.
        hooks: once they are stopped, wrappers that someone kept pass through.
        own_hosts: hosts of the operator's own, besides this machine.
        provider: who answers where the address does not say.
    """

    def __init__(
        self, recorder: Recorder, hooks: ImportHooks, own_hosts: tuple[str, ...], provider: str
    ) -> None:
        super().__init__(recorder, hooks, own_hosts)
        self._provider = provider

    def asked(self, _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        """Read the request, httpx's or httpx2's: ``do_request(hook_ctx, request, …)``."""
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
            # Mistral's on Vertex AI: code is completed at the path of a chat.
            route = route.but(operation="text_completion")
        named = self._provider if server.provider == hosts.UNKNOWN else None
        return Asked(route, facts, server, named)

    def answered(self, call: HTTPCall, result: Any) -> None:
        """Fail the call where an error was returned, of which the method above makes an exception."""
        if result.status_code >= 400:  # noqa: PLR2004 - HTTP's errors
            call.fail(str(result.status_code))
