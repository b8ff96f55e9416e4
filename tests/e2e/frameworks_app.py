"""An app that asks models through other people's clients: see test_frameworks.py.

Its arguments are a framework's name and the addresses of its providers, as JSON. It asks in each
of the framework's ways inside a span of its own, and prints which span that was.
"""

import asyncio
import gc
import json
import sys

from opentelemetry import trace

QUESTION = "a secret question"
LOOP = asyncio.new_event_loop()
"""One for all: what they keep open belongs to a loop."""
MESSAGES = [{"role": "user", "content": QUESTION}]


def read(stream):
    return sum(1 for _ in stream)


async def read_async(stream):
    return sum([1 async for _ in stream])


def leave(stream):
    """Read one item and no more."""
    next(iter(stream))
    if hasattr(stream, "close"):
        stream.close()
    del stream
    gc.collect()


def fails(ask, *errors):
    """Ask what the provider fails to answer."""
    try:
        ask()
    except errors:
        return
    raise AssertionError("the provider should have failed")


def saying(what):
    return [{"role": "user", "content": what}]


def litellm(urls):
    import litellm

    litellm.num_retries = 0
    openai = {"model": "openai/tiny", "api_base": urls["openai"] + "/v1"}
    vllm = {"model": "hosted_vllm/tiny", "api_base": urls["openai"] + "/v1"}
    claude = {"model": "anthropic/claude-sonnet-4-5-20250929", "api_base": urls["anthropic"]}
    ollama = {"model": "ollama_chat/tiny", "api_base": urls["ollama"]}
    for name, given in {
        "openai": openai,
        "vllm": vllm,
        "anthropic": claude,
        "ollama": ollama,
    }.items():
        given |= {"messages": MESSAGES, "api_key": "a key"}

        async def later(given=given, **more):
            return await litellm.acompletion(**given, **more)

        async def stream_later(given=given):
            return await read_async(await litellm.acompletion(**given, stream=True))

        yield f"{name} whole", lambda given=given: litellm.completion(**given)
        yield f"{name} stream", lambda given=given: read(litellm.completion(**given, stream=True))
        yield f"{name} whole async", lambda later=later: LOOP.run_until_complete(later())
        yield f"{name} stream async", lambda later=stream_later: LOOP.run_until_complete(later())

    # Through boto3 for the signature alone: litellm sends with httpx.
    bedrock = {
        "model": "bedrock/converse/us.anthropic.claude-3-5-sonnet-20241022-v2:0",
        "messages": MESSAGES,
        "aws_bedrock_runtime_endpoint": urls["bedrock"],
        "aws_access_key_id": "a key",
        "aws_secret_access_key": "a secret",
        "aws_region_name": "us-east-1",
    }
    yield "bedrock whole", lambda: litellm.completion(**bedrock)
    yield "bedrock stream", lambda: read(litellm.completion(**bedrock, stream=True))

    def ask(what, **more):
        return litellm.completion(**{**openai, "messages": saying(what), **more})

    yield "openai refused", lambda: fails(lambda: ask("refuse me"), litellm.BadRequestError)
    yield "openai stream cut", lambda: fails(lambda: read(ask("cut me", stream=True)), Exception)
    yield "openai stream left", lambda: leave(ask("leave me", stream=True))
    yield (
        "openai embeddings",
        lambda: litellm.embedding(
            model="openai/tiny", input=[QUESTION], api_base=urls["openai"] + "/v1", api_key="a key"
        ),
    )


def langchain(urls):
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    given = {"base_url": urls["openai"] + "/v1", "api_key": "a key", "max_retries": 0}
    chat = ChatOpenAI(model="tiny", stream_usage=True, **given)
    responses = ChatOpenAI(model="tiny", use_responses_api=True, **given)
    embeddings = OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False, **given)

    async def stream_later():
        return await read_async(chat.astream(QUESTION))

    yield "whole", lambda: chat.invoke(QUESTION)
    yield "stream", lambda: read(chat.stream(QUESTION))
    yield "whole async", lambda: LOOP.run_until_complete(_waited(chat.ainvoke, QUESTION))
    yield "stream async", lambda: LOOP.run_until_complete(stream_later())
    yield "batch of 2", lambda: chat.batch([QUESTION, QUESTION])
    yield "responses", lambda: responses.invoke(QUESTION)
    yield "embeddings", lambda: embeddings.embed_query(QUESTION)


async def _waited(function, *args, **kwargs):
    return await function(*args, **kwargs)


def llama_index(urls):
    from llama_index.llms.openai import OpenAI

    model = OpenAI(
        model="gpt-4o-mini", api_base=urls["openai"] + "/v1", api_key="a key", max_retries=0
    )

    async def stream_later():
        return await read_async(await model.astream_complete(QUESTION))

    yield "whole", lambda: model.complete(QUESTION)
    yield "stream", lambda: read(model.stream_complete(QUESTION))
    yield "whole async", lambda: LOOP.run_until_complete(_waited(model.acomplete, QUESTION))
    yield "stream async", lambda: LOOP.run_until_complete(stream_later())


def instructor(urls):
    import instructor
    import openai
    from pydantic import BaseModel

    class Answer(BaseModel):
        answer: int

    given = {"base_url": urls["openai"] + "/v1", "api_key": "a key", "max_retries": 0}
    asked = {"model": "tiny", "messages": MESSAGES, "response_model": Answer}
    client = instructor.from_openai(openai.OpenAI(**given), mode=instructor.Mode.JSON)
    later = instructor.from_openai(openai.AsyncOpenAI(**given), mode=instructor.Mode.JSON)
    yield "whole", lambda: client.chat.completions.create(**asked)
    yield "stream", lambda: read(client.chat.completions.create_partial(**asked))
    yield (
        "whole async",
        lambda: LOOP.run_until_complete(_waited(later.chat.completions.create, **asked)),
    )


def pydantic_ai(urls):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=urls["openai"] + "/v1", api_key="a key")
    agent = Agent(OpenAIChatModel("tiny", provider=provider))

    async def stream_later():
        async with agent.run_stream(QUESTION) as stream:
            return await read_async(stream.stream_text())

    yield "whole", lambda: agent.run_sync(QUESTION)
    yield "stream async", lambda: LOOP.run_until_complete(stream_later())


def dspy(urls):
    import dspy

    model = dspy.LM(
        "openai/tiny", api_base=urls["openai"] + "/v1", api_key="a key", cache=False, num_retries=0
    )
    yield "whole", lambda: model(messages=MESSAGES)
    yield "whole async", lambda: LOOP.run_until_complete(_waited(model.acall, messages=MESSAGES))
    yield "refused", lambda: fails(lambda: model(messages=saying("refuse me")), Exception)

    from dspy._vendor.lm15 import transports

    def request(what):
        body = json.dumps({"model": "tiny", "messages": saying(what), "stream": True}).encode()
        url = urls["openai"] + "/v1/chat/completions"
        headers = [("Content-Type", "application/json")]
        return transports.TransportRequest("POST", url, headers, body)

    def stream(what):
        with transports.StdlibTransport() as transport, transport.stream(request(what)) as answer:
            return leave(answer) if what == "leave me" else read(answer)

    async def stream_later(what):
        async with transports.StdlibAsyncTransport() as transport:
            async with transport.stream(request(what)) as answer:
                if what == "leave me":
                    async for _ in answer:
                        break
                else:
                    await read_async(answer)

    def later(what):
        return LOOP.run_until_complete(stream_later(what))

    broken = transports.TransportError
    yield "stream", lambda: stream("a secret")
    yield "stream cut", lambda: fails(lambda: stream("cut me"), broken)
    yield "stream left", lambda: stream("leave me")
    yield "stream async", lambda: later("a secret")
    yield "stream async cut", lambda: fails(lambda: later("cut me"), broken)
    yield "stream async left", lambda: later("leave me")


FRAMEWORKS = {
    each.__name__: each for each in (litellm, langchain, llama_index, instructor, pydantic_ai, dspy)
}


def main():
    name, urls = sys.argv[1], json.loads(sys.argv[2])
    tracer = trace.get_tracer("app")
    asked = {}
    for case, ask in FRAMEWORKS[name](urls):
        with tracer.start_as_current_span("work") as span:
            ask()
            context = span.get_span_context()
            asked[case] = [f"{context.trace_id:032x}", f"{context.span_id:016x}"]
    print(json.dumps(asked))


if __name__ == "__main__":
    main()
