"""Gemini's API on loopback, as Google and as Vertex AI serve it.

Bodies are those of the API's reference. `play()` says how the next requests are answered, as in
`provider.py`. Streams are server-sent events where ``alt=sse`` asks for them, else one JSON array.
"""

import gzip
import json
import re
import time

from servers.provider import ANSWER, HELD, MODEL, Handler, ProviderServer

WORDS = 5
USAGE = {
    "promptTokenCount": 11,
    "candidatesTokenCount": 7,
    "totalTokenCount": 25,
    "cachedContentTokenCount": 3,
    "thoughtsTokenCount": 2,
    "toolUsePromptTokenCount": 5,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 8},
        {"modality": "IMAGE", "tokenCount": 3},
    ],
    "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 3}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 7}],
}
COUNTED = {
    "input_tokens": 16,
    "output_tokens": 9,
    "cache_read_tokens": 3,
    "reasoning_tokens": 2,
    "input_text_tokens": 13,
    "input_image_tokens": 3,
    "cache_read_text_tokens": 3,
    "output_text_tokens": 7,
}
FACTS = {**COUNTED, "response_model": MODEL, "finish_reasons": ["STOP"]}
SAFETY = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}]
CALL = {"functionCall": {"name": "weather", "args": {"place": "a secret place"}}}
STATUSES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


def candidate(*parts, **more):
    return {"content": {"parts": list(parts), "role": "model"}, **more}


def answer(*candidates, usage=USAGE, **more):
    return {
        "candidates": list(candidates),
        "usageMetadata": usage,
        "modelVersion": MODEL,
        "responseId": "a1",
        **more,
    }


def wants_tool(body):
    """Whether functions were declared and none has answered yet."""
    said = json.dumps(body.get("contents"))
    return "functionDeclarations" in json.dumps(body) and "functionResponse" not in said


def whole(body):
    part = CALL if wants_tool(body) else {"text": ANSWER}
    return answer(candidate(part, finishReason="STOP", index=0, safetyRatings=SAFETY))


def events(body):
    so_far = {"promptTokenCount": 11, "candidatesTokenCount": 1, "totalTokenCount": 12}
    if wants_tool(body):
        yield answer(candidate(CALL, index=0), usage=so_far)
    else:
        for _ in range(WORDS):
            yield answer(candidate({"text": "secret word "}, index=0), usage=so_far)
    yield answer(candidate({"text": "."}, finishReason="STOP", index=0))


BLOCKED = {
    "promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": SAFETY},
    "usageMetadata": {"promptTokenCount": 11, "totalTokenCount": 11},
    "modelVersion": MODEL,
}
VECTOR = [0.25, -0.5, 1.0]
EMBEDDINGS = {
    "embedContent": {
        "embedding": {"values": VECTOR},
        "usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4},
    },
    "batchEmbedContents": {"embeddings": [{"values": VECTOR}, {"values": VECTOR}]},
    "predict": {
        "predictions": [
            {
                "embeddings": {
                    "values": VECTOR,
                    "statistics": {"truncated": False, "token_count": count},
                }
            }
            for count in (6, 5)
        ],
        "metadata": {"billableCharacterCount": 40},
    },
    "countTokens": {"totalTokens": 31},
}


SPENT = {
    "total_input_tokens": 11,
    "input_tokens_by_modality": [
        {"modality": "text", "tokens": 8},
        {"modality": "image", "tokens": 3},
    ],
    "total_cached_tokens": 3,
    "cached_tokens_by_modality": [{"modality": "text", "tokens": 3}],
    "total_output_tokens": 7,
    "output_tokens_by_modality": [{"modality": "text", "tokens": 7}],
    "total_tool_use_tokens": 5,
    "tool_use_tokens_by_modality": [{"modality": "text", "tokens": 5}],
    "total_thought_tokens": 2,
    "total_tokens": 25,
}
THOUGHT = {"type": "thought", "signature": "c2VjcmV0"}
CALLED = {"type": "function_call", "id": "c1", "name": "weather", "arguments": {"place": "secret"}}


def interaction(body, status="completed"):
    said = {"type": "model_output", "content": [{"type": "text", "text": ANSWER}]}
    called = bool(body.get("tools"))
    return {
        "id": "v1_1",
        "object": "interaction",
        "model": MODEL,
        "status": "requires_action" if called and status == "completed" else status,
        "created": "2026-11-21T12:00:00Z",
        "updated": "2026-11-21T12:00:00Z",
        "steps": [THOUGHT, CALLED if called else said],
        "usage": SPENT,
    }


def interaction_events(body):
    whole = interaction(body)
    begun = {key: whole[key] for key in ("id", "object", "model")}
    yield {"event_type": "interaction.created", "interaction": {**begun, "status": "in_progress"}}
    yield {
        "event_type": "interaction.status_update",
        "interaction_id": "v1_1",
        "status": "in_progress",
    }
    if body.get("tools"):
        yield {"event_type": "step.start", "index": 0, "step": CALLED}
    else:
        yield {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}}
        for _ in range(WORDS):
            delta = {"type": "text", "text": "secret word "}
            yield {"event_type": "step.delta", "index": 0, "delta": delta}
    yield {"event_type": "step.stop", "index": 0}
    end = {**begun, "status": whole["status"], "usage": SPENT}
    yield {"event_type": "interaction.completed", "interaction": end}


def error(status, message="the secret reason"):
    return {"error": {"code": status, "message": message, "status": STATUSES[status]}}


def pretty(data):
    return json.dumps(data, indent=2, ensure_ascii=False).encode()


class GeminiHandler(Handler):
    def do_POST(self):
        raw = self.body()
        self.provider.requests.append((self.path, dict(self.headers), raw))
        path, _, query = self.path.partition("?")
        verb = path.rpartition(":")[2]
        body = json.loads(raw)
        scenarios = self.provider.scenarios
        scenario = scenarios.popleft() if scenarios else "ok"
        if scenario.isdigit():
            # As the provider does: the message echoes what was asked.
            refusal = error(int(scenario), f"cannot do {raw.decode()}")
            self.answer(int(scenario), pretty(refusal), "application/json; charset=UTF-8")
        elif scenario == "disconnect":
            self.hang_up()
        elif path.endswith("/interactions") and body.get("stream"):
            failed = {"event_type": "error", "error": {"code": "503", "message": "secret"}}
            self.stream_events(interaction_events(body), scenario, True, failed)
        elif path.endswith("/interactions"):
            self.give(interaction(body), scenario)
        elif verb == "streamGenerateContent":
            given = [BLOCKED] if scenario == "blocked" else events(body)
            self.stream_events(given, scenario, "alt=sse" in query, error(503))
        elif verb == "generateContent":
            self.give(BLOCKED if scenario == "blocked" else whole(body), scenario)
        elif verb in EMBEDDINGS and not re.search("/imagen", path):
            self.give(EMBEDDINGS[verb], scenario)
        elif verb == "predict":
            self.give(
                {"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "c2Vj"}]}, ""
            )
        else:
            self.answer(404, pretty(error(404)))

    def give(self, answer, scenario):
        data = pretty(answer)
        if scenario == "gzip":
            self.answer(200, gzip.compress(data, mtime=0), Content_Encoding="gzip")
        elif scenario == "malformed":
            self.answer(200, data[: len(data) // 2])
        elif scenario == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:20])
            self.hang_up()
        else:
            self.answer(200, data, "application/json; charset=UTF-8")

    def stream_events(self, given, scenario, sse, failed):
        self.send_response(200)
        kind = "text/event-stream" if sse else "application/json; charset=UTF-8"
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for count, event in enumerate(given):
                if scenario == "cut" and count == 3:
                    self.hang_up()
                    return
                if scenario == "slow":
                    time.sleep(0.01)
                    self.provider.gate.wait(HELD)
                if scenario == "held" and count == 3:
                    self.provider.gate.wait(HELD)
                if scenario == "error" and count == 2:
                    event = failed
                if scenario == "bare_error" and count == 2:
                    self.chunk(pretty(error(503)) + b"\n")
                    break
                if sse:
                    self.chunk(b"data: " + json.dumps(event).encode() + b"\r\n\r\n")
                else:
                    self.chunk((b",\r\n" if count else b"[") + pretty(event))
            else:
                self.chunk(b"" if sse else b"\n]\n")
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def gemini_server():
    return ProviderServer(GeminiHandler)
