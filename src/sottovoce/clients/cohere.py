"""The cohere SDK: where a call is opened and closed, nothing else.

Every method ends in `core.http_client.HttpClient.request` or `.stream`, or their async twins.
`request` calls itself to try again: within an open call that opens no other. What it returns
may be an error, of which the SDK makes an exception further up. Seen in cohere 5.0 to 7.3.

`Client.embed` asks in threads of its own, some texts in each: that is a call each, and a child of
what the app has open, for which the threads have to be told what that is.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import exchange, guard
from sottovoce.clients.door import Asked
from sottovoce.clients.late import LateDoor
from sottovoce.clients.methods import Method, installer
from sottovoce.exchange import Server
from sottovoce.protocols import hosts, routes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sottovoce.exchange import HTTPCall

# Seen in 5.21 to 7.3; the service is the default of what the hook's own closure says.
_CLOUDS: Final = {"cohere.aws_client": "bedrock", "cohere.oci_client": "oci"}

_MODELS: Final = frozenset({"__fields__", "__pydantic_fields__"})
"""What pydantic's two majors put into the classes of models."""


class _Carrying:
    """An executor whose threads work in the context of whoever gives them work."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        if name == "_executor":  # being copied: not initialised
            raise AttributeError(name)
        return getattr(self._executor, name)

    def map(self, function: Callable[..., Any], *given: Any, **kwargs: Any) -> Iterator[Any]:
        """Do the same as `concurrent.futures.Executor.map`."""
        context = copy_context()

        def work(*args: Any) -> Any:
            # Of its own, as no context can be entered twice at a time.
            return context.copy().run(function, *args)

        return self._executor.map(work, *given, **kwargs)  # type: ignore[no-any-return]


@guard.never_raise("cohere.carry")
def _carry(client: Any) -> None:
    executor = getattr(client, "_executor", None)  # absent in 5.0, seen in 5.21 to 7.3
    if hasattr(executor, "map") and not isinstance(executor, _Carrying):
        client._executor = _Carrying(executor)


class _Door(LateDoor):
    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        method, url = _where(client, args, kwargs)
        where = urlsplit(url)
        route = routes.match(method, where.path)
        if route is None:
            return None
        facts = route.protocol.request(_body(kwargs))
        target = _cloud(client) or exchange.server(
            where.scheme, where.hostname or "", where.port, where.path, self._own_hosts
        )
        # Others have the same paths, but whoever asks with this SDK says who answers.
        provider = "cohere" if target.provider == hosts.UNKNOWN else None
        return Asked(route, facts, target, provider)

    def wrap_init(self, original: Callable[..., None]) -> Callable[..., None]:
        """Make the replacement of the constructor of the client whose threads ask, too."""

        @functools.wraps(original)
        def init(client: Any, *args: Any, **kwargs: Any) -> None:
            original(client, *args, **kwargs)
            _carry(client)

        return init

    def answered(self, call: HTTPCall, result: Any) -> None:
        if not 200 <= result.status_code < 300:  # noqa: PLR2004 - HTTP's successes
            call.fail(str(result.status_code))


def _cloud(client: Any) -> Server | None:
    """Say which cloud's client this is: it sends to another address than it says.

    Those clients rewrite each request in a hook of their httpx client.
    """
    for hook in getattr(client.httpx_client, "event_hooks", {}).get("request", ()):
        service = _CLOUDS.get(getattr(hook, "__module__", ""))
        if service is not None:
            given = inspect.getclosurevars(hook).nonlocals.get("service", service)
            provider = "aws.bedrock" if given == "bedrock" else "custom"
            return Server(None, None, provider, third_party=True, local=False)
    return None


def _where(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """Give the method and the URL: by name and in parts, or (in 5.0) the first arguments."""
    if "method" not in kwargs:
        return args[0], args[1]
    path = args[0] if args else kwargs.get("path") or ""
    return kwargs["method"], f"{client.get_base_url(kwargs.get('base_url')).rstrip('/')}/{path}"


def _body(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the body as it will be sent, as far as facts are in it, without copying what it says."""
    options = kwargs.get("request_options") or {}
    given = {**kwargs["json"], **(options.get("additional_body_parameters") or {})}
    # What the app left out stands there as an ellipsis.
    body = {key: _plain(value) for key, value in given.items() if value is not ...}
    messages = body.get("messages")
    if isinstance(messages, (list, tuple)) and messages:
        last = _plain(messages[-1])
        if isinstance(last, dict) and isinstance(last.get("content"), (list, tuple)):
            last = {**last, "content": [*map(_plain, last["content"])]}
        body["messages"] = [last]
    return body


def _plain(value: Any) -> Any:
    """Give a pydantic model's own dictionary; anything else as it is."""
    return value if _MODELS.isdisjoint(vars(type(value))) else vars(value)


install = installer(
    _Door,
    Method("cohere.core.http_client", "HttpClient", "request", _Door.wrap),
    Method("cohere.core.http_client", "HttpClient", "stream", _Door.wrap_context),
    Method("cohere.core.http_client", "AsyncHttpClient", "request", _Door.wrap_async),
    Method("cohere.core.http_client", "AsyncHttpClient", "stream", _Door.wrap_context),
    Method("cohere.client", "Client", "__init__", _Door.wrap_init),
)
