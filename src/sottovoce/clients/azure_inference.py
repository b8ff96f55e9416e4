"""azure-ai-inference: where a call is opened and closed, nothing else.

Its clients send every request through `Pipeline.run` or `AsyncPipeline.run` of azure-core, above
the retry policy. All Azure SDKs do; theirs pass through at the cost of a look at the path. Facts
come off the wire: requests, or aiohttp for the asynchronous clients.

The SDK's own tracer (`azure.ai.inference.tracing.AIInferenceInstrumentor`) is off unless the app
turns it on; then each call has its span beside ours, which passes the gate as every span does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.clients.methods import Method, installer
from sottovoce.protocols import hosts, routes
from sottovoce.protocols.bodies import request_facts
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS

if TYPE_CHECKING:
    from sottovoce.exchange import HTTPCall

PROTOCOLS: Final = frozenset({OPENAI_CHAT.name, OPENAI_EMBEDDINGS.name})
"""What the package speaks; another SDK on azure-core may use other paths for other things."""


class _Door(Door):
    """Opens and closes the calls of one pipeline's requests."""

    def asked(self, _client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        request = args[0] if args else kwargs["request"]
        url = request.url
        route = routes.match(request.method, url)
        if route is None or route.protocol.name not in PROTOCOLS:
            return None
        parts = urlsplit(url)
        server = exchange.server(
            parts.scheme, parts.hostname or "", parts.port, parts.path, self._own_hosts
        )
        # Azure OpenAI can be reached through this package, too.
        provider = "azure.ai.inference" if server.provider == hosts.UNKNOWN else None
        content = getattr(request, "content", None)
        if isinstance(content, str):
            content = content.encode()
        facts = request_facts(route.protocol, content) if isinstance(content, bytes) else {}
        return Asked(route, facts, server, provider)

    def answered(self, call: HTTPCall, result: Any) -> None:
        # The SDK raises above the pipeline.
        status = result.http_response.status_code
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's successes
            call.fail(str(status))


# Seen in azure-core 1.30 to 1.41, under azure-ai-inference 1.0.0b1 to 1.0.0b9.
install = installer(
    _Door,
    Method("azure.core.pipeline", "Pipeline", "run", _Door.wrap),
    Method("azure.core.pipeline", "AsyncPipeline", "run", _Door.wrap_async),
)
