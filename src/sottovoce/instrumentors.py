"""The instrumentors, as OpenTelemetry users know them: `XInstrumentor().instrument()`.

Each only names what it hooks; the hooks live in `clients`, `transports` and `runtimes`, and
are loaded when the app imports what they hook: nothing is imported that it does not use.
"""

from __future__ import annotations

from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from sottovoce import settings
from sottovoce.instrumentor import Instrumentor, request_recorder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from sottovoce.record import SpanRecorder


class _ClientInstrumentor(Instrumentor):
    """A provider's SDK: its door in `clients`, and the wire beneath it.

    Attributes:
        room: module of `clients` with
            ``install(recorder, hooks, patches, own_hosts=(), **given)``.
        given: what the room needs to be told besides.
    """

    room: ClassVar[str]
    given: ClassVar[Mapping[str, Any]] = {}

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce import transports  # noqa: PLC0415 - only what is used is loaded

        room = import_module(f"sottovoce.clients.{self.room}")
        given = self._given()
        room.install(recorder, self._hooks, self._patches, own_hosts=self._own_hosts, **given)
        transports.install_wire()

    def _given(self) -> Mapping[str, Any]:
        return self.given

    def _remove(self) -> None:
        from sottovoce import transports  # noqa: PLC0415

        transports.remove_wire()


class OpenAIInstrumentor(_ClientInstrumentor):
    """The openai SDK, sync and async, and every client that is one (AzureOpenAI, …)."""

    modules = ("openai._base_client",)
    room = "generated"
    given: ClassVar[Mapping[str, Any]] = {"families": ("openai",)}


class AnthropicInstrumentor(_ClientInstrumentor):
    """The anthropic SDK, sync and async, at Anthropic, on Bedrock, Vertex AI and Azure.

    Its own spans are left out unless the app or the operator asked for them.
    """

    modules = ("anthropic._base_client",)
    room = "anthropic"

    def _given(self) -> Mapping[str, Any]:
        return {"keep_own_spans": settings.is_set("ANTHROPIC_OPEN_TELEMETRY", "false")}


class GroqInstrumentor(_ClientInstrumentor):
    """The groq SDK, sync and async."""

    modules = ("groq._base_client",)
    room = "generated"
    given: ClassVar[Mapping[str, Any]] = {"families": ("groq",)}


class TogetherInstrumentor(_ClientInstrumentor):
    """The together SDK from 2.0 on, sync and async."""

    modules = ("together._base_client",)
    room = "generated"
    given: ClassVar[Mapping[str, Any]] = {"families": ("together",)}


class CerebrasInstrumentor(_ClientInstrumentor):
    """The Cerebras Cloud SDK, sync and async."""

    modules = ("cerebras.cloud.sdk._base_client",)
    room = "generated"
    given: ClassVar[Mapping[str, Any]] = {"families": ("cerebras",)}


class GoogleGenAIInstrumentor(_ClientInstrumentor):
    """google-genai, for Gemini's API and for Vertex AI."""

    modules = ("google.genai._api_client",)
    room = "google_genai"


class MistralInstrumentor(_ClientInstrumentor):
    """mistralai, on Mistral's own API, on Azure and on Vertex AI."""

    modules = (
        "mistralai.basesdk",
        "mistralai_azure.basesdk",
        "mistralai_gcp.basesdk",
        "mistralai.client.basesdk",
        "mistralai.azure.client.basesdk",
        "mistralai.gcp.client.basesdk",
    )
    room = "mistral"
    given: ClassVar[Mapping[str, Any]] = {"modules": modules}


class BedrockInstrumentor(_ClientInstrumentor):
    """Amazon Bedrock's runtime through boto3 or aiobotocore; other services pass through."""

    modules = ("botocore.client",)
    room = "bedrock"

    def _given(self) -> Mapping[str, Any]:
        return {"keep_others": self._rivals == "run"}


class AzureInferenceInstrumentor(_ClientInstrumentor):
    """The azure-ai-inference package, sync and async."""

    modules = ("azure.ai.inference",)
    room = "azure_inference"


class OllamaInstrumentor(_ClientInstrumentor):
    """The ollama SDK, sync and async."""

    modules = ("ollama._client",)
    room = "ollama"


class CohereInstrumentor(_ClientInstrumentor):
    """The cohere SDK, sync and async, both versions of its API."""

    # The first imports the second, and is waited for before it begins.
    modules = ("cohere.client", "cohere.core.http_client")
    room = "cohere"


class HuggingFaceInstrumentor(_ClientInstrumentor):
    """The inference clients of huggingface_hub, sync and async; never its downloads."""

    modules = (
        "huggingface_hub.inference._client",
        "huggingface_hub.inference._generated._async_client",
    )
    room = "huggingface"


class _TransportInstrumentor(Instrumentor):
    """Model calls that the app makes with an HTTP library alone, on any host.

    What rides on another library is seen there, too: without `RequestsInstrumentor`, calls made
    with requests are urllib3's.

    Attributes:
        name: of the library in `transports.TRANSPORTS`.
        beneath: libraries under it that tell of their retries.
    """

    name: ClassVar[str]
    beneath: ClassVar[tuple[str, ...]] = ()

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce import transports  # noqa: PLC0415

        transports.install_wire(self.name, *self.beneath)
        transports.set_raw_recorder(self.name, recorder, self._own_hosts)

    def _remove(self) -> None:
        from sottovoce import transports  # noqa: PLC0415

        transports.set_raw_recorder(self.name, None)
        transports.remove_wire(self.name, *self.beneath)

    def hooked(self) -> list[str]:
        """Say what was replaced so far, by us or for an SDK's sake."""
        from sottovoce import transports  # noqa: PLC0415

        return transports.TRANSPORTS[self.name].patches.names()


class HTTPXInstrumentor(_TransportInstrumentor):
    """Model calls made with httpx or httpx2 alone."""

    modules = ("httpx", "httpx2")
    name = "httpx"


class RequestsInstrumentor(_TransportInstrumentor):
    """Model calls made with requests alone."""

    modules = ("requests",)
    name = "requests"
    beneath = ("urllib3",)


class AioHTTPInstrumentor(_TransportInstrumentor):
    """Model calls made with aiohttp's client alone."""

    modules = ("aiohttp",)
    name = "aiohttp"


class URLLib3Instrumentor(_TransportInstrumentor):
    """Model calls made with urllib3 alone, or with a library that rides on it."""

    modules = ("urllib3",)
    name = "urllib3"


class HTTPClientInstrumentor(_TransportInstrumentor):
    """Model calls made with http.client or urllib.request."""

    modules = ("http.client",)
    name = "http_client"


class LM15Instrumentor(_TransportInstrumentor):
    """Model calls made with lm15, and with dspy's own copy of it."""

    modules = ("lm15.transports", "dspy._vendor.lm15.transports")
    name = "lm15"


class MCPInstrumentor(Instrumentor):
    """Requests of the Model Context Protocol, as clients send and servers answer them."""

    # The last two are what versions import first: nobody has taken a function by then.
    modules = ("mcp", "mcp_types", "mcp.types")

    def _install(self, _: SpanRecorder) -> None:
        from sottovoce.clients import mcp  # noqa: PLC0415

        mcp.install(self._steps, self._hooks, self._patches, self._own_hosts)


class MLXInstrumentor(Instrumentor):
    """mlx-lm in this process, loading, generating and its server, and mlx-lm's relatives."""

    # The others may import the first two: nobody has taken a function by then.
    modules = (
        "mlx_lm.sample_utils",
        "mlx_lm.tuner.utils",
        "mlx_lm.utils",
        "mlx_lm.generate",
        "mlx_vlm.utils",
        "mlx_vlm.generate",
        "mlx_vlm.generate.dispatch",
        "mlx_embeddings.utils",
        "mlx_whisper.load_models",
        "mlx_whisper.transcribe",
    )
    in_process = True

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.runtimes import mlx, mlx_server  # noqa: PLC0415

        mlx.install(recorder, self._hooks, self._patches)
        mlx_server.install(recorder, self._hooks, self._patches)


class LlamaCppInstrumentor(Instrumentor):
    """llama-cpp-python in this process: loading, completing, chatting, embedding; its server."""

    modules = ("llama_cpp.llama",)
    in_process = True

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.runtimes import llama_cpp  # noqa: PLC0415

        llama_cpp.install(recorder, self._hooks, self._patches)
        self._hooks.when_imported("llama_cpp.server.app", self._serve)

    def _serve(self, app: ModuleType, late: bool) -> None:
        from sottovoce.runtimes import llama_server  # noqa: PLC0415 - most apps serve nobody

        make = lru_cache(maxsize=1)(partial(request_recorder, *self._providers))
        llama_server.patch(app, make, self._hooks, self._patches)
        if late:
            self._patches.rebind()


class XLlamaCppInstrumentor(Instrumentor):
    """xllamacpp in this process: its server asked without HTTP, and made."""

    modules = ("xllamacpp.xllamacpp",)
    in_process = True

    def _install(self, recorder: SpanRecorder) -> None:
        from sottovoce.runtimes import xllamacpp  # noqa: PLC0415

        xllamacpp.install(recorder, self._hooks, self._patches)


ALL = (
    OpenAIInstrumentor,
    AnthropicInstrumentor,
    GroqInstrumentor,
    TogetherInstrumentor,
    CerebrasInstrumentor,
    GoogleGenAIInstrumentor,
    MistralInstrumentor,
    BedrockInstrumentor,
    AzureInferenceInstrumentor,
    OllamaInstrumentor,
    CohereInstrumentor,
    HuggingFaceInstrumentor,
    HTTPXInstrumentor,
    RequestsInstrumentor,
    AioHTTPInstrumentor,
    URLLib3Instrumentor,
    HTTPClientInstrumentor,
    LM15Instrumentor,
    MCPInstrumentor,
    MLXInstrumentor,
    LlamaCppInstrumentor,
    XLlamaCppInstrumentor,
)
"""Every instrumentor, in the order in which `start()` applies them."""
