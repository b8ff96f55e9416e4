"""Hugging Face's text generation server, and features of texts, on loopback.

Bodies are those of the server's documentation; it speaks OpenAI's chat, too. `play()` says how the
next requests are answered, as in `provider.py`.
"""

from servers.provider import ANSWER, EVENTS, WHOLE, WORDS, Handler, ProviderServer, sse

COUNTED = {"output_tokens": 18, "finish_reasons": ["length"]}
DETAILS = {"finish_reason": "length", "generated_tokens": 18, "seed": None}


def token(text, number=1):
    return {"id": number, "text": text, "logprob": -0.5, "special": False}


def generate(body):
    answer = {"generated_text": ANSWER}
    if body.get("parameters", {}).get("details"):
        prefill = [{"id": 7, "text": "a secret", "logprob": None}] * 3
        answer["details"] = {**DETAILS, "prefill": prefill, "tokens": [token("a secret")]}
    return answer


def at_the_root(body):
    return [generate(body)] if body.get("parameters") else features(body)


def generate_events(body):
    for index in range(WORDS):
        event = {"index": index, "token": token("word ", index), "generated_text": None}
        yield None, {**event, "details": None}
    details = {**DETAILS, "input_length": 3} if body["parameters"].get("details") else None
    last = {"index": WORDS, "token": token(""), "generated_text": "word " * WORDS}
    yield None, {**last, "details": details}


def features(body):
    return [[0.016296387, -0.008354187, -0.04699707]]


class HuggingFaceHandler(Handler):
    """Serves one model at its root, as the client expects of an address, and chat beside it."""

    error = {"error": "the secret reason", "error_type": "overloaded"}
    wholes = {
        **WHOLE,
        "generate": generate,
        "generate_stream": generate,
        "feature-extraction": features,
        "text-classification": lambda _: [[{"label": "a secret", "score": 0.5}]],
        "": at_the_root,
    }
    streams = {**EVENTS, "generate": generate_events, "generate_stream": generate_events}
    streams[""] = generate_events

    def do_GET(self):
        # Whether a model can do a task is asked of the hub first.
        task = "feature-extraction" if self.path.endswith("features") else "text-generation"
        self.answer_json(200, {"id": "tiny", "pipeline_tag": task, "tags": [task]})

    def operation(self):
        found = super().operation()
        if found is None and "/pipeline/feature-extraction/" in self.path:  # before 0.34
            return "feature-extraction"
        return "" if found is None and (self.path == "/" or "/models/" in self.path) else found

    def is_streamed(self, body):
        return super().is_streamed(body) or self.path.endswith("generate_stream")

    def refuse(self, status, raw):
        text = f"cannot do {raw.decode('utf-8', 'replace')}"
        self.answer_json(status, {"error": text, "error_type": "validation"})

    def damaged(self, event, scenario, count):
        if scenario == "error" and count == 2:
            return [sse(None, self.error)]
        return super().damaged(event, scenario, count)


def serve():
    return ProviderServer(HuggingFaceHandler)
