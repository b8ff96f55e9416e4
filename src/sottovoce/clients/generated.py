"""Generated SDKs (openai, anthropic and their family): where a call is opened and closed.

All of them come from one generator and share one seam: every resource method, `parse`,
`.stream()`, `with_raw_response` and pagination goes through `_base_client.SyncAPIClient.request`
or its async twin, above the retry loop. What is said in the call is read off the wire by the
transport; here it only begins, and ends with the SDK's own exception or result.

A new member of the family is one row in `FAMILIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.protocols import routes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import ModuleType

    from sottovoce.call import Facts, Recorder
    from sottovoce.exchange import Server
    from sottovoce.guard import ImportHooks, Patches
    from sottovoce.protocols.routes import Route


FAMILIES: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    # Seen in openai 1.0 to 3.52; in 1.x `request` has one argument more, which passes through.
    "openai": (
        "openai._base_client",
        {
            "BaseAzureClient": "azure.ai.openai",
            "BedrockOpenAI": "aws.bedrock",
            "AsyncBedrockOpenAI": "aws.bedrock",
        },
    ),
    # Seen in anthropic 0.3 to 2.11, which is why its 0.x has that argument, too.
    "anthropic": (
        "anthropic._base_client",
        {
            "BaseBedrockClient": "aws.bedrock",
            "BaseMantleClient": "aws.bedrock",
            "BaseVertexClient": "gcp.vertex_ai",
            "BaseFoundryClient": "azure.ai.inference",
        },
    ),
    # Seen in groq 0.9 to 1.7, together 2.0 to 3.1, cerebras 1.0 to 1.91.
    "groq": ("groq._base_client", {}),
    "together": ("together._base_client", {}),
    "cerebras": ("cerebras.cloud.sdk._base_client", {}),
}
"""Generated SDK → where its base clients live, named alike since the first release of each; and
who answers, by the name of a client class, where the class knows better than the address (an
Azure deployment behind a host of one's own)."""

_MOST_CLIENTS: Final = 64


def install(
    recorder: Recorder,
    hooks: ImportHooks,
    patches: Patches,
    families: Collection[str] = ("openai",),
    own_hosts: tuple[str, ...] = (),
) -> None:
    """Open a call for every model request of these SDKs, now or once they are imported.

    The facts come from the transport: `transports.httpx.install_wire` belongs to this.

    Args:
        recorder: what turns the calls into telemetry.
        hooks: registers the import hooks; once it is stopped, kept wrappers pass through.
        patches: undoes everything.
        families: names from `FAMILIES`.
        own_hosts: hosts of the operator's own, besides this machine.

    Raises:
        KeyError: for a family that is not in the table.
    """
    for name in families:
        base_clients, providers = FAMILIES[name]
        door = _Door(recorder, hooks, own_hosts, providers)

        def patch(module: ModuleType, _late: bool, door: _Door = door) -> None:
            patches.wrap(module.SyncAPIClient, "request", door.wrap)
            patches.wrap(module.AsyncAPIClient, "request", door.wrap_async)

        hooks.when_imported(base_clients, patch)


class _Door(Door):
    """Opens and closes the calls of one family."""

    def __init__(
        self,
        recorder: Recorder,
        hooks: ImportHooks,
        own_hosts: tuple[str, ...],
        providers: Mapping[str, str],
    ) -> None:
        super().__init__(recorder, hooks, own_hosts)
        self._providers = providers
        # By the identity of a client's base URL, which cannot be changed: asking it for its parts
        # takes longer than all the rest. With the class of the client, which may know better.
        self._answering: dict[int, tuple[Any, type[Any], Server, str | None]] = {}

    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        # `request(cast_to, options, …)` in every version seen.
        options = kwargs["options"] if "options" in kwargs else args[1]
        route = routes.match(options.method, options.url)
        if route is None or route.sign is not None:
            # OpenAI's conversations, say: what they hold asks no model.
            return None
        # What `base_url` gives, seen in all; in openai 3.52 by an import each time.
        base = getattr(client, "_base_url", None) or client.base_url
        # Not `id`, which raises an audit event: it costs where somebody listens (filelock does).
        known = self._answering.get(object.__hash__(base))
        if known is None or known[0] is not base or known[1] is not type(client):
            known = self._learn(base, type(client))
        _, _, server, provider = known
        if "://" in options.url:
            # The SDKs let a path be given as a whole URL, which may lead elsewhere.
            server = self._server(urlsplit(options.url))
        facts = _facts(route, options)
        if kwargs.get("stream"):
            # What is fetched, or uploaded as a form, has no body that says so.
            facts.setdefault("request_stream", True)
        return Asked(route, facts, server, provider)

    def _learn(self, base: Any, client: type[Any]) -> tuple[Any, type[Any], Server, str | None]:
        """Say who answers where a client of this class asks, and remember it."""
        found = base, client, self._server(base), _named_provider(client, self._providers)
        if len(self._answering) < _MOST_CLIENTS:
            self._answering[object.__hash__(base)] = found
        return found

    def _server(self, url: Any) -> Server:
        host = url.hostname if isinstance(url, SplitResult) else url.host
        return exchange.server(url.scheme, host, url.port, url.path, self._own_hosts)


def _facts(route: Route, options: Any) -> Facts:
    body = options.json_data
    if not isinstance(body, dict):
        # `content=` of `client.post`: a body given as it is sent; seen in openai 3.52.
        content = getattr(options, "content", None)
        if not isinstance(content, bytes):
            return {}
        from sottovoce.protocols.bodies import request_facts  # noqa: PLC0415 - seldom, and heavy

        return request_facts(route.protocol, content)
    # `extra_body=` of the public methods; merged over the body by the SDK, absent in 1.0.
    extra = getattr(options, "extra_json", None)
    return route.protocol.request({**body, **extra} if isinstance(extra, dict) else body)


def _named_provider(client: type[Any], providers: Mapping[str, str]) -> str | None:
    """Say who answers by the client's class, where that is known better than by the host."""
    for base in client.__mro__:
        if base.__name__ in providers:
            return providers[base.__name__]
    return None
