"""Generated SDKs (openai and its family): where a call is opened and closed, nothing else.

All of them come from one generator and share one seam: every resource method, `parse`,
`.stream()`, `with_raw_response` and pagination goes through `_base_client.SyncAPIClient.request`
or its async twin, above the retry loop. What is said in the call is read off the wire by the
transport; here it only begins, and ends with the SDK's own exception or result.

A new member of the family is one row in `FAMILIES`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from sottovoce import exchange, guard
from sottovoce.protocols import routes
from sottovoce.protocols.reader import request_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.exchange import HTTPCall, Tokens
    from sottovoce.guard import ImportHooks, Patches

    Opened = tuple[HTTPCall, Tokens]


@dataclass(frozen=True)
class Family:
    """One generated SDK.

    Attributes:
        module: where its base clients live; named alike since the first release of each.
        providers: who answers, by the name of a client class, where the class knows better
            than the address (an Azure deployment behind a host of one's own).
    """

    module: str
    providers: Mapping[str, str] = field(default_factory=dict)


FAMILIES: Final[Mapping[str, Family]] = {
    # Seen in openai 1.0 to 3.52; in 1.x `request` has one argument more, which passes through.
    "openai": Family(
        "openai._base_client",
        {
            "BaseAzureClient": "azure.ai.openai",
            "BedrockOpenAI": "aws.bedrock",
            "AsyncBedrockOpenAI": "aws.bedrock",
        },
    ),
}


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
        family = FAMILIES[name]
        door = _Door(recorder, hooks, family, own_hosts)

        def patch(module: ModuleType, _late: bool, door: _Door = door) -> None:
            patches.wrap(module.SyncAPIClient, "request", door.wrap)
            patches.wrap(module.AsyncAPIClient, "request", door.wrap_async)

        hooks.when_imported(family.module, patch)


class _Door:
    """Opens and closes the calls of one family."""

    def __init__(
        self, recorder: Recorder, hooks: ImportHooks, family: Family, own_hosts: tuple[str, ...]
    ) -> None:
        self._recorder = recorder
        self._hooks = hooks
        self._own_hosts = own_hosts
        self._providers = family.providers

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._open(client, args, kwargs)
            if opened is None:
                return original(client, *args, **kwargs)
            try:
                result = original(client, *args, **kwargs)
            except BaseException as error:
                exchange.leave(*opened)
                exchange.end_cut_short(opened[0], error)
                raise
            exchange.leave(*opened)
            _close(opened[0])
            return result

        return request

    def wrap_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._open(client, args, kwargs)
            if opened is None:
                return await original(client, *args, **kwargs)
            try:
                result = await original(client, *args, **kwargs)
            except BaseException as error:
                exchange.leave(*opened)
                exchange.end_cut_short(opened[0], error)
                raise
            exchange.leave(*opened)
            _close(opened[0])
            return result

        return request

    @guard.never_raise("generated.open")
    def _open(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        """Open the call and make it the current one; ``None`` when this is none, or not ours."""
        outer = exchange.current()
        if outer is not None and not getattr(outer, "sending", None):
            # Another SDK on top of this one has opened it. While a request is being sent no SDK
            # is at work but the app: in a hook or a transport of its own.
            return None
        # `request(cast_to, options, …)` in every version seen.
        options = kwargs["options"] if "options" in kwargs else args[1]
        route = routes.match(options.method, options.url)
        if route is None or not self._hooks.active or not exchange.enabled(self._recorder):
            return None
        # The SDKs let a path be given as a whole URL, which may lead elsewhere.
        base = urlsplit(options.url) if "://" in options.url else client.base_url
        host = base.hostname if isinstance(base, SplitResult) else base.host
        server = exchange.server(base.scheme, host, base.port, base.path, self._own_hosts)
        provider = _named_provider(client, self._providers)
        call = exchange.open_call(self._recorder, route, _facts(route, options), server, provider)
        return call, exchange.enter(call)


@guard.never_raise("generated.close")
def _close(call: HTTPCall) -> None:
    """The SDK returned: the call is over, unless its body is still to be read."""
    if not call.watched:
        call.end()


def _facts(route: Any, options: Any) -> Any:
    return _read_request(route, options) or {}


@guard.never_raise("generated.facts")
def _read_request(route: Any, options: Any) -> Any:
    body = options.json_data
    if not isinstance(body, dict):
        # `content=` of `client.post`: a body given as it is sent; seen in openai 3.52.
        content = getattr(options, "content", None)
        return request_facts(route.protocol, content) if isinstance(content, bytes) else None
    # `extra_body=` of the public methods; merged over the body by the SDK, absent in 1.0.
    extra = getattr(options, "extra_json", None)
    return route.protocol.request({**body, **extra} if isinstance(extra, dict) else body)


def _named_provider(client: Any, providers: Mapping[str, str]) -> str | None:
    """Say who answers by the client's class, where that is known better than by the host."""
    for base in type(client).__mro__:
        if base.__name__ in providers:
            return providers[base.__name__]
    return None
