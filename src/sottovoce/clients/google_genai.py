"""google-genai, for Gemini's API and for Vertex AI: where a call is opened and closed.

Every method of `models`, `chats` and automatic function calling, whole or streamed, goes
through one function, or its async twin, above the retry loop and with the whole URL at hand.
What the answer says is read off the wire beneath, be it httpx, httpx2, requests or aiohttp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.clients.speakeasy import RequestDoor
from sottovoce.protocols import hosts, routes

if TYPE_CHECKING:
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches


def install(
    recorder: Recorder,
    hooks: ImportHooks,
    patches: Patches,
    own_hosts: tuple[str, ...] = (),
) -> None:
    """Open a call for every model request of google-genai, now or once it is imported.

    Arguments as in `generated.install`.
    """
    door = _Door(recorder, hooks, own_hosts)

    def patch(module: ModuleType, _late: bool) -> None:
        # Seen in 1.0 to 3.4; 1.0 names the class without `Base`. In 1.0 the async function runs
        # the other one in a thread, which then finds the call open.
        owner = getattr(module, "BaseApiClient", None) or module.ApiClient
        patches.wrap(owner, "_request", door.wrap)
        patches.wrap(owner, "_async_request", door.wrap_async)

    generated = RequestDoor(recorder, hooks, own_hosts, "gcp.gemini")

    def patch_generated(module: ModuleType, _late: bool) -> None:
        # `interactions`, by another generator; seen in 2.34 and 3.4.
        patches.wrap(module.BaseSDK, "do_request", generated.wrap)
        patches.wrap(module.AsyncBaseSDK, "do_request_async", generated.wrap_async)

    hooks.when_imported("google.genai._api_client", patch)
    hooks.when_imported("google.genai._gaos.basesdk", patch_generated)


class _Door(Door):
    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        # `_request(http_request, …)`, whose `data` is what becomes the JSON body.
        request = args[0] if args else kwargs["http_request"]
        url = urlsplit(request.url)
        route = routes.match(request.method, url.path)
        if route is None:
            return None
        data = request.data
        facts = route.protocol.request(data) if isinstance(data, dict) else {}
        server = exchange.server(url.scheme, url.hostname or "", url.port, "", self._own_hosts)
        # Behind a gateway only the client knows which of Google's services it speaks to.
        service = "gcp.vertex_ai" if client.vertexai else "gcp.gemini"
        named = service if server.provider == hosts.UNKNOWN else None
        return Asked(route, facts, server, named)

    def error(self, raised: BaseException) -> BaseException | str:
        # `ClientError` and `ServerError` say less than the HTTP status that they hold.
        code = getattr(raised, "code", None)
        if type(raised).__module__ == "google.genai.errors" and type(code) is int:
            return str(code)
        return raised
