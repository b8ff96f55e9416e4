"""llama-server's own routes on loopback, with the answers of its documentation."""

from servers.provider import ANSWER, WORDS, Handler, ProviderServer

MODEL = "tiny"
TIMINGS = {
    "cache_n": 1,
    "prompt_n": 10,
    "prompt_ms": 50.0,
    "predicted_n": 5,
    "predicted_ms": 40.0,
}
COUNTED = {"input_tokens": 11, "output_tokens": 5, "cache_read_tokens": 1}
TIMED = {"prefill_rate": 200.0, "decode_rate": 100.0}
TOLD = {**COUNTED, **TIMED, "response_model": MODEL, "finish_reasons": ["length"]}


def last(content):
    return {
        "index": 0,
        "content": content,
        "stop": True,
        "model": MODEL,
        "tokens_predicted": 5,
        "tokens_evaluated": 11,
        "generation_settings": {"n_predict": 5, "stop": ["a secret word"]},
        "prompt": "a secret question",
        "stop_type": "limit",
        "stopping_word": "",
        "timings": TIMINGS,
    }


def completion(body):
    return last(ANSWER)


def completion_events(body):
    for _ in range(WORDS):
        said = {"index": 0, "content": "word ", "tokens": [7], "stop": False}
        yield None, {**said, "tokens_predicted": 1, "tokens_evaluated": 11}
    yield None, last("")


def embedding(body):
    return [{"index": 0, "embedding": [[0.25, -0.5]]}]


class LlamaServerHandler(Handler):
    error = {
        "error": {"code": 400, "message": "the secret reason", "type": "invalid_request_error"}
    }
    wholes = {"completion": completion, "embedding": embedding}
    streams = {"completion": completion_events}


def serve():
    return ProviderServer(LlamaServerHandler)
