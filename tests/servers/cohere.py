"""Cohere on loopback: chat of both versions, embeddings, rankings, with its reference's examples.

`play()` says how the next requests are answered, as in `provider.py`.
"""

import inspect
import json

import httpx

from servers.provider import ANSWER, WORDS, Handler, ProviderServer, sse

UNITS = {"billed_units": {"input_tokens": 5, "output_tokens": 418}}
USAGE = {**UNITS, "tokens": {"input_tokens": 71, "output_tokens": 418}, "cached_tokens": 64}
COUNTED = {"input_tokens": 5, "output_tokens": 418, "cache_read_tokens": 64}
META = {"api_version": {"version": "2", "is_experimental": False}, **USAGE}
CALL = {
    "id": "secret_tool_h2d1w",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"day":"a secret day"}'},
}


def chat(body):
    text = '{"answer": 1}' if "response_format" in body else ANSWER
    message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    if body.get("tools"):
        message = {"role": "assistant", "tool_plan": "a secret plan", "tool_calls": [CALL, CALL]}
    return {
        "id": "c14c80c3-18eb-4519-9460-6c92edd8cfb4",
        "finish_reason": "TOOL_CALL" if body.get("tools") else "COMPLETE",
        "message": message,
        "usage": USAGE,
    }


def chat_events(body):
    def event(kind, **more):
        return kind, {"type": kind, **more}

    def content(**more):
        return {"message": {"content": more}}

    start = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": []}
    yield event("message-start", id="29f14a5a", delta={"message": {**start, "citations": []}})
    if body.get("tools"):
        yield event("tool-plan-delta", delta={"message": {"tool_plan": "a secret plan"}})
        for index in range(2):
            call = {**CALL, "id": f"secret_{index}"}
            yield event("tool-call-start", index=index, delta={"message": {"tool_calls": call}})
            arguments = {"function": {"arguments": '{"day":"a secret day"}'}}
            call = {"message": {"tool_calls": arguments}}
            yield event("tool-call-delta", index=index, delta=call)
            yield event("tool-call-end", index=index)
    else:
        yield event("content-start", index=0, delta=content(type="text", text=""))
        for _ in range(WORDS):
            yield event("content-delta", index=0, delta=content(text="word "))
        yield event("content-end", index=0)
    reason = "TOOL_CALL" if body.get("tools") else "COMPLETE"
    yield event("message-end", id="29f14a5a", delta={"finish_reason": reason, "usage": USAGE})
    yield None, None


def chat_v1(body):
    calls = [{"name": "weather", "parameters": {"day": "a secret day"}}]
    return {
        "response_id": "r1",
        "generation_id": "g1",
        "text": ANSWER,
        "chat_history": [{"role": "USER", "message": "a secret question"}],
        "finish_reason": "COMPLETE",
        "meta": META,
        **({"tool_calls": calls} if body.get("tools") else {}),
    }


def chat_v1_lines(body):
    yield None, {"is_finished": False, "event_type": "stream-start", "generation_id": "g1"}
    for _ in range(WORDS):
        yield None, {"is_finished": False, "event_type": "text-generation", "text": "word "}
    end = {"event_type": "stream-end", "response": chat_v1(body), "finish_reason": "COMPLETE"}
    yield None, {"is_finished": True, **end}


def generate_v1(body):
    texts = [{"id": "t1", "text": ANSWER, "finish_reason": "MAX_TOKENS"}]
    return {"id": "g1", "generations": texts, "prompt": "a secret question", "meta": META}


def embed(body):
    units = {"billed_units": {"input_tokens": 2}}
    return {
        "id": "3198467e-399f-4d4a-aa2c-58af93bd6dc4",
        "texts": ["a secret question"],
        "embeddings": {"float": [[0.016296387, -0.008354187]]},
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2", "is_experimental": True}, **units},
    }


def embed_v1(body):
    return {**embed(body), "embeddings": [[0.5, 0.25]], "response_type": "embeddings_floats"}


def rerank(body):
    return {
        "results": [{"index": 3, "relevance_score": 0.999071}],
        "id": "07734bd2-2473-4f07-94e1-0d9f0e6843cf",
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }


class CohereHandler(Handler):
    """Streams typed events in version 2, lines of JSON in version 1."""

    error = {"message": "the secret reason"}
    wholes = {
        "v1/chat": chat_v1,
        "v2/chat": chat,
        "v1/generate": generate_v1,
        "v1/embed": embed_v1,
        "v2/embed": embed,
        "v1/rerank": rerank,
        "v2/rerank": rerank,
        "v1/tokenize": lambda _: {"tokens": [1, 2], "token_strings": ["a", "b"]},
    }
    streams = {"v1/chat": chat_v1_lines, "v2/chat": chat_events}

    @property
    def stream_type(self):
        v1 = self.path.endswith("v1/chat")
        return "application/stream+json" if v1 else "text/event-stream; charset=utf-8"

    def written(self, event, data):
        if self.path.endswith("v1/chat"):
            return json.dumps(data).encode() + b"\n"
        return sse(event, data)

    def refuse(self, status, raw):
        text = f"cannot do {raw.decode('utf-8', 'replace')}"
        self.answer_json(status, {"id": "e1", "message": text})

    def damaged(self, event, scenario, count):
        if scenario == "error" and count == 2:
            delta = {"finish_reason": "ERROR", "error": "the secret reason"}
            return [sse("message-end", {"type": "message-end", "delta": delta})]
        return super().damaged(event, scenario, count)


def serve():
    return ProviderServer(CohereHandler)


def connect(classes, driver, url, timeout):
    """Make a client of the SDK, of one class or the other."""
    cls = classes[driver.name == "async"]
    http = (httpx.AsyncClient if driver.name == "async" else httpx.Client)(verify=False)
    options = {}
    if "max_retries" in inspect.signature(cls).parameters:
        # It waits for seconds before it tries again where nobody listens.
        options["max_retries"] = 2 if timeout > 5 else 0
    client = cls(api_key="key", base_url=url, httpx_client=http, timeout=timeout, **options)
    client.mine = http
    return client


def disconnect(driver, client):
    close = client.mine.aclose if isinstance(client.mine, httpx.AsyncClient) else client.mine.close
    return close() if driver is None else driver.do(close)
