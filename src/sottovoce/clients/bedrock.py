"""boto3 and aiobotocore: where a call of Bedrock's runtime is opened and closed, nothing else.

Every operation of every AWS service goes through `BaseClient._make_api_call`, above botocore's
retries; those of other services pass through at the cost of two look-ups. Facts come off the
wire: botocore sends through urllib3, aiobotocore through aiohttp. So the app's event streams
and bodies stay botocore's own.

`opentelemetry-instrumentation-botocore` makes a span for every call of every AWS service, and
records those of Bedrock's models as ``gen_ai``: it is no rival that could be left out as a whole.
Its span of such a call stays, as plain as those of services that it knows nothing of.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.guard import never_raise
from sottovoce.protocols import routes
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bodies import request_facts
from sottovoce.protocols.checks import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from sottovoce.call import Facts, Recorder
    from sottovoce.exchange import HTTPCall
    from sottovoce.guard import ImportHooks, Patches
    from sottovoce.protocols.routes import Route

VERBS: Final[Mapping[str, str]] = {
    "Converse": "converse",
    "ConverseStream": "converse-stream",
    "InvokeModel": "invoke",
    "InvokeModelWithResponseStream": "invoke-with-response-stream",
}
"""Operation → the last segment of its path."""

COUNTS: Final = (
    ("input_tokens", "x-amzn-bedrock-input-token-count"),
    ("output_tokens", "x-amzn-bedrock-output-token-count"),
)
"""What `InvokeModel` counts in headers: the formats of some families have no counts."""


def install(
    recorder: Recorder,
    hooks: ImportHooks,
    patches: Patches,
    own_hosts: tuple[str, ...] = (),
    *,
    keep_others: bool = False,
) -> None:
    """Open a call for every model request of boto3's and aiobotocore's Bedrock clients.

    Arguments as in `generated.install`, and `keep_others`: other instrumentations record the
    same calls, too.
    """
    door = _Door(recorder, hooks, own_hosts)

    # Seen in botocore 1.34.116 to 1.44 and aiobotocore 2.13 to 3.10: `(operation_name, api_params)`.
    def patch(module: ModuleType, _late: bool) -> None:
        patches.wrap(module.BaseClient, "_make_api_call", door.wrap)

    def patch_async(module: ModuleType, _late: bool) -> None:
        patches.wrap(module.AioBaseClient, "_make_api_call", door.wrap_async)

    hooks.when_imported("botocore.client", patch)
    hooks.when_imported("aiobotocore.client", patch_async)
    if not keep_others:
        for name, (owner, function) in _CHOICES.items():
            hooks.when_imported(name, functools.partial(_choose_plain, patches, owner, function))


_CHOICES: Final[Mapping[str, tuple[str | None, str]]] = {
    # Seen in 0.63b0 to 0.66b2.
    "opentelemetry.instrumentation.botocore.extensions.registry": (
        "ExtensionRegistry",
        "get_extension",
    ),
    # Seen in 0.56b0 to 0.61b0; before that it knows nothing of models.
    "opentelemetry.instrumentation.botocore": (None, "_find_extension"),
}
"""Module, class and function by which the other instrumentation chooses what records a call."""


def _choose_plain(
    patches: Patches, owner: str | None, function: str, module: ModuleType, _late: bool
) -> None:
    patches.wrap(getattr(module, owner) if owner else module, function, _plain)


def _plain(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return _knowing_no_models(found) or found

    return chosen


@never_raise("bedrock.plain")
def _knowing_no_models(extension: Any) -> Any:
    """Give what records a call of any service, for one that we record; else ``None``."""
    base = type(extension).__mro__[-2]
    asked = extension._call_context
    ours = asked.service == "bedrock-runtime" and asked.operation in VERBS
    return base(asked) if ours and base.__name__ == "_AwsSdkExtension" else None


class _Door(Door):
    """Opens and closes the calls of Bedrock's runtime."""

    def asked(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked | None:
        verb = VERBS.get(args[0] if args else kwargs.get("operation_name", ""))
        if verb is None or client.meta.service_model.service_name != "bedrock-runtime":
            return None
        given = args[1] if len(args) > 1 else kwargs.get("api_params", {})
        model = given.get("modelId")
        route = routes.match("POST", f"/model/{model}/{verb}") if isinstance(model, str) else None
        if route is None:  # not even a model: botocore will say so
            return None
        url = urlsplit(client.meta.endpoint_url)
        server = exchange.server(
            url.scheme, url.hostname or "", url.port, url.path, self._own_hosts
        )
        return Asked(route, _facts(route, given), server, "aws.bedrock")

    def answered(self, call: HTTPCall, result: Any) -> None:
        if not call.attempts:
            # Nothing was sent: a stand-in of the app's answered, or another HTTP library.
            call.facts.update(BEDROCK_CONVERSE.response(result))
        headers = result.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        found = {
            fact: int(headers[name])
            for fact, name in COUNTS
            if fact not in call.facts and headers.get(name, "").isdecimal()
        }
        call.facts.update(checked(found))

    def error(self, raised: BaseException) -> BaseException | str:
        # A `ClientError`: what the service said. Its class is made for the code at run time.
        answer = getattr(raised, "response", None)
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
        return code if isinstance(code, str) and code else raised


def _facts(route: Route, given: Mapping[str, Any]) -> Facts:
    if "body" not in given:
        return route.protocol.request(given)
    body = given["body"]
    if isinstance(body, str):
        body = body.encode()
    # A file is the app's to read.
    return (
        request_facts(route.protocol, bytes(body)) if isinstance(body, (bytes, bytearray)) else {}
    )
