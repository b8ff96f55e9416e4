"""What a request to llama_cpp.server costs with us: µs of CPU per token and per request.

    python benchmarks/llama_server.py [rounds]

An app of Starlette's that asks a `Llama` as llama_cpp.server does stands in the place of the
server, an engine that does nothing in the place of the real one, beneath the real instrumentor
with a real SDK: a microsecond is far below the noise of a real generation, and of the threads
that the server generates in. A request is two spans: its own, in the caller's trace, and the
model's; spans wait in a queue that nobody empties, as in production. Per token is the slope between answers of two lengths, per request what is left. CPU
time of the thread that answers, rounds that run both variants in a new order; the lowest
twentieth of the rounds, then median and middle half.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from runtimes import (
    LLAMA,
    free_llama_completion,
    free_llama_eval,
    free_llama_generate,
    lowest,
    providers,
    spread,
    tiny_gguf,
)
from sottovoce import guard
from sottovoce.instrumentors import LlamaCppInstrumentor

SHORT, LONG, REQUESTS = 1, 1025, 10
SERVER = "llama_cpp.server.app"
PATH = "/v1/completions"
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": PATH,
    "raw_path": PATH.encode(),
    "query_string": b"",
    "root_path": "",
    "headers": [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}


def server(llama):
    """A module whose `create_app` makes what answers."""

    async def events(chunks):
        for chunk in chunks:
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def answer(request):
        asked = await request.json()
        answered = llama.create_completion(**asked)
        if asked["stream"]:
            return StreamingResponse(events(answered), media_type="text/event-stream")
        return JSONResponse(answered)

    module = ModuleType(SERVER)
    module.create_app = lambda: Starlette(routes=[Route(PATH, answer, methods=["POST"])])
    return module


async def ask(app, body):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        pass

    await app(dict(SCOPE), receive, send)


def cpu_us(app, body, requests):
    async def main():
        await ask(app, body)
        started = time.thread_time_ns()
        for _ in range(requests):
            await ask(app, body)
        return (time.thread_time_ns() - started) / 1000 / requests

    return asyncio.run(main())


def measured(module, llama, rounds):
    given = providers()
    found = {}
    for _ in range(rounds):
        for on in random.sample((False, True), 2):
            if on:
                LlamaCppInstrumentor().instrument(**given)
            app = module.create_app()
            for stream in (False, True):
                for length, requests in ((SHORT, REQUESTS), (LONG, 1)):
                    body = {"prompt": "x", "max_tokens": length, "stream": stream}
                    spent = cpu_us(app, json.dumps(body).encode(), requests)
                    found.setdefault((stream, length, on), []).append(spent)
            if on:
                LlamaCppInstrumentor().uninstrument()
    return found


def show(name, stream, found):
    def added(length):
        bare, ours = found[stream, length, False], found[stream, length, True]
        return lowest(ours) - lowest(bare), [b - a for a, b in zip(bare, ours, strict=True)]

    (short, shorts), (long, longs) = added(SHORT), added(LONG)
    per_token = [(b - a) / (LONG - SHORT) for a, b in zip(shorts, longs, strict=True)]
    token = (long - short) / (LONG - SHORT)
    print(f"{name:<20}{spread(per_token, token):<40}{spread(shorts, short - token * SHORT)}")


def main(rounds):
    with tempfile.TemporaryDirectory() as folder:
        file = tiny_gguf.make(Path(folder) / "tiny.gguf")
        llama = LLAMA(str(file), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    LLAMA.create_completion = free_llama_completion
    LLAMA.generate, LLAMA.eval = free_llama_generate, free_llama_eval
    sys.modules[SERVER] = module = server(llama)
    found = measured(module, llama, rounds)
    llama.close()
    print(f"{'added, µs of CPU':<20}{'per token':<40}per request")
    for name, stream in (("whole", False), ("streamed", True)):
        show(name, stream, found)
    print(f"\nerrors of our own: {dict(guard.failures) or 'none'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
