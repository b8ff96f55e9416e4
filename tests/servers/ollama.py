"""Ollama on loopback: its own API, in the words of its documentation.

`play()` says how the next requests are answered, as in `provider.py`.
"""

import json

from servers.provider import ANSWER, WORDS, Handler, ProviderServer

MODEL = "llama3.2"
COUNTS = {
    "total_duration": 5191566416,
    "load_duration": 2154458,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 383809000,
    "eval_count": 298,
    "eval_duration": 4799921000,
}
COUNTED = {"input_tokens": 26, "output_tokens": 298, "response_model": MODEL}
TIMED = {
    "load_s": 2154458e-9,
    "prefill_rate": 26 / 383809000e-9,
    "decode_rate": 297 / 4799921000e-9,
}
CALL = {"function": {"name": "weather", "arguments": {"city": "a secret city"}}}
CREATED = "2023-08-04T19:22:45.499127Z"


def line(done=False, **more):
    end = {"done_reason": "stop", "done": True, **COUNTS} if done else {"done": False}
    return {"model": MODEL, "created_at": CREATED, **more, **end}


def said(body, content):
    message = {"role": "assistant", "content": content}
    if body.get("think"):
        message["thinking"] = "a secret thought"
    return message


def chat(body):
    message = said(body, '{"answer": 1}' if body.get("format") else ANSWER)
    if body.get("tools"):
        message["tool_calls"] = [CALL, CALL]
    return line(message=message, done=True)


def generate(body):
    if not body.get("prompt"):
        done = {"response": "", "done": True, "done_reason": "load"}
        return {"model": MODEL, "created_at": CREATED, **done}
    return line(response=ANSWER, context=[1, 2, 3], done=True)


def embed(body):
    counts = {"total_duration": 14143917, "load_duration": 1019500, "prompt_eval_count": 8}
    return {"model": MODEL, "embeddings": [[0.010071029, -0.0017594862]], **counts}


def embedding(body):
    return {"embedding": [0.5670403838157654, 0.009260174818336964]}


def chat_lines(body):
    for _ in range(WORDS):
        yield None, line(message=said(body, "word "))
    if body.get("tools"):
        for _ in range(2):
            yield None, line(message={"role": "assistant", "content": "", "tool_calls": [CALL]})
    yield None, line(message={"role": "assistant", "content": ""}, done=True)


def generate_lines(body):
    for _ in range(WORDS):
        yield None, line(response="word ")
    yield None, line(response="", context=[1, 2, 3], done=True)


def pulled(body):
    yield None, {"status": "pulling manifest"}
    yield None, {"status": "success"}


def as_line(_event, data):
    return json.dumps(data).encode() + b"\n"


class OllamaHandler(Handler):
    """Streams lines of JSON, also to whoever does not say what he wants."""

    error = {"error": "the secret reason"}
    stream_type = "application/x-ndjson"
    written = staticmethod(as_line)
    wholes = {
        "api/chat": chat,
        "api/generate": generate,
        "api/embed": embed,
        "api/embeddings": embedding,
        "api/pull": lambda _: {"status": "success"},
        "api/show": lambda _: {"details": {}, "model_info": {}, "template": ANSWER},
    }
    streams = {"api/chat": chat_lines, "api/generate": generate_lines, "api/pull": pulled}

    def is_streamed(self, body):
        return body.get("stream") is not False

    def refuse(self, status, raw):
        text = f"cannot do {raw.decode('utf-8', 'replace')}"
        self.answer_json(status, {"error": text})

    def damaged(self, event, scenario, count):
        if scenario == "bytewise":
            return [event[i : i + 1] for i in range(len(event))]
        if scenario == "error" and count == 2:
            return [as_line(None, self.error)]
        if scenario == "malformed" and count == 2:
            return [b'{"model": "llama3.2", "done": true, "mess\n']
        return [event]


def serve():
    return ProviderServer(OllamaHandler)
