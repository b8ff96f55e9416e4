"""What generating in process costs with us: µs of CPU per token and per call, in MLX and llama.cpp.

    python benchmarks/runtimes.py [rounds]

Two tables. *Added* puts an engine that does nothing in the place of the real one, beneath the
real instrumentors with a real SDK, because a microsecond is far below the noise of a real
generation: per token is the slope between streams of two lengths, per call what is left.
*Beside the engine* runs the tiny models of `examples/` with and without us. CPU time of this
thread, rounds that run every variant in a new order; median and middle half of the rounds.
"""

import os

os.environ.update(MLX_DISABLE_COMPILE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import llama_cpp
import mlx_lm
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

import tiny_gguf
import tiny_mlx
from sottovoce.instrumentors import LlamaCppInstrumentor, MLXInstrumentor

SHORT, LONG = 1, 1025
CALLS = 20
REAL_TOKENS, REAL_CALLS = 48, 4
LLAMA = llama_cpp.Llama
MLX = sys.modules["mlx_lm.generate"]


class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def instrument(instrumentor):
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()])
    instrumentor().instrument(tracer_provider=tracers, meter_provider=meters)


def free_mlx_stream(model, tokenizer, prompt, max_tokens=256, **kwargs):
    answer = SimpleNamespace(prompt_tokens=9, generation_tokens=1, finish_reason=None, text="")
    for _ in range(max_tokens - 1):
        yield answer
    yield SimpleNamespace(
        prompt_tokens=9, generation_tokens=max_tokens, finish_reason="length", text=""
    )


def free_mlx_generate(model, tokenizer, prompt, verbose=False, **kwargs):
    for _ in MLX.stream_generate(model, tokenizer, prompt, **kwargs):
        pass


def free_llama_generate(self, tokens, **kwargs):
    for _ in range(tokens[0]):
        self.eval(tokens)
        yield 7


def free_llama_eval(self, tokens):
    pass


def free_llama_completion(self, prompt, max_tokens=16, stream=False, **kwargs):
    def chunks():
        chunk = {"choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": None}]}
        for _ in self.generate([max_tokens]):
            if stream:
                yield chunk
        yield {"choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]}

    return chunks() if stream else next(chunks())


def cpu_us(action, calls):
    started = time.thread_time_ns()
    for _ in range(calls):
        action()
    return (time.thread_time_ns() - started) / 1000 / calls


def exhaust(stream):
    for _ in stream:
        pass


def free_calls(model, tokenizer, llama):
    return {
        "mlx-lm stream_generate": lambda n: exhaust(
            MLX.stream_generate(model, tokenizer, "x", max_tokens=n)
        ),
        "mlx-lm generate": lambda n: MLX.generate(model, tokenizer, "x", max_tokens=n),
        "llama.cpp create_completion, streamed": lambda n: exhaust(
            llama.create_completion("x", max_tokens=n, stream=True)
        ),
        "llama.cpp create_completion": lambda n: llama.create_completion("x", max_tokens=n),
    }


def real_calls(model, tokenizer, llama):
    n = REAL_TOKENS
    return {
        "mlx-lm stream_generate": lambda: exhaust(
            MLX.stream_generate(model, tokenizer, "x", max_tokens=n)
        ),
        "llama.cpp create_completion, streamed": lambda: exhaust(
            llama.create_completion("x", max_tokens=n, temperature=0, stream=True)
        ),
        "llama.cpp chat, one token": lambda: llama.create_chat_completion(
            [{"role": "user", "content": "x"}], max_tokens=1, temperature=0
        ),
    }


def spread(samples):
    low, middle, high = statistics.quantiles(samples, n=4)
    return f"{middle:9.2f} [{low:.2f} … {high:.2f}]"


def rounds_of(actions, rounds):
    """Run every action bare and instrumented, in a new order each round."""
    found = {(name, on): [] for name in actions for on in (False, True)}
    for _ in range(rounds):
        for on in random.sample((False, True), 2):
            if on:
                instrument(MLXInstrumentor)
                instrument(LlamaCppInstrumentor)
            for name in random.sample(list(actions), len(actions)):
                found[name, on].append(actions[name]())
            if on:
                MLXInstrumentor().uninstrument()
                LlamaCppInstrumentor().uninstrument()
    return found


def added(loaded, rounds):
    calls = free_calls(*loaded)
    real = {(MLX, name): getattr(MLX, name) for name in ("stream_generate", "generate")}
    real |= {(LLAMA, name): getattr(LLAMA, name) for name in ("generate", "eval")}
    real[LLAMA, "create_completion"] = LLAMA.create_completion
    MLX.stream_generate, MLX.generate = free_mlx_stream, free_mlx_generate
    LLAMA.generate, LLAMA.eval = free_llama_generate, free_llama_eval
    LLAMA.create_completion = free_llama_completion

    def both(call):
        call(LONG)
        return cpu_us(lambda: call(SHORT), CALLS), cpu_us(lambda: call(LONG), CALLS)

    try:
        found = rounds_of({name: lambda c=call: both(c) for name, call in calls.items()}, rounds)
    finally:
        for (owner, name), original in real.items():
            setattr(owner, name, original)
    print(f"{'added, µs of CPU':<40}{'per token':<32}per call")
    for name in calls:
        per_token, per_call = [], []
        for bare, ours in zip(found[name, False], found[name, True], strict=True):
            short, long = ours[0] - bare[0], ours[1] - bare[1]
            per_token.append((long - short) / (LONG - SHORT))
            per_call.append(short - per_token[-1] * SHORT)
        print(f"{name:<40}{spread(per_token):<32}{spread(per_call)}")


def beside_the_engine(loaded, rounds):
    calls = real_calls(*loaded)

    def warmed(call):
        call()
        call()
        return cpu_us(call, REAL_CALLS)

    actions = {name: lambda c=call: warmed(c) for name, call in calls.items()}
    found = rounds_of(actions, rounds)
    print(f"\n{'beside the engine, µs of CPU per call':<40}{'bare':<32}with us")
    for name in calls:
        print(f"{name:<40}{spread(found[name, False]):<32}{spread(found[name, True])}")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = mlx_lm.load(str(tiny_mlx.make(Path(folder) / "mlx")))
        file = tiny_gguf.make(Path(folder) / "tiny.gguf")
        llama = LLAMA(str(file), n_ctx=512, n_threads=1, verbose=False)
        added((model, tokenizer, llama), rounds)
        beside_the_engine((model, tokenizer, llama), rounds)
        llama.close()


if __name__ == "__main__":
    main()
