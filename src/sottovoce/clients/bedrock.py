"""boto3 and aiobotocore: where a call of Bedrock's runtime is opened and closed, nothing else.

Every operation of every AWS service goes through `BaseClient._make_api_call`, above botocore's
retries; those of other services pass through at the cost of two look-ups. Facts come off the
wire: botocore sends through urllib3, aiobotocore through aiohttp. So the app's event streams
and bodies stay botocore's own.

`opentelemetry-instrumentation-botocore` makes a span for every call of every AWS service, and
writes ``gen_ai`` attributes on those of Bedrock: it is no rival that could be left out as a whole,
and its span stands beside ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sottovoce import exchange
from sottovoce.clients.door import Asked, Door
from sottovoce.protocols import routes
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.protocol import checked
from sottovoce.protocols.reader import request_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
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
) -> None:
    """Open a call for every model request of boto3's and aiobotocore's Bedrock clients.

    Arguments as in `generated.install`.
    """
    door = _Door(recorder, hooks, own_hosts)

    # Seen in botocore 1.34.116 to 1.44 and aiobotocore 2.13 to 3.10: `(operation_name, api_params)`.
    def patch(module: ModuleType, _late: bool) -> None:
        patches.wrap(module.BaseClient, "_make_api_call", door.wrap)

    def patch_async(module: ModuleType, _late: bool) -> None:
        patches.wrap(module.AioBaseClient, "_make_api_call", door.wrap_async)

    hooks.when_imported("botocore.client", patch)
    hooks.when_imported("aiobotocore.client", patch_async)


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
