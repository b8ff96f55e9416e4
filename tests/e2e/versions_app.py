"""An app that asks through every SDK of its environment: see test_versions.py.

Its argument is a JSON object of SDK to address. Prints, for each way of asking, what was
recorded: {"sdk way": {"version", "error", "spans": [{name, kind, status, attributes}]}}.
"""

import asyncio
import functools
import gc
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.instrumentors import ALL
from sottovoce.settings import Settings

MESSAGES = [{"role": "user", "content": "a secret question"}]
kept = []
ASKED = {"model": "tiny", "messages": MESSAGES}


def generated(make, create, **more):
    """openai's family: whole, streamed, and both asynchronously."""

    def whole(url):
        create(make(False)(api_key="key", base_url=url))(**ASKED, **more)

    def streamed(url):
        for _ in create(make(False)(api_key="key", base_url=url))(**ASKED, stream=True, **more):
            pass

    async def async_whole(url):
        await create(make(True)(api_key="key", base_url=url))(**ASKED, **more)

    async def async_streamed(url):
        client = make(True)(api_key="key", base_url=url)
        async for _ in await create(client)(**ASKED, stream=True, **more):
            pass

    return whole, streamed, async_whole, async_streamed


def chat(client):
    return client.chat.completions.create


def make_openai(later):
    import openai

    return openai.AsyncOpenAI if later else openai.OpenAI


def make_anthropic(later):
    import anthropic

    return anthropic.AsyncAnthropic if later else anthropic.Anthropic


def make_groq(later):
    import groq

    return groq.AsyncGroq if later else groq.Groq


def make_together(later):
    import together

    return together.AsyncTogether if later else together.Together


def make_cerebras(later):
    from cerebras.cloud import sdk

    kind = sdk.AsyncCerebras if later else sdk.Cerebras
    # It asks for something else first, from some version on.
    quiet = "warm_tcp_connection" in inspect.signature(kind).parameters
    return functools.partial(kind, warm_tcp_connection=False) if quiet else kind


def gemini():
    from google import genai

    asked = {"model": "gemini-2.5-flash", "contents": "a secret question"}

    def make(url):
        client = genai.Client(api_key="key", http_options={"base_url": url})
        kept.append(client)  # one that is dropped closes what it is asking with
        return client

    def whole(url):
        make(url).models.generate_content(**asked)

    def streamed(url):
        for _ in make(url).models.generate_content_stream(**asked):
            pass

    async def async_whole(url):
        await make(url).aio.models.generate_content(**asked)

    async def async_streamed(url):
        stream = make(url).aio.models.generate_content_stream(**asked)
        # A coroutine in later versions, a generator in 1.0.
        stream = await stream if hasattr(stream, "__await__") else stream
        async for _ in stream:
            pass

    return whole, streamed, async_whole, async_streamed


def mistral():
    def make(url):
        try:
            from mistralai import Mistral
        except ImportError:
            from mistralai.client import Mistral
        return Mistral(api_key="key", server_url=url).chat

    def whole(url):
        make(url).complete(**ASKED)

    def streamed(url):
        for _ in make(url).stream(**ASKED):
            pass

    async def async_whole(url):
        await make(url).complete_async(**ASKED)

    async def async_streamed(url):
        async for _ in await make(url).stream_async(**ASKED):
            pass

    return whole, streamed, async_whole, async_streamed


def ollama():
    from ollama import AsyncClient, Client

    def whole(url):
        Client(host=url).chat(**ASKED)

    def streamed(url):
        for _ in Client(host=url).chat(**ASKED, stream=True):
            pass

    async def async_whole(url):
        await AsyncClient(host=url).chat(**ASKED)

    async def async_streamed(url):
        async for _ in await AsyncClient(host=url).chat(**ASKED, stream=True):
            pass

    return whole, streamed, async_whole, async_streamed


def cohere():
    import cohere

    if not hasattr(cohere, "ClientV2"):
        asked = {"model": "tiny", "message": "a secret question"}

        def old_whole(url):
            cohere.Client("key", base_url=url + "/v1").chat(**asked)

        async def old_async(url):
            await cohere.AsyncClient("key", base_url=url + "/v1").chat(**asked)

        return old_whole, None, old_async, None

    def whole(url):
        cohere.ClientV2("key", base_url=url).chat(**ASKED)

    def streamed(url):
        for _ in cohere.ClientV2("key", base_url=url).chat_stream(**ASKED):
            pass

    async def async_whole(url):
        await cohere.AsyncClientV2("key", base_url=url).chat(**ASKED)

    async def async_streamed(url):
        async for _ in cohere.AsyncClientV2("key", base_url=url).chat_stream(**ASKED):
            pass

    return whole, streamed, async_whole, async_streamed


def huggingface():
    from huggingface_hub import AsyncInferenceClient, InferenceClient

    def made(kind, url):
        kept.append(kind(base_url=url, token="key"))
        return kept[-1]

    def whole(url):
        made(InferenceClient, url).chat_completion(MESSAGES)

    def streamed(url):
        for _ in made(InferenceClient, url).chat_completion(MESSAGES, stream=True):
            pass

    async def async_whole(url):
        await made(AsyncInferenceClient, url).chat_completion(MESSAGES)

    async def async_streamed(url):
        client = made(AsyncInferenceClient, url)
        async for _ in await client.chat_completion(MESSAGES, stream=True):
            pass

    return whole, streamed, async_whole, async_streamed


def bedrock():
    import boto3

    asked = {
        "modelId": "amazon.nova-lite-v1:0",
        "messages": [{"role": "user", "content": [{"text": "a secret question"}]}],
    }

    def make(url):
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="key",
        )

    def whole(url):
        make(url).converse(**asked)

    def streamed(url):
        for _ in make(url).converse_stream(**asked)["stream"]:
            pass

    return whole, streamed, None, None


def azure():
    from azure.ai.inference import ChatCompletionsClient
    from azure.core.credentials import AzureKeyCredential

    # The first version has no argument for the model.
    first = importlib.metadata.version("azure-ai-inference") == "1.0.0b1"
    asked = {"messages": MESSAGES} if first else ASKED

    def make(url):
        return ChatCompletionsClient(url, AzureKeyCredential("key"))

    def whole(url):
        make(url).complete(**asked)

    def streamed(url):
        for _ in make(url).complete(**asked, stream=True):
            pass

    if importlib.util.find_spec("aiohttp") is None:
        return whole, streamed, None, None  # what azure's asynchronous clients send with

    def make_async(url):
        from azure.ai.inference import aio

        return aio.ChatCompletionsClient(url, AzureKeyCredential("key"))

    async def async_whole(url):
        async with make_async(url) as client:
            await client.complete(**asked)

    async def async_streamed(url):
        async with make_async(url) as client:
            async for _ in await client.complete(**asked, stream=True):
                pass

    return whole, streamed, async_whole, async_streamed


SDKS = {
    "openai": ("openai", lambda: generated(make_openai, chat)),
    "anthropic": (
        "anthropic",
        lambda: generated(make_anthropic, lambda client: client.messages.create, max_tokens=9),
    ),
    "groq": ("groq", lambda: generated(make_groq, chat)),
    "together": ("together", lambda: generated(make_together, chat)),
    "cerebras": ("cerebras-cloud-sdk", lambda: generated(make_cerebras, chat)),
    "gemini": ("google-genai", gemini),
    "mistral": ("mistralai", mistral),
    "ollama": ("ollama", ollama),
    "cohere": ("cohere", cohere),
    "huggingface": ("huggingface-hub", huggingface),
    "bedrock": ("boto3", bedrock),
    "azure": ("azure-ai-inference", azure),
}
WAYS = ("whole", "streamed", "async whole", "async streamed")


def ask(way, url):
    if asyncio.iscoroutinefunction(way):
        asyncio.run(way(url))
    else:
        way(url)


def main():
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    given = {"settings": Settings(key="a key of these tests"), "skip_dep_check": True}
    for kind in ALL:
        kind().instrument(tracer_provider=tracers, meter_provider=MeterProvider(), **given)
    found = {}
    for sdk, url in json.loads(sys.argv[1]).items():
        package, ways = SDKS[sdk]
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        for name, way in zip(WAYS, ways(), strict=True):
            if way is None:
                continue
            error = None
            try:
                ask(way, url)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
            gc.collect()
            time.sleep(0.05)  # what the app dropped is ended by another thread
            spans = [
                {
                    "name": span.name,
                    "status": span.status.status_code.name,
                    "scope": span.instrumentation_scope.name,
                    "attributes": dict(span.attributes),
                }
                for span in exporter.get_finished_spans()
            ]
            exporter.clear()
            found[f"{sdk} {name}"] = {"version": version, "error": error, "spans": spans}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
