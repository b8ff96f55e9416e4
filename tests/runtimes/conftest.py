"""Tiny real models, and a recorder that keeps what it was told."""

from __future__ import annotations

import os

# Before any runtime is imported: no compiler, no warnings after a fork.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import contextlib
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import guard
from sottovoce.call import Call, current_call

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """Import one of the examples, which are no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recording:
    """A `call.Recorder` that keeps calls and loads, and checks the rules of the contract."""

    def __init__(self) -> None:
        self.open: list[Call] = []
        self.calls: list[Call] = []
        self.loads: list[tuple[str, dict, float, BaseException | None]] = []
        self.entered: list[tuple[int, Call]] = []

    def opened(self, call: Call) -> None:
        self.open.append(call)

    def enter(self, call: Call) -> Call:
        assert current_call.get() is call
        self.entered.append((threading.get_ident(), call))
        return call

    def leave(self, token: Call) -> None:
        self.entered.remove((threading.get_ident(), token))

    def ended(self, call: Call) -> None:
        self.open.remove(call)
        self.calls.append(call)

    def loaded(self, provider, facts, seconds, error=None) -> None:
        self.loads.append((provider, dict(facts), seconds, error))

    @property
    def call(self) -> Call:
        """The only call that there was; it ended and nothing stayed behind."""
        assert not self.open, "a call is still open"
        assert not self.entered, "a span is still current"
        (call,) = self.calls
        return call


class Instrumented:
    """A runtime's hooks installed for one test."""

    def __init__(self, runtime: Any, **also: Any) -> None:
        self.recorder = Recording()
        vars(self.recorder).update(also)
        self.hooks, self.patches = guard.ImportHooks(), guard.Patches()
        runtime.install(self.recorder, self.hooks, self.patches)

    def remove(self) -> None:
        self.hooks.stop()
        self.patches.undo()


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """What was measured, by the name of the metric."""
    data = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


class Recorded:
    """An instrumentor with a real SDK, and what came out of it."""

    def __init__(self, instrumentor):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = tracers.get_tracer("app")
        self.instrumentor = instrumentor()
        self.meters = MeterProvider([self.reader])
        self.instrumentor.instrument(tracer_provider=tracers, meter_provider=self.meters)

    def points(self):
        return points(self.reader)


@pytest.fixture(autouse=True, scope="module")
def _no_network():
    """No hub is asked, here and in processes of these tests; others have one on loopback."""
    name = "HF_HUB_OFFLINE"
    before = os.environ.get(name)

    def tell(offline: bool) -> None:
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            setattr(constants, name, offline)

    os.environ[name] = "1"
    tell(True)
    yield
    if before is None:
        del os.environ[name]
    else:
        os.environ[name] = before
    tell(before is not None)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Whatever a test does: no current call afterwards, and no error of our own."""
    before = dict(guard.failures)
    yield
    assert current_call.get() is None
    assert dict(guard.failures) == before


@pytest.fixture
def record():
    made = []

    def instrument(instrumentor):
        made.append(Recorded(instrumentor))
        return made[-1]

    yield instrument
    for recorded in made:
        recorded.instrumentor.uninstrument()


@pytest.fixture(scope="session")
def mlx_maker() -> Any:
    return example("tiny_mlx").make


@pytest.fixture(scope="session")
def mlx_model_path(mlx_maker, tmp_path_factory) -> Path:
    return mlx_maker(tmp_path_factory.mktemp("mlx") / "alice-secret-model")


@pytest.fixture(scope="session")
def mlx_model_4bit_path(mlx_maker, tmp_path_factory) -> Path:
    return mlx_maker(tmp_path_factory.mktemp("mlx") / "alice-4bit", bits=4)


@pytest.fixture(scope="session")
def mlx_model(mlx_model_path):
    """A model and its tokenizer, loaded before anything was instrumented."""
    import mlx_lm.utils

    return mlx_lm.utils.load(str(mlx_model_path))


@pytest.fixture
def instrumented_mlx():
    """Installs the hooks when it is called, with attributes for the recorder."""
    from sottovoce.runtimes import mlx

    made: list[Instrumented] = []

    def install(**also: Any) -> Instrumented:
        made.append(Instrumented(mlx, **also))
        return made[-1]

    yield install
    for instrumented in made:
        instrumented.remove()


@pytest.fixture
def mlx_hooks(instrumented_mlx):
    return instrumented_mlx()


@pytest.fixture(scope="session")
def gguf_path(tmp_path_factory) -> Path:
    return example("tiny_gguf").make(tmp_path_factory.mktemp("gguf") / "alice-secret.gguf")


@pytest.fixture(scope="session")
def gguf_q8_path(tmp_path_factory) -> Path:
    return example("tiny_gguf").make(tmp_path_factory.mktemp("gguf") / "alice-q8.gguf", "q8_0")


@pytest.fixture(scope="session")
def _llama(gguf_path):
    """A model, loaded before anything was instrumented."""
    from llama_cpp import Llama

    with contextlib.closing(
        Llama(str(gguf_path), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    ) as llama:
        yield llama


@pytest.fixture
def llama(_llama):
    """The same model with an empty cache."""
    _llama.reset()
    return _llama


@pytest.fixture
def embedder(gguf_path):
    from llama_cpp import Llama

    with contextlib.closing(
        Llama(
            str(gguf_path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, embedding=True
        )
    ) as llama:
        yield llama


@pytest.fixture
def instrumented_llama():
    """Installs the hooks when it is called, with attributes for the recorder."""
    from sottovoce.runtimes import llama_cpp

    made: list[Instrumented] = []

    def install(**also: Any) -> Instrumented:
        made.append(Instrumented(llama_cpp, **also))
        return made[-1]

    yield install
    for instrumented in made:
        instrumented.remove()


@pytest.fixture
def llama_hooks(instrumented_llama):
    return instrumented_llama()


class Engine:
    """What llama.cpp did, seen where its library is called: far beneath our hooks."""

    def __init__(self) -> None:
        # Of each pass: tokens of its prompt, those that were decoded, tokens that it made.
        self.passes: list[list[int]] = []
        # Of each pass: tokens that a draft model guessed.
        self.guesses: list[int] = []
        self.steps = 0
        self._decoded, self._sampler = 0, None

    @property
    def totals(self) -> tuple[int, int, int]:
        """Tokens of all prompts, those from the cache, tokens made."""
        prompts, decoded, made = (sum(column) for column in zip(*self.passes, strict=True))
        return prompts, prompts - decoded, made

    def decode(self, tokens: int) -> None:
        self.steps += 1
        self._decoded += tokens

    def sample(self, sampler: Any, llama: Any, token: int, ended: bool) -> None:
        if sampler is not self._sampler:
            self.passes.append([llama.n_tokens, self._decoded, 0])
            self.guesses.append(0)
            self._sampler = sampler
        else:
            self.guesses[-1] += max(0, self._decoded - 1)
        self._decoded = 0
        self.passes[-1][2] += not ended


@pytest.fixture
def watch(monkeypatch):
    """Watches the engine of a `Llama` when it is called with it."""
    from llama_cpp import _internals, llama_cpp

    decode, sample = _internals.LlamaContext.decode, _internals.LlamaSampler.sample

    def start(llama: Any) -> Engine:
        engine = Engine()

        def watched_decode(context: Any, batch: Any) -> None:
            decode(context, batch)
            if context is llama._ctx:
                engine.decode(batch.batch.n_tokens)

        def watched_sample(sampler: Any, context: Any, idx: int = -1) -> int:
            token = sample(sampler, context, idx)
            if context is llama._ctx:
                ended = llama_cpp.llama_vocab_is_eog(llama._model.vocab, token)
                engine.sample(sampler, llama, token, ended)
            return token

        monkeypatch.setattr(_internals.LlamaContext, "decode", watched_decode)
        monkeypatch.setattr(_internals.LlamaSampler, "sample", watched_sample)
        return engine

    return start
