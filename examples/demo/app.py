"""The demo's app, as a user would write it: nothing in it knows sottovoce.

    opentelemetry-instrument python app.py --said SENTENCE --heard FILE
        [--mlx DIRECTORY] [--server URL] [--gguf FILE]

It says SENTENCE to every model that it is given, and even puts it on a span of its own, as
apps do. Into FILE go the prompts and the request bodies, for proving that a search finds it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from opentelemetry import trace

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--said", required=True)
ARGUMENTS.add_argument("--heard", type=Path, required=True)
ARGUMENTS.add_argument("--mlx")
ARGUMENTS.add_argument("--server")
ARGUMENTS.add_argument("--gguf")


def main() -> None:
    given = ARGUMENTS.parse_args()
    messages = [{"role": "user", "content": given.said}]
    heard = [given.said]
    tracer = trace.get_tracer("demo")
    # Both attributes are what a careless app, or another library, adds.
    with tracer.start_as_current_span("demo") as span:
        span.set_attribute("app.question", given.said)
        span.set_attribute("gen_ai.input.messages", json.dumps(messages))
        if given.mlx:
            heard += mlx_in_process(given.mlx, messages)
        if given.server:
            openai_sdk(given.server, messages)
            heard += bare_httpx(given.server, messages)
            a_call_that_fails(given.server, messages)
        if given.gguf:
            llama_cpp_in_process(given.gguf, messages)
    given.heard.write_text("\n".join(heard), encoding="utf-8")


def mlx_in_process(path, messages):
    from mlx_lm import generate, load, stream_generate

    with step("mlx-lm in this process: load, whole, streamed"):
        model, tokenizer = load(path)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        generate(model, tokenizer, prompt, max_tokens=48)
        for _ in stream_generate(model, tokenizer, prompt, max_tokens=160):
            pass
    return [prompt]


def openai_sdk(server, messages):
    from openai import OpenAI

    with step("openai SDK → mlx_lm server: whole, streamed"):
        client = OpenAI(base_url=f"{server}/v1", api_key="unused")
        client.chat.completions.create(model="default_model", messages=messages, max_tokens=48)
        stream = client.chat.completions.create(
            model="default_model",
            messages=messages,
            max_tokens=160,
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in stream:
            pass


def bare_httpx(server, messages):
    import httpx

    with step("bare httpx → mlx_lm server"):
        response = httpx.post(
            f"{server}/v1/chat/completions",
            json={"model": "default_model", "messages": messages, "max_tokens": 16},
            timeout=30,
        )
        response.raise_for_status()
    return [response.request.content.decode()]


def a_call_that_fails(server, messages):
    from openai import APIStatusError, OpenAI

    with step("openai SDK → a model that is not there"):
        client = OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0)
        try:
            client.chat.completions.create(model="acme/secret-model", messages=messages)
        except APIStatusError as error:
            # The provider's message goes on the span as well: apps do that, too.
            trace.get_current_span().record_exception(error)
        else:
            raise SystemExit("the unknown model answered")


def llama_cpp_in_process(path, messages):
    from llama_cpp import Llama

    with step("llama.cpp in this process: whole, streamed"):
        llama = Llama(path, n_ctx=512, verbose=False)
        llama.create_chat_completion(messages, max_tokens=24)
        for _ in llama.create_chat_completion(messages, max_tokens=160, stream=True):
            pass


class step:  # noqa: N801 - reads as a verb
    """Print what is done, and how long it took."""

    def __init__(self, title):
        self.title = title

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, kind, *_):
        mark = "✗" if kind else "✓"
        print(f"  {mark} {self.title}  ({time.perf_counter() - self.start:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
