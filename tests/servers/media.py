"""OpenAI's pictures, sounds, judgements and background responses on loopback.

Bodies and events are those of the API's reference.
"""

import json

from servers.provider import (
    ANSWER,
    MODEL,
    RESPONSES_USAGE,
    WORDS,
    Handler,
    ProviderServer,
    response,
    response_events,
)

SOUND = b"\xff\xfb\x90d" + b'"usage": {"input_tokens": 1}' * 400
PICTURE = "iVBORw0KGgo" * 40_000
IMAGE_USAGE = {
    "total_tokens": 100,
    "input_tokens": 50,
    "output_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}
AUDIO_USAGE = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
    "output_tokens": 45,
    "total_tokens": 59,
}
SPEECH_USAGE = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
JUDGED = ("harassment", "hate", "illicit", "self_harm", "sexual", "violence")


def images(body):
    answer = {"created": 1713833628, "data": [{"b64_json": PICTURE, "revised_prompt": ANSWER}]}
    drawn = {"background": "opaque", "output_format": "png", "quality": "high"}
    return {**answer, **drawn, "size": "1024x1024", "usage": IMAGE_USAGE}


def image_events(body):
    drawn = {"background": "opaque", "output_format": "png", "quality": "high"}
    for number in range(2):
        event = {"type": "image_generation.partial_image", "partial_image_index": number}
        yield event["type"], {**event, "b64_json": PICTURE[:1000], "created_at": 1, **drawn}
    event = {"type": "image_generation.completed", "b64_json": PICTURE * 3, "created_at": 1}
    yield event["type"], {**event, **drawn, "size": "1024x1024", "usage": IMAGE_USAGE}


def transcript(body):
    return {"text": ANSWER, "usage": AUDIO_USAGE}


def transcript_events(body):
    for _ in range(WORDS):
        yield None, {"type": "transcript.text.delta", "delta": "word "}
    yield None, {"type": "transcript.text.done", "text": ANSWER, "usage": AUDIO_USAGE}


def speech_events(body):
    for _ in range(WORDS):
        yield None, {"type": "speech.audio.delta", "audio": "c2VjcmV0"}
    yield None, {"type": "speech.audio.done", "usage": SPEECH_USAGE}


def moderation(body):
    judged = {
        "flagged": False,
        "categories": dict.fromkeys(JUDGED, False),
        "category_scores": dict.fromkeys(JUDGED, 0.25),
        "category_applied_input_types": dict.fromkeys(JUDGED, ["text"]),
    }
    return {"id": "modr-1", "model": MODEL, "results": [judged]}


def decision(body):
    answer = {"type": "predicate", "name": "a secret", "probability": 0.25}
    return {
        "id": "dec_1",
        "object": "decision",
        "created_at": 1,
        "model": MODEL,
        "answers": [answer],
        "usage": RESPONSES_USAGE,
    }


def queued(body):
    return response(body, "queued" if body.get("background") else "completed")


class MediaHandler(Handler):
    """Answers uploads without reading them, as what they are asked for."""

    wholes = {
        "images/generations": images,
        "images/edits": images,
        "images/variations": images,
        "audio/speech": None,
        "audio/transcriptions": transcript,
        "audio/translations": transcript,
        "decisions": decision,
        "moderations": moderation,
        "responses": queued,
        "responses/compact": queued,
    }
    streams = {
        "images/generations": image_events,
        "images/edits": image_events,
        "audio/speech": speech_events,
        "audio/transcriptions": transcript_events,
        "responses": response_events,
    }

    def do_GET(self):
        self.provider.requests.append((self.path, dict(self.headers), b""))
        scenarios = self.provider.scenarios
        scenario = scenarios.popleft() if scenarios else "ok"
        path, _, query = self.path.partition("?")
        if "/responses/" not in path or path.endswith("/input_items"):
            self.answer(200, json.dumps({"object": "list", "data": []}).encode())
        elif scenario.isdigit():
            self.refuse(int(scenario), b"")
        elif "stream=true" in query:
            self.stream("responses", {}, scenario)
        else:
            status = scenario if scenario in {"queued", "in_progress"} else "completed"
            self.answer(200, json.dumps(response({}, status)).encode())

    def is_streamed(self, body):
        raw = self.provider.requests[-1][2]
        form = b'name="stream"\r\n\r\ntrue' in raw
        return body.get("stream") or form or body.get("stream_format") == "sse"

    def whole(self, operation, body, scenario):
        raw = self.provider.requests[-1][2]
        if operation == "audio/speech":
            self.answer(200, SOUND, content_type=scenario if "/" in scenario else "audio/mpeg")
        elif b'name="response_format"\r\n\r\ntext' in raw:
            self.answer(200, (ANSWER + "\n").encode(), content_type="text/plain; charset=utf-8")
        else:
            super().whole(operation, body, scenario)


def serve():
    return ProviderServer(MediaHandler)
