"""Anthropic's messages on loopback, as Anthropic and Vertex AI serve them.

Bodies and events are those of the API's reference and of the page on streaming.
"""

from servers.provider import ANSWER, WORDS, Handler, ProviderServer, sse

MODEL = "claude-sonnet-4-5-20250929"
USAGE = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 3,
    "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 4},
    "server_tool_use": {"web_search_requests": 0},
    "service_tier": "standard",
}
COUNTED = {
    "input_tokens": 16,
    "output_tokens": 7,
    "cache_read_tokens": 3,
    "cache_write_tokens": 2,
    "reasoning_tokens": 4,
    "response_service_tier": "standard",
}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "the secret reason"}}
CALLS = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "secret"}}


def message(body):
    text = '{"answer": 1}' if "output_config" in body or "output_format" in body else ANSWER
    content = [{"type": "text", "text": text, "citations": None}]
    if body.get("thinking"):
        content.insert(0, {"type": "thinking", "thinking": "a secret", "signature": "secret"})
    if body.get("tools"):
        content.append(CALLS)
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": content,
        "stop_reason": "tool_use" if body.get("tools") else "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }


def message_events(body):
    def event(kind, **more):
        return kind, {"type": kind, **more}

    whole = message(body)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    yield event("message_start", message=begun)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    text = whole["content"][0]["text"]
    for piece in ["word "] * WORDS if text == ANSWER else [text]:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield event("content_block_stop", index=0)
    if body.get("tools"):
        yield event("content_block_start", index=1, content_block={**CALLS, "input": {}})
        delta = {"type": "input_json_delta", "partial_json": '{"place": "secret"}'}
        yield event("content_block_delta", index=1, delta=delta)
        yield event("content_block_stop", index=1)
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=delta, usage={"output_tokens": 7, **DETAILS})
    yield event("message_stop")


DETAILS = {"output_tokens_details": {"thinking_tokens": 4}}
EVENTS = WORDS + 6
"""Of a stream without tools: `message_stop` only says that it is over."""


def count_tokens(body):
    return {"input_tokens": 11}


def batch(body):
    counts = dict.fromkeys(["processing", "succeeded", "errored", "canceled", "expired"], 0)
    return {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": counts,
        "ended_at": None,
        "created_at": "2024-09-24T18:37:24.100435Z",
        "expires_at": "2024-09-25T18:37:24.100435Z",
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": None,
    }


class AnthropicHandler(Handler):
    """Answers with messages, to Vertex AI's paths, too."""

    error = ERROR
    wholes = {
        "v1/messages": message,
        "rawPredict": message,
        "v1/messages/count_tokens": count_tokens,
        "count-tokens:rawPredict": count_tokens,
        "v1/messages/batches": batch,
    }
    streams = {"v1/messages": message_events, "rawPredict": message_events}

    def operation(self):
        path = self.path.partition("?")[0].replace("streamRawPredict", "rawPredict")
        endings = sorted(self.wholes, key=len, reverse=True)
        return next((each for each in endings if path.endswith(each)), None)

    def refuse(self, status, raw):
        text = f"cannot do {raw.decode('utf-8', 'replace')}"
        self.answer_json(status, {**ERROR, "error": {"type": "api_error", "message": text}})

    def damaged(self, event, scenario, count):
        if scenario == "error" and count == 2:
            return [sse("error", ERROR)]
        return super().damaged(event, scenario, count)


def serve():
    return ProviderServer(AnthropicHandler)
