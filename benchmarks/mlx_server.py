"""What a request to mlx_lm.server costs with us: µs of CPU per token and per request.

    python benchmarks/mlx_server.py [rounds]

An engine that does nothing stands in the place of the real one, beneath the real instrumentor
with a real SDK: a microsecond is far below the noise of a real generation. Per token is the slope
between answers of two lengths, per request what is left: the caller's trace is read, the call
opened and recorded, its span put in a queue that nobody empties, as in production. CPU time of the connection's thread, rounds that run
both variants in a new order; the lowest twentieth of the rounds, then median and middle half.
"""

import os

os.environ.update(MLX_DISABLE_COMPILE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import random
import statistics
import sys
import tempfile
import time
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import mlx_lm
from mlx_lm import server

from runtimes import lowest, providers, tiny_mlx
from sottovoce.instrumentors import MLXInstrumentor

SHORT, LONG, REQUESTS = 1, 1025, 20
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def free_generate(self, request, generation_args, progress_callback=None):
    context = SimpleNamespace(prompt=[1, 2, 3], prompt_cache_count=0)

    def tokens():
        each, last = (SimpleNamespace(finish_reason=reason) for reason in (None, "length"))
        for _ in range(generation_args.max_tokens - 1):
            yield each
        yield last

    return context, tokens()


def free_post(self):
    _, tokens = self.response_generator.generate(self.request, self.arguments)
    for _ in tokens:
        pass
    self.generate_response("", "length")


def handler(model, tokenizer, length):
    """A handler that has read its request."""
    made = server.APIHandler.__new__(server.APIHandler)
    made.headers = Message()
    made.headers["traceparent"] = TRACE
    made.stream = True
    made.request = server.CompletionRequest("chat", "", [], None, None)
    made.arguments = SimpleNamespace(
        model=SimpleNamespace(model="default_model"),
        sampling=SimpleNamespace(temperature=0.0, top_p=1.0, top_k=0),
        logits=SimpleNamespace(frequency_penalty=0.0, presence_penalty=0.0),
        stop_words=[],
        max_tokens=length,
    )
    made.response_generator = server.ResponseGenerator.__new__(server.ResponseGenerator)
    made.response_generator.model_provider = server.ModelProvider.__new__(server.ModelProvider)
    vars(made.response_generator.model_provider).update(
        model=model, tokenizer=tokenizer, model_key=("default_model", None, None)
    )
    return made


def cpu_us(each):
    started = time.thread_time_ns()
    for _ in range(REQUESTS):
        each.do_POST()
    return (time.thread_time_ns() - started) / 1000 / REQUESTS


def show(name, least, samples):
    first, middle, third = statistics.quantiles(samples, n=4)
    print(f"{name:<24}{least:8.2f}{middle:9.2f} [{first:.2f} … {third:.2f}]")


def main(rounds):
    server.ResponseGenerator.generate = free_generate
    server.APIHandler.do_POST = free_post
    server.APIHandler.generate_response = lambda self, text, finish_reason: None
    given = providers()
    found = {(length, on): [] for length in (SHORT, LONG) for on in (False, True)}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = mlx_lm.load(str(tiny_mlx.make(folder)))
    handlers = {length: handler(model, tokenizer, length) for length in (SHORT, LONG)}
    for _ in range(rounds):
        for on in random.sample((False, True), 2):
            if on:
                MLXInstrumentor().instrument(**given)
            for length, each in handlers.items():
                each.do_POST()
                found[length, on].append(cpu_us(each))
            if on:
                MLXInstrumentor().uninstrument()
    added = {
        length: [b - a for a, b in zip(found[length, False], found[length, True], strict=True)]
        for length in (SHORT, LONG)
    }
    least = {length: lowest(found[length, True]) - lowest(found[length, False]) for length in added}
    span = LONG - SHORT
    token = (least[LONG] - least[SHORT]) / span
    print("added, µs of CPU")
    show("per token", token, [(b - a) / span for a, b in zip(*added.values(), strict=True)])
    show("per request", least[SHORT] - token, added[SHORT])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
