"""Mistral's API on loopback: OpenAI's wire, agents and code completion at paths of their own."""

import json
import re

from servers.provider import ANSWER, MODEL, WORDS, Handler, ProviderServer, embeddings, sse

_ALIASES = re.compile(r"/(?:agents|fim)/completions|/models/[^/:]+:(?:r|streamR)awPredict")
OCR = {
    "pages": [
        {
            "index": 0,
            "markdown": ANSWER,
            "images": [],
            "dimensions": {"dpi": 200, "height": 2200, "width": 1700},
        }
    ],
    "model": "mistral-ocr-2512-completion",
    "document_annotation": None,
    "usage_info": {"pages_processed": 1, "doc_size_bytes": 3002},
}


CONVERSED = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 21, "connector_tokens": 3}
AT = "2026-01-01T00:00:00Z"


def entries(tools):
    said = {
        "object": "entry",
        "type": "message.output",
        "id": "msg_1",
        "role": "assistant",
        "model": MODEL,
        "content": ANSWER,
        "created_at": AT,
    }
    ran = {"object": "entry", "type": "tool.execution", "id": "tool_1", "name": "web_search"}
    called = {"object": "entry", "type": "function.call", "id": "fc_1", "tool_call_id": "call_1"}
    if not tools:
        return [said]
    return [
        {**ran, "arguments": '{"query": "a secret"}', "created_at": AT},
        said,
        {**called, "name": "weather", "arguments": '{"city": "a secret"}', "created_at": AT},
    ]


def conversation(body):
    return {
        "conversation_id": "conv_1",
        "outputs": entries(body.get("tools")),
        "usage": CONVERSED,
        "object": "conversation.response",
    }


def conversation_events(body):
    def event(kind, **more):
        return kind, {"type": kind, "created_at": AT, **more}

    yield event("conversation.response.started", conversation_id="conv_1")
    if body.get("tools"):
        ran = {"id": "tool_1", "name": "web_search", "arguments": "a secret", "output_index": 0}
        yield event("tool.execution.started", **ran)
        yield event("tool.execution.done", id="tool_1", name="web_search", output_index=0)
    said = {"id": "msg_1", "role": "assistant", "model": MODEL, "output_index": 1}
    for _ in range(WORDS):
        yield event("message.output.delta", **said, content="word ")
    if body.get("tools"):
        called = {"id": "fc_1", "tool_call_id": "call_1", "name": "weather", "output_index": 2}
        for part in ('{"city": ', '"a secret"}'):
            yield event("function.call.delta", **called, arguments=part)
    yield event("conversation.response.done", usage=CONVERSED)


class MistralHandler(Handler):
    wholes = {**Handler.wholes, "conversations": conversation}
    streams = {**Handler.streams, "conversations": conversation_events}

    def operation(self):
        return "conversations" if "/conversations" in self.path else super().operation()

    def damaged(self, event, scenario, count):
        if scenario == "error" and count == 2 and "/conversations" in self.path:
            kind = "conversation.response.error"
            error = {"type": kind, "message": "the secret reason", "code": 503, "created_at": AT}
            return [sse(kind, error)]
        return super().damaged(event, scenario, count)

    def do_POST(self):
        if self.path.endswith("/ocr"):
            self.provider.requests.append((self.path, dict(self.headers), self.body()))
            self.answer(200, json.dumps(OCR).encode())
            return
        self.path = _ALIASES.sub("/chat/completions", self.path)
        super().do_POST()

    def whole(self, operation, body, scenario):
        if operation == "embeddings":
            self.answer(200, json.dumps({"id": "e1", **embeddings(body)}).encode())
        else:
            super().whole(operation, body, scenario)

    def stream(self, operation, body, scenario):
        super().stream(operation, {**body, "stream_options": {"include_usage": True}}, scenario)

    def refuse(self, status, raw):
        error = {
            "object": "error",
            "message": f"cannot do {raw.decode()}",
            "type": "invalid_request_error",
            "code": "1500",
        }
        self.answer(status, json.dumps(error).encode())


def serve():
    return ProviderServer(MistralHandler)
