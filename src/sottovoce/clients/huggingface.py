"""huggingface_hub's inference clients: where a call is opened and closed, nothing else.

Every task ends in `InferenceClient._inner_post`, or its async twin, which makes one attempt.
Chat goes to OpenAI's paths, of whichever provider; the paths of text generation and of features
say less than the client knows. Only the modules of these clients are hooked: who downloads a
model never meets us. Seen in huggingface_hub 0.29 to 2.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.clients.methods import Method, installer
from sottovoce.protocols import routes
from sottovoce.protocols.huggingface import HF_FEATURES, HF_TEXT_GENERATION
from sottovoce.protocols.routes import Route

if TYPE_CHECKING:
    from collections.abc import Mapping

_TASKS: Final[Mapping[str, Route]] = {
    "text-generation": Route("text_completion", HF_TEXT_GENERATION, "hugging_face", anywhere=True),
    "feature-extraction": Route("embeddings", HF_FEATURES, "hugging_face", anywhere=True),
}
"""By the client's name of a task, where the path does not say it."""

_NO_MODELS: Final = frozenset({"dummy", "tgi"})
"""What the client sends as the model's name to an address that serves but one."""


class _Door(Door):
    def asked(
        self,
        client: Any,  # noqa: ARG002 - the request says it all
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Asked | None:
        request = args[0] if args else kwargs["request_parameters"]
        where = urlsplit(request.url)
        route = routes.match("POST", where.path)
        if route is None or route.sign is not None:
            route = _TASKS.get(request.task) or route
        if route is None or not isinstance(request.json, dict):
            return None
        facts = route.protocol.request(request.json)
        if facts.get("request_model") in _NO_MODELS:
            del facts["request_model"]
        model = request.model
        if "request_model" not in facts and isinstance(model, str) and "://" not in model:
            facts = {**facts, **route.protocol.request({"model": model})}
        target = exchange.server(
            where.scheme, where.hostname or "", where.port, where.path, self._own_hosts
        )
        return Asked(route, facts, target)

    def error(self, raised: BaseException) -> BaseException | str:
        # One class for every error of a server; aiohttp's, in 0.x, has the status itself.
        response = getattr(raised, "response", None)
        status = getattr(raised if response is None else response, "status_code", None)
        status = status or getattr(raised, "status", None)
        return str(status) if isinstance(status, int) else raised


_CLIENT: Final = "huggingface_hub.inference._client"
_ASYNC_CLIENT: Final = "huggingface_hub.inference._generated._async_client"

install = installer(
    _Door,
    Method(_CLIENT, "InferenceClient", "_inner_post", _Door.wrap),
    Method(_ASYNC_CLIENT, "AsyncInferenceClient", "_inner_post", _Door.wrap_async),
)
