"""LM Studio's own API on loopback, with the answers of its documentation."""

from servers.provider import ANSWER, WORDS, Handler, ProviderServer

MODEL = "tiny"
STATS = {
    "input_tokens": 329,
    "total_output_tokens": 268,
    "reasoning_output_tokens": 5,
    "tokens_per_second": 43.73,
    "time_to_first_token_seconds": 0.781,
    "model_load_time_seconds": 2.656,
}
CALLED = {
    "type": "tool_call",
    "tool": "web_search",
    "arguments": {"place": "secret"},
    "output": "a secret",
    "provider_info": {"type": "ephemeral_mcp", "server_label": "a secret"},
}
TOLD = {
    "response_model": MODEL,
    "input_tokens": 329,
    "output_tokens": 268,
    "reasoning_tokens": 5,
    "decode_rate": 43.73,
    "load_s": 2.656,
    "tool_call_count": 1,
    "tool_names": ["web_search"],
    "user_turn": True,
}
EVENTS = WORDS + 5
"""Of a stream, without the last."""


def chat(body):
    return {
        "model_instance_id": MODEL,
        "output": [
            {"type": "reasoning", "content": "a secret"},
            CALLED,
            {"type": "message", "content": ANSWER},
        ],
        "stats": STATS,
        "response_id": "resp_1",
    }


def chat_events(body):
    def event(kind, **more):
        return kind, {"type": kind, **more}

    yield event("chat.start", model_instance_id=MODEL)
    yield event("prompt_processing.progress", progress=0.5)
    yield event("reasoning.delta", content="a secret")
    yield "tool_call.start", {**CALLED, "type": "tool_call.start"}
    yield "tool_call.result", {**CALLED, "type": "tool_call.result"}
    for _ in range(WORDS):
        yield event("message.delta", content="word ")
    yield event("chat.end", result=chat(body))


class LMStudioHandler(Handler):
    error = {
        "type": "error",
        "error": {"type": "model_not_found", "message": "the secret reason", "param": "model"},
    }
    wholes = {"api/v1/chat": chat}
    streams = {"api/v1/chat": chat_events}


def serve():
    return ProviderServer(LMStudioHandler)
