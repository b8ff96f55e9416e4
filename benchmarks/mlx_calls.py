"""What each way to generate with mlx-lm costs with us: µs of CPU per token and per call.

    python benchmarks/mlx_calls.py [rounds]

An engine that does nothing stands in the place of mlx-lm's, beneath the real instrumentor with
a real SDK and everything on: a microsecond is far below the noise of a real generation. Per
token is the slope between answers of two lengths, per call what is left. CPU time of the
thread; bare and instrumented take turns, and of each the fast tenth counts: what a busy machine
adds is no cost of ours.
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

import mlx_lm
from mlx_lm.models.cache import KVCache
from mlx_lm.sample_utils import make_sampler

from runtimes import providers, tiny_mlx
from sottovoce import guard
from sottovoce.instrumentors import MLXInstrumentor

SHORT, LONG = 2, 1026
SEQUENCES = 8
CALLS = 10
MLX = sys.modules["mlx_lm.generate"]
ANSWER = {"prompt_tokens": 9, "from_draft": False, "text": "", "peak_memory": 0.1}


def stream_generate(model, tokenizer, prompt, max_tokens=256, draft_model=None, **kwargs):
    piece = SimpleNamespace(**ANSWER, generation_tokens=1, finish_reason=None)
    for _ in range(max_tokens - 1):
        yield piece
    yield SimpleNamespace(**ANSWER, generation_tokens=max_tokens, finish_reason="length")


def generate(model, tokenizer, prompt, verbose=False, **kwargs):
    for _ in MLX.stream_generate(model, tokenizer, prompt, **kwargs):
        pass


class BatchGenerator:
    """Gives every sequence its tokens, one in each step."""

    def __init__(self, model, sampler=None):
        self.model, self.sampler, self.logits_processors = model, sampler, []
        self.left = 0

    def insert_segments(self, segments, max_tokens=None, caches=None, samplers=None):
        uids = list(range(len(segments)))
        self.left = max_tokens[0]
        self.steps = [SimpleNamespace(uid=uid, finish_reason=None) for uid in uids]
        self.last = [SimpleNamespace(uid=uid, finish_reason="length") for uid in uids]
        return uids

    def next_generated(self):
        self.left -= 1
        if self.left > 0:
            return self.steps
        return self.last if self.left == 0 else []

    def close(self):
        pass


STATS = SimpleNamespace(prompt_time=0.1, generation_time=0.1)


def batch_generate(model, tokenizer, prompts, max_tokens=128, **kwargs):
    batch = MLX.BatchGenerator(model)
    batch.insert_segments([[prompt] for prompt in prompts], [max_tokens] * len(prompts))
    while batch.next_generated():
        pass
    batch.close()
    return SimpleNamespace(stats=STATS)


def exhaust(stream):
    for _ in stream:
        pass


def sequences(model, count, tokens):
    batch = MLX.BatchGenerator(model)
    batch.insert_segments([[[7, 8, 9]]] * count, [tokens] * count)
    while batch.next_generated():
        pass
    batch.close()


def calls(model, tokenizer):
    """Name → what runs for so many tokens, tokens and calls of it for each of them."""
    sampler, cache = make_sampler(0.7, 0.9, top_k=40), [KVCache() for _ in range(32)]
    full = {"sampler": sampler, "prompt_cache": cache}
    prompts = [[7, 8, 9]] * SEQUENCES
    return {
        "stream_generate": (
            lambda n: exhaust(MLX.stream_generate(model, tokenizer, "x", max_tokens=n)),
            1,
            1,
        ),
        "stream_generate, sampler, 32 layers cached": (
            lambda n: exhaust(MLX.stream_generate(model, tokenizer, "x", max_tokens=n, **full)),
            1,
            1,
        ),
        "stream_generate with a draft model": (
            lambda n: exhaust(
                MLX.stream_generate(model, tokenizer, "x", max_tokens=n, draft_model=model)
            ),
            1,
            1,
        ),
        "generate": (lambda n: MLX.generate(model, tokenizer, "x", max_tokens=n), 1, 1),
        f"batch_generate, {SEQUENCES} prompts": (
            lambda n: MLX.batch_generate(model, tokenizer, prompts, max_tokens=n),
            SEQUENCES,
            1,
        ),
        "BatchGenerator, one sequence": (lambda n: sequences(model, 1, n), 1, 1),
        f"BatchGenerator, {SEQUENCES} sequences": (
            lambda n: sequences(model, SEQUENCES, n),
            SEQUENCES,
            SEQUENCES,
        ),
    }


def cpu_us(action, times):
    started = time.thread_time_ns()
    for _ in range(times):
        action()
    return (time.thread_time_ns() - started) / 1000 / times


def fast(samples):
    return statistics.quantiles(samples, n=10)[0]


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    given = providers()
    for standin in (stream_generate, generate, batch_generate, BatchGenerator):
        setattr(MLX, standin.__name__, standin)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        loaded = mlx_lm.load(str(tiny_mlx.make(folder)))
        for _ in range(rounds):
            for on in random.sample((False, True), 2):
                if on:
                    MLXInstrumentor().instrument(**given)
                actions = calls(*loaded)
                for name in random.sample(list(actions), len(actions)):
                    run = actions[name][0]
                    run(LONG)
                    for size, times in ((SHORT, CALLS), (LONG, 2)):
                        spent = cpu_us(lambda run=run, size=size: run(size), times)
                        found.setdefault((name, on, size), []).append(spent)
                if on:
                    MLXInstrumentor().uninstrument()
    print(f"{'added, µs of CPU':<46}{'per token':>10}{'per call':>10}")
    for name, (_, per_step, per_run) in calls(*loaded).items():
        short, long = (
            fast(found[name, True, size]) - fast(found[name, False, size]) for size in (SHORT, LONG)
        )
        step = (long - short) / (LONG - SHORT)
        print(f"{name:<46}{step / per_step:>10.2f}{(short - step * SHORT) / per_run:>10.1f}")
    print(f"\nerrors of our own: {dict(guard.failures) or 'none'}")


if __name__ == "__main__":
    main()
