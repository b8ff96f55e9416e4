"""What generating in process costs with us: µs of CPU per token and per call, in MLX and llama.cpp.

    python benchmarks/runtimes.py [rounds]

Three tables. *Added* puts an engine that does nothing in the place of the real one, beneath the
real instrumentors with a real SDK and the gate, because a microsecond is far below the noise of a real
generation: per token is the slope between streams of two lengths, per call what is left. *Memory* is what
our code holds late in a stream that is long, and what it held early on.
*Beside the engine* runs the tiny models of `examples/` with and without us, each in processes of
its own: putting methods on a class and taking them off again costs CPython its specialised code
for that class, more than what is to be measured. CPU time of the thread, rounds that run every
variant in a new order; the lowest twentieth of the rounds, where others disturb least, then
median and middle half.
"""

import json
import os

os.environ.update(MLX_DISABLE_COMPILE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import llama_cpp
import mlx_lm
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import sottovoce
import tiny_gguf
import tiny_mlx
from sottovoce.instrumentors import LlamaCppInstrumentor, MLXInstrumentor
from sottovoce.privacy import gate
from sottovoce.privacy.policy import activate
from sottovoce.settings import Settings

SHORT, LONG = 1, 1025
EARLY, LATE = 100, 10_000
CALLS = 20
HOUR = 3_600_000  # ms: nothing is exported while something is measured
REAL_SHORT, REAL_LONG = 8, 136
REAL_WINDOWS, REAL_CALLS = 15, 4
OURS = Path(sottovoce.__file__).parent
LLAMA = llama_cpp.Llama
MLX = sys.modules["mlx_lm.generate"]


class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def providers():
    """What an instrumentor is given: behind the gate, as the launcher makes them, and a queue."""
    policy = activate(Settings(key="a key of the benchmark, not a secret"))
    tracers = gate.gated_tracer_provider(policy)
    tracers.add_span_processor(
        BatchSpanProcessor(Nowhere(), max_queue_size=1 << 16, schedule_delay_millis=HOUR)
    )
    meters = gate.gated_meter_provider(policy, metric_readers=[InMemoryMetricReader()])
    return {"tracer_provider": tracers, "meter_provider": meters}


def instrument(instrumentor, given):
    instrumentor().instrument(**given)


def free_mlx_stream(model, tokenizer, prompt, max_tokens=256, **kwargs):
    answer = SimpleNamespace(prompt_tokens=9, generation_tokens=1, finish_reason=None, text="")
    for _ in range(max_tokens - 1):
        yield answer
    yield SimpleNamespace(
        prompt_tokens=9,
        generation_tokens=max_tokens,
        finish_reason="length",
        text="",
        peak_memory=0.1,
    )


def free_mlx_generate(model, tokenizer, prompt, verbose=False, **kwargs):
    for _ in MLX.stream_generate(model, tokenizer, prompt, **kwargs):
        pass


def free_llama_generate(self, tokens, **kwargs):
    for _ in range(tokens[0]):
        self.eval(tokens)
        yield 77


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
        "llama.cpp generate": lambda n: exhaust(llama.generate([n])),
    }


def real_calls(model, tokenizer, llama):
    def mlx_stream(n):
        return lambda: exhaust(MLX.stream_generate(model, tokenizer, "x", max_tokens=n))

    def llama_stream(n):
        return lambda: exhaust(
            llama.create_completion("x", max_tokens=n, temperature=0, stream=True)
        )

    return {
        f"mlx-lm stream_generate, {REAL_SHORT} tokens": mlx_stream(REAL_SHORT),
        f"llama.cpp create_completion, {REAL_SHORT} tokens": llama_stream(REAL_SHORT),
        f"llama.cpp create_completion, {REAL_LONG} tokens": llama_stream(REAL_LONG),
        "llama.cpp chat, one token": lambda: llama.create_chat_completion(
            [{"role": "user", "content": "x"}], max_tokens=1, temperature=0
        ),
    }


def spread(samples, low=None):
    first, middle, third = statistics.quantiles(samples, n=4)
    least = lowest(samples) if low is None else low
    return f"{least:8.2f}{middle:9.2f} [{first:.2f} … {third:.2f}]"


def lowest(samples):
    return sorted(samples)[len(samples) // 20]


def rounds_of(actions, rounds):
    """Run every action bare and instrumented, in a new order each round."""
    given = providers()
    found = {(name, on): [] for name in actions for on in (False, True)}
    for _ in range(rounds):
        for on in random.sample((False, True), 2):
            if on:
                instrument(MLXInstrumentor, given)
                instrument(LlamaCppInstrumentor, given)
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
    print(f"{'added, µs of CPU':<40}{'per token':<40}per call")
    for name in calls:
        bare, ours = found[name, False], found[name, True]
        short, long = (
            [with_us[at] - without[at] for without, with_us in zip(bare, ours, strict=True)]
            for at in (0, 1)
        )
        least_short, least_long = (
            lowest([each[at] for each in ours]) - lowest([each[at] for each in bare])
            for at in (0, 1)
        )
        per_token = [(b - a) / (LONG - SHORT) for a, b in zip(short, long, strict=True)]
        per_call = [a - token * SHORT for a, token in zip(short, per_token, strict=True)]
        token = (least_long - least_short) / (LONG - SHORT)
        call = least_short - token * SHORT
        print(f"{name:<40}{spread(per_token, token):<40}{spread(per_call, call)}")


def memory(loaded):
    """Print what our code holds in the middle of streams, in KiB."""
    real = LLAMA.generate, LLAMA.eval, LLAMA.create_completion, MLX.stream_generate
    LLAMA.generate, LLAMA.eval = free_llama_generate, free_llama_eval
    LLAMA.create_completion, MLX.stream_generate = free_llama_completion, free_mlx_stream
    model, tokenizer, llama = loaded
    streams = {
        "mlx-lm stream_generate": lambda: MLX.stream_generate(
            model, tokenizer, "x", max_tokens=LATE + 1
        ),
        "llama.cpp create_completion, streamed": lambda: llama.create_completion(
            "x", max_tokens=LATE + 1, stream=True
        ),
        "llama.cpp generate": lambda: llama.generate([LATE + 1]),
    }
    given = providers()
    instrument(MLXInstrumentor, given)
    instrument(LlamaCppInstrumentor, given)
    ours = [tracemalloc.Filter(inclusive=True, filename_pattern=f"{OURS}/*")]
    print(f"\n{'memory that we hold, KiB':<40}at token {EARLY:<11}at token {LATE}")
    for name, stream in streams.items():
        held = {}
        tracemalloc.start()
        for number, _ in enumerate(stream(), 1):
            if number in {EARLY, LATE}:
                traces = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
                held[number] = sum(trace.size for trace in traces) / 1024
        tracemalloc.stop()
        print(f"{name:<40}{held[EARLY]:8.1f}            {held[LATE]:8.1f}")
    MLXInstrumentor().uninstrument()
    LlamaCppInstrumentor().uninstrument()
    LLAMA.generate, LLAMA.eval, LLAMA.create_completion, MLX.stream_generate = real


def one_process(with_us):
    """Print the median µs of each real call, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(Path(folder))
        if with_us:
            given = providers()
            instrument(MLXInstrumentor, given)
            instrument(LlamaCppInstrumentor, given)
        medians = {}
        for name, call in real_calls(*loaded).items():
            cpu_us(call, 3 * REAL_CALLS)
            windows = [cpu_us(call, REAL_CALLS) for _ in range(REAL_WINDOWS)]
            medians[name] = statistics.median(windows)
        print(json.dumps(medians))
        loaded[2].close()


def beside_the_engine(rounds):
    found = {}
    for _ in range(rounds):
        for kind in random.sample(("bare", "ours"), 2):
            done = subprocess.run(
                [sys.executable, __file__, kind], capture_output=True, text=True, check=True
            )
            for name, median in json.loads(done.stdout).items():
                found.setdefault(name, {"bare": [], "ours": []})[kind].append(median)
    print(f"\n{'beside the engine, µs of CPU per call':<40}{'bare':<44}with us")
    for name, samples in found.items():
        print(f"{name:<40}{spread(samples['bare']):<44}{spread(samples['ours'])}")


def load(folder):
    model, tokenizer = mlx_lm.load(str(tiny_mlx.make(folder / "mlx")))
    file = tiny_gguf.make(folder / "tiny.gguf")
    return (
        model,
        tokenizer,
        LLAMA(str(file), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False),
    )


def main():
    if sys.argv[1:] in (["bare"], ["ours"]):
        one_process(with_us=sys.argv[1] == "ours")
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(Path(folder))
        added(loaded, rounds)
        memory(loaded)
        loaded[2].close()
    beside_the_engine(max(3, rounds // 3))


if __name__ == "__main__":
    main()
