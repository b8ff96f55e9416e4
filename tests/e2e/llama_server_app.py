"""Asks a llama_cpp.server, each time inside a span of its own; prints what it was told.

Arguments: the server's URL, and the names of what is not asked.
"""

import json
import sys
import threading

import openai
from opentelemetry import trace

SAID = "a secret question"
MESSAGES = [{"role": "user", "content": SAID}]
URL, UNASKED = sys.argv[1] + "/v1", sys.argv[2:]


def client(key="the key"):
    return openai.OpenAI(base_url=URL, api_key=key, max_retries=0)


def chat(**more):
    return client().chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0.5, **{"max_tokens": 5, **more}
    )


def refused(kind, ask):
    try:
        ask()
    except kind:
        return
    raise AssertionError(kind)


def left():
    """Close the stream while the model is still at work."""
    with chat(stream=True, max_tokens=1500) as stream:
        next(iter(stream))


def at_once():
    """Two threads, which the server lets wait for one another."""
    context = trace.set_span_in_context(trace.get_current_span())

    def ask():
        with trace.use_span(trace.get_current_span(context)):
            chat()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


CASES = {
    "whole": lambda: chat().usage.model_dump(),
    "streamed": lambda: {"chunks": len(list(chat(stream=True)))},
    "completion": lambda: (
        client().completions.create(model="tiny", prompt=SAID, max_tokens=5).usage.model_dump()
    ),
    "too long": lambda: refused(
        openai.BadRequestError,
        lambda: client().chat.completions.create(model="tiny", messages=MESSAGES * 200),
    ),
    "no key": lambda: refused(
        openai.AuthenticationError,
        lambda: client("another").chat.completions.create(model="tiny", messages=MESSAGES),
    ),
    "left": left,
    "at once": at_once,
    "models": lambda: client().models.list() and None,
    "embeddings": lambda: client().embeddings.create(model="tiny", input=SAID).usage.model_dump(),
}

asked = {}
for case, ask in CASES.items():
    if case in UNASKED:
        continue
    with trace.get_tracer("app").start_as_current_span("work") as span:
        told = ask()
    asked[case] = {"trace": f"{span.get_span_context().trace_id:032x}", "told": told}
print(json.dumps(asked))
