"""Runs llama-cpp-python in process, whatever its version; prints what each call became.

Argument: a model's file. What it counts itself stands beside what the library reports.
"""

import contextlib
import itertools
import json
import sys

import numpy as np
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import guard, instrumentors
from sottovoce.settings import Settings

exporter, tracers = InMemorySpanExporter(), TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
instrumentors.LlamaCppInstrumentor().instrument(
    tracer_provider=tracers, meter_provider=MeterProvider(), settings=Settings(key="k" * 32)
)

import llama_cpp  # noqa: E402 - as an app does under the launcher

PATH = sys.argv[1]
SAID = "a secret question"
MESSAGES = [{"role": "user", "content": SAID}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def loaded(path=PATH, **more):
    return llama_cpp.Llama(path, n_ctx=512, n_threads=1, verbose=False, **more)


model = loaded()
PROMPT = model.tokenize(SAID.encode())
END = {model.token_eos(): 1000.0}


def count(stream):
    return {"chunks": len(list(stream))}


def usage(answer):
    return dict(answer["usage"], finished=answer["choices"][0]["finish_reason"])


def tokens(number):
    generated = model.generate(PROMPT)
    for _ in range(number):
        next(generated)
    generated.close()


def tool(choice):
    clerk = loaded(chat_format="chatml-function-calling")
    passes, run = [], clerk.create_completion

    def watched(**asked):
        passes.append(answer := run(**asked))
        return answer

    clerk.create_completion = watched
    exporter.clear()
    answer = clerk.create_chat_completion(MESSAGES, tools=[TOOL], tool_choice=choice, max_tokens=8)
    each = [passed["usage"] for passed in passes] or [answer["usage"]]
    total = {kind: sum(one[kind] for one in each) for kind in each[0]}
    return dict(total, finished=answer["choices"][0]["finish_reason"], passes=len(each))


def grammar():
    rules = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    return usage(model.create_completion(SAID, max_tokens=9, grammar=rules))


def guessed():
    """Every guess is what the model says by itself; 0.3.0 says something else beside a guess."""
    model.reset()
    made = [*PROMPT]
    for token in model.generate(PROMPT, temp=0.0):
        made.append(token)
        if len(made) == len(PROMPT) + 12:
            break

    read, guesses = [], []

    def guess(before, **_):
        read.append(len(before))
        guesses.append(made[len(before) :][:3])
        return np.array(guesses[-1], np.intc)

    guesser = loaded(draft_model=guess)
    exporter.clear()
    told = usage(guesser.create_completion(SAID, max_tokens=8, temperature=0.0))
    # Between two guesses is what was right of the first, and one token of the model's own.
    steps = itertools.pairwise([*read, told["total_tokens"]])
    right = sum(after - before - 1 for before, after in steps)
    return dict(told, share=round(right / sum(map(len, guesses)), 6))


def cached():
    model.set_cache(llama_cpp.LlamaRAMCache())
    for _ in range(2):
        model.reset()
        exporter.clear()
        answer = model.create_completion(SAID, max_tokens=4)
    model.set_cache(None)
    return usage(answer)


def restored():
    model.create_completion(SAID, max_tokens=4)
    state = model.save_state()
    model.reset()
    model.load_state(state)
    exporter.clear()
    return usage(model.create_completion(SAID, max_tokens=4))


def embedded():
    embedder = loaded(embedding=True)
    exporter.clear()
    return embedder.create_embedding(SAID)["usage"]


def missing():
    with contextlib.suppress(ValueError):
        loaded("/home/alice/secret.gguf")


def too_long():
    with contextlib.suppress(ValueError):
        model.create_completion(SAID * 500)


CASES = {
    "loaded": lambda: loaded() and None,
    "whole": lambda: usage(model.create_completion(SAID, max_tokens=4)),
    "called": lambda: usage(model(SAID, max_tokens=4)),
    "streamed": lambda: count(model.create_completion(SAID, max_tokens=4, stream=True)),
    "ended": lambda: usage(model.create_completion(SAID, max_tokens=9, logit_bias=END)),
    "chat": lambda: usage(model.create_chat_completion(MESSAGES, max_tokens=4)),
    "chat streamed": lambda: count(
        model.create_chat_completion(MESSAGES, max_tokens=4, stream=True)
    ),
    "tool": lambda: tool({"type": "function", "function": {"name": "f"}}),
    "tool or not": lambda: tool("auto"),
    "grammar": grammar,
    "guessed": guessed,
    "cached": cached,
    "restored": restored,
    "generated": lambda: tokens(3),
    "embedded": embedded,
    "missing": missing,
    "too long": too_long,
}

found = {"version": llama_cpp.__version__, "prompt": len(PROMPT), "cases": {}}
for case, run in CASES.items():
    exporter.clear()
    told = run()
    spans = [
        {"name": span.name, "kind": span.kind.name, "attributes": dict(span.attributes)}
        for span in exporter.get_finished_spans()
    ]
    found["cases"][case] = {"told": told, "spans": spans}
found["failures"] = dict(guard.failures)
print(json.dumps(found))
