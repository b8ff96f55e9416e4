"""The calls that are measured, and the situations that are checked, through the SDKs."""

import asyncio
import contextlib

import anthropic
import openai
import wire

PROMPT = [{"role": "user", "content": "planted secret words " * 12}]
LONG_PROMPT = [{"role": "user", "content": "planted secret words " * 5000}]
CLAUDE = "claude-sonnet-4-6"


def load():
    """Import what the SDKs import when their resources are first used."""
    cases = Cases()
    for client in (cases.openai, cases.async_openai):
        _ = client.chat.completions.create, client.embeddings.create, client.responses.create
    _ = cases.claude.messages.create
    cases.loop.close()


class Cases:
    """Each a call, or what is measured as one.

    Asks the provider at `url`, or the one in memory.
    """

    def __init__(self, url=None):
        # A provider's names, though nothing is sent: to this machine, trace context may go along.
        chat, claude = (url, url) if url else ("http://api.openai.com", "http://api.anthropic.com")
        self.url = url
        self.openai = openai.OpenAI(api_key="k", base_url=f"{chat}/v1")
        self.claude = anthropic.Anthropic(api_key="k", base_url=claude)
        self.loop = asyncio.new_event_loop()
        self.async_openai = openai.AsyncOpenAI(api_key="k", base_url=f"{chat}/v1")
        if url is None:
            for client in (self.openai, self.claude, self.async_openai):
                wire.join(client)

    def chat(self):
        self.openai.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)

    def big(self):
        self.openai.chat.completions.create(model="gpt-4o", messages=LONG_PROMPT)

    def stream(self):
        for _ in self.streamed("chunks-200"):
            pass

    def long_stream(self):
        for _ in self.streamed("chunks-1000"):
            pass

    def streamed(self, model):
        return self.openai.chat.completions.create(
            model=model, messages=PROMPT, stream=True, stream_options={"include_usage": True}
        )

    def async_streams(self):
        self.loop.run_until_complete(self._async_streams())

    async def _async_streams(self):
        async def one():
            stream = await self.async_openai.chat.completions.create(
                model="chunks-20",
                messages=PROMPT,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for _ in stream:
                pass

        await asyncio.gather(*(one() for _ in range(50)))
        await asyncio.sleep(0)  # generators that were dropped are closed by tasks

    def embeddings(self):
        self.openai.embeddings.create(model="text-embedding-3-small", input=["words"] * 8)

    def responses(self):
        self.openai.responses.create(model="gpt-4o", input="planted secret words")

    def anthropic(self):
        self.claude.messages.create(model=CLAUDE, max_tokens=100, messages=PROMPT)

    def anthropic_stream(self):
        for _ in self.claude.messages.create(
            model="chunks-200", max_tokens=100, messages=PROMPT, stream=True
        ):
            pass


class Checks(Cases):
    """Situations of the table of correctness, each by itself."""

    def chat_stream(self):
        for _ in self.streamed("gpt-4o"):
            pass

    def early_break(self):
        for _ in self.streamed("gpt-4o"):
            break

    def never_read(self):
        self.streamed("gpt-4o")

    def cut(self):
        with contextlib.suppress(Exception):
            for _ in self.streamed("cut"):
                pass

    def retried(self):
        self.openai.chat.completions.create(model="busy", messages=PROMPT)

    def refused(self):
        with contextlib.suppress(openai.BadRequestError):
            self.openai.chat.completions.create(model="refuse", messages=PROMPT)

    def raw_stream(self):
        create = self.openai.chat.completions.with_raw_response.create
        raw = create(
            model="gpt-4o",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in raw.parse():
            pass

    def iter_lines(self):
        create = self.openai.chat.completions.with_streaming_response.create
        with create(model="gpt-4o", messages=PROMPT) as response:
            for _ in response.iter_lines():
                pass

    def iter_lines_stream(self):
        create = self.openai.chat.completions.with_streaming_response.create
        with create(
            model="gpt-4o",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        ) as response:
            for _ in response.iter_lines():
                pass

    def raw_http(self):
        import httpx

        body = {"model": "gpt-4o", "messages": PROMPT}
        httpx.post(f"{self.url}/v1/chat/completions", json=body)

    def anthropic_break(self):
        for _ in self.claude.messages.create(
            model=CLAUDE, max_tokens=100, messages=PROMPT, stream=True
        ):
            break


CHECKS = [
    "chat",
    "chat_stream",
    "async_streams",
    "raw_stream",
    "iter_lines",
    "iter_lines_stream",
    "early_break",
    "never_read",
    "cut",
    "retried",
    "refused",
    "responses",
    "embeddings",
    "anthropic",
    "anthropic_stream",
    "anthropic_break",
    "raw_http",
]
