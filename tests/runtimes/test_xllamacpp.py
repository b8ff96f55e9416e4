"""xllamacpp's server, asked in this process: a real one with tiny random weights.

The package is put into a folder of its own, at the version that the tests of servers pin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.conftest import Instrumented, Recording, example
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.runtimes import gguf, xllamacpp, xllamacpp_models

ROOT = Path(__file__).parents[2]
SAID = "a secret question"
MESSAGES = [{"role": "user", "content": SAID}]
CHAT = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0}
STREAM = {**CHAT, "stream": True}
TEXT = {"prompt": SAID, "max_tokens": 5, "top_k": 40}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package."""
    folder = tmp_path_factory.mktemp("xllamacpp")
    lines = (ROOT / "requirements" / "local-servers.txt").read_text(encoding="utf-8").split("\n")
    first = next(at for at, line in enumerate(lines) if line.startswith("xllamacpp=="))
    pinned = folder / "pinned.txt"
    pinned.write_text("\n".join(lines[first:]), encoding="utf-8")
    uv = Path(sys.executable).with_name("uv")
    target = ("--python", sys.executable, "--target", folder / "site")
    install = [uv, "pip", "install", "-q", "--no-deps", "--require-hashes", *target, "-r", pinned]
    # From uv's cache, when it is there: without a look at any index.
    if subprocess.run([*install, "--offline"], capture_output=True).returncode:
        subprocess.run(install, check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def hooked(site):
    """The package, imported after its hooks were installed, and the hooks."""
    instrumented = Instrumented(xllamacpp)
    sys.path.insert(0, str(site))
    try:
        import xllamacpp as library
    finally:
        sys.path.remove(str(site))
    yield SimpleNamespace(library=library, instrumented=instrumented)
    instrumented.remove()
    assert library.Server is library.xllamacpp.Server
    assert library.Server.__mro__ == (library.Server, object)


def params(library, path, **more):
    made = library.CommonParams()
    made.model.path, made.n_ctx, made.warmup, made.verbosity = str(path), 256, False, -1
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = 1
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.fixture(scope="module")
def made(hooked, gguf_path):
    """A server, and what its load was recorded as."""
    server = hooked.library.Server(params(hooked.library, gguf_path))
    return server, hooked.instrumented.recorder.loads.pop()


@pytest.fixture
def recorder(hooked, made):
    found = hooked.instrumented.recorder
    found.calls.clear()
    found.loads.clear()
    return found


@pytest.fixture
def server(made, recorder):
    return made[0]


IDENTITY = {
    "model_architecture": "llama",
    "model_quantization": "f32",
    "model_size": "lt_1GiB",
    "model_adapter": False,
    "model_offload": "none",
    "context_size": 256,
}
TIMES = {"engine_duration_s", "time_to_first_token_s", "time_per_output_token_s", "decode_rate"}


def facts_of(call):
    """What is exact; times are positive, and no more than that."""
    facts = dict(call.facts)
    for fact in TIMES | {"prefill_rate"}:
        assert facts.pop(fact, 1) > 0
    return facts


def test_a_load(made):
    provider, facts, seconds, error = made[1]
    assert (provider, error) == ("llama_cpp", None)
    assert facts == {"request_model": "llama-other-f32", **IDENTITY}
    assert seconds > 0


def as_text(asked):
    return json.dumps(asked)


def as_bytes(asked):
    return json.dumps(asked).encode()


def test_a_whole_answer(server, recorder):
    answer = server.handle_completions(TEXT)
    assert type(answer) is dict
    call = recorder.call
    assert (call.operation, call.provider, call.model) == (
        "text_completion",
        "llama_cpp",
        "llama-other-f32",
    )
    assert (call.outcome, call.stream, call.in_process, call.local) == (
        "completed",
        False,
        True,
        True,
    )
    usage, timings = answer["usage"], answer["timings"]
    assert facts_of(call) == {
        **IDENTITY,
        "request_max_tokens": 5,
        "request_top_k": 40,
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "cache_read_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "finish_reasons": ["length"],
        "context_fill": usage["total_tokens"] / 256,
    }
    made = usage["completion_tokens"] - 1
    assert call.facts["time_to_first_token_s"] == pytest.approx(timings["prompt_ms"] / 1000)
    assert call.facts["time_per_output_token_s"] * made * 1000 == pytest.approx(
        timings["predicted_ms"]
    )
    assert call.facts["decode_rate"] * call.facts["time_per_output_token_s"] == pytest.approx(1)


@pytest.mark.parametrize("written", [dict, as_text, as_bytes])
def test_a_stream(server, recorder, written):
    told = []
    assert server.handle_chat_completions(written(STREAM), told.append) is None
    assert {type(piece) for piece in told} == {type(written(STREAM))}
    pieces = [piece if isinstance(piece, dict) else json.loads(piece) for piece in told]
    call = recorder.call
    assert (call.operation, call.outcome, call.chunks) == ("chat", "completed", len(told))
    timings = pieces[-1]["timings"]
    given = timings["cache_n"] + timings["prompt_n"]
    assert facts_of(call) == {
        **IDENTITY,
        "request_stream": True,
        "request_max_tokens": 5,
        "request_temperature": 0.0,
        "user_turn": True,
        "input_tokens": given,
        "output_tokens": timings["predicted_n"],
        "cache_read_tokens": timings["cache_n"],
        "finish_reasons": ["length"],
        "context_fill": (given + 5) / 256,
    }
    assert call.facts.keys() >= TIMES
    assert SAID not in repr(call.facts)


@pytest.mark.parametrize("written", [dict, as_text, as_bytes])
def test_a_whole_answer_for_a_function(server, recorder, written):
    told = []
    server.handle_chat_completions(written(CHAT), callback=told.append)
    [answer] = told
    usage = (answer if isinstance(answer, dict) else json.loads(answer))["usage"]
    call = recorder.call
    assert (call.stream, call.chunks, call.outcome) == (False, 0, "completed")
    assert call.facts["output_tokens"] == usage["completion_tokens"]
    assert call.facts["finish_reasons"] == ["length"]


def test_a_stream_that_is_stopped(server, recorder):
    server.handle_chat_completions({**STREAM, "max_tokens": 50}, lambda _: True)
    call = recorder.call
    assert (call.outcome, call.chunks, call.error) == ("abandoned", 1, None)


def test_a_stream_that_is_stopped_at_its_end_is_complete(server, recorder):
    server.handle_chat_completions(
        STREAM, lambda piece: piece["choices"][0]["finish_reason"] is not None
    )
    assert recorder.call.outcome == "completed"


def test_a_function_that_fails_is_the_libraries_own(server, recorder):
    given = []

    def fail(piece):
        given.append(piece)
        raise ZeroDivisionError

    # It says so on the app's terminal and goes on.
    server.handle_chat_completions(STREAM, fail)
    assert (recorder.call.outcome, recorder.call.chunks) == ("completed", len(given))


def test_what_a_function_does_is_no_part_of_the_call(server, recorder):
    seen = []

    def ask_more(_):
        seen.append(current_call.get())
        if len(recorder.calls) < 1:
            server.handle_completions(TEXT)

    server.handle_chat_completions(STREAM, ask_more)
    assert set(seen) == {None}
    assert [call.operation for call in recorder.calls] == ["text_completion", "chat"]
    inner, outer = recorder.calls
    # The engine did not work for the outer one meanwhile.
    assert outer.facts["engine_duration_s"] * 1e9 <= outer.duration_ns - inner.duration_ns


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"messages": [{"role": "user", "content": SAID * 99}]}, "context_length_exceeded"),
        ({"messages": MESSAGES, "tools": [{"type": SAID}]}, None),
    ],
)
@pytest.mark.parametrize("told", [[], None], ids=["function", "answer"])
def test_a_failure_is_a_code(server, recorder, asked, code, told):
    try:
        answer = server.handle_chat_completions(asked, *([] if told is None else [told.append]))
    except Exception as error:  # noqa: BLE001 - what the library does, it does with us as well
        assert recorder.call.error is type(error)
        return
    [answer] = [answer] if told is None else told
    call = recorder.call
    assert call.outcome == "failed"
    assert call.error == (code or answer["error"]["type"])
    assert SAID not in repr((call.error, call.facts))


def test_what_the_server_was_not_made_for(server, recorder):
    server.handle_embeddings({"input": [SAID, SAID]})
    server.handle_rerank({"query": SAID, "documents": [SAID]})
    assert [(call.operation, call.outcome, call.error) for call in recorder.calls] == [
        ("embeddings", "failed", "not_supported_error"),
        ("rerank", "failed", "not_supported_error"),
    ]


@pytest.mark.parametrize(
    ("asked", "error"), [(STREAM, ValueError), ("no JSON", RuntimeError), (7, TypeError)]
)
def test_an_exception_is_the_apps(server, recorder, asked, error):
    given = [lambda _: None] if error is RuntimeError else []
    with pytest.raises(error):
        server.handle_chat_completions(asked, *given)
    assert (recorder.call.outcome, recorder.call.error) == ("failed", error)


def test_wrong_arguments_are_the_apps(server, recorder):
    for args, kwargs in (((), {}), ((CHAT, None, 1), {}), ((), {"callback": print})):
        with pytest.raises(TypeError):
            server.handle_chat_completions(*args, **kwargs)


def test_several_threads(server, recorder):
    def ask():
        server.handle_chat_completions(STREAM, lambda _: None)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [(call.outcome, call.facts["output_tokens"]) for call in recorder.calls] == [
        ("completed", 5)
    ] * 4


def test_embeddings(hooked, recorder, gguf_path):
    library = hooked.library
    pooling = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    asked = params(library, gguf_path, embedding=True, pooling_type=pooling, n_gpu_layers=0)
    embedder = library.Server(asked)
    answer = embedder.handle_embeddings({"input": [SAID, SAID], "model": SAID})
    call = recorder.call
    assert (call.operation, call.outcome) == ("embeddings", "completed")
    assert call.facts["batch_size"] == 2
    assert call.facts["input_tokens"] == answer["usage"]["prompt_tokens"]
    assert SAID not in repr((call.model, call.facts))
    assert len(xllamacpp_models.LOADED) == 2
    del embedder
    assert len(xllamacpp_models.LOADED) == 1


@pytest.fixture
def unknown(tmp_path):
    """A model's file of an architecture that nobody knows."""
    path = example("tiny_gguf").make(tmp_path / "alice-unknown.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"alice", 1))
    return path


def test_a_load_that_fails(hooked, recorder, unknown, tmp_path):
    damaged = tmp_path / "alice-damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"alice" * 99)
    for path, code in {
        tmp_path / "alice-missing.gguf": "model_not_found",
        damaged: "bad_model_file",
        unknown: "unsupported_architecture",
    }.items():
        with pytest.raises(RuntimeError):
            hooked.library.Server(params(hooked.library, path))
        provider, facts, _, error = recorder.loads.pop()
        assert (provider, facts, error) == ("llama_cpp", {}, code)
    with pytest.raises(RuntimeError) as raised:
        hooked.library.Server(params(hooked.library, tmp_path))
    assert recorder.loads.pop()[3] is raised.value
    for wrong in ((), (1,), (1, 2)):
        with pytest.raises(TypeError):
            hooked.library.Server(*wrong)


def test_the_class_is_the_apps_all_the_same(hooked, server, recorder, gguf_path):
    library = hooked.library
    assert isinstance(server, library.Server)
    assert library.Server is library.xllamacpp.Server
    assert (library.Server.__name__, library.Server.__module__) == (
        "Server",
        "xllamacpp.xllamacpp",
    )

    class Mine(library.Server):
        def __init__(self, given):
            self.given = given

    mine = Mine(params(library, gguf_path))
    mine.handle_completions(TEXT)
    assert recorder.call.model == "llama-other-f32"
    assert len(recorder.loads) == 1


def test_a_class_that_the_app_has_stays(hooked, server, recorder, gguf_path):
    hooked.instrumented.remove()
    try:
        plain = hooked.library.Server
        server.handle_completions(TEXT)
        assert not recorder.calls
        late = Instrumented(xllamacpp)
        try:
            assert hooked.library.Server is plain
            other = plain(params(hooked.library, gguf_path))
            other.handle_completions(TEXT)
            assert late.recorder.loads == []
            call = late.recorder.call
            # What its answer names is a file: it says who it is, and nothing of its place.
            told = {name: call.facts.get(name) for name in IDENTITY}
            unknown = dict.fromkeys(("model_adapter", "model_offload", "context_size"))
            assert (call.model, told) == ("llama-other-f32", {**IDENTITY, **unknown})
            assert call.facts["output_tokens"] == 5
            other.handle_chat_completions({**CHAT, "model": str(gguf_path)})
            assert late.recorder.calls[1].model is None
            for answers in (as_text, as_bytes, dict):
                other.handle_chat_completions(answers(STREAM), lambda _: True)
                assert late.recorder.calls[-1].model == "llama-other-f32"
                assert late.recorder.calls[-1].outcome == "abandoned"
            server.handle_completions(TEXT)
            assert late.recorder.calls[-1].model == "llama-other-f32"
        finally:
            late.remove()
    finally:
        hooked.instrumented.hooks, hooked.instrumented.patches = (
            guard.ImportHooks(),
            guard.Patches(),
        )
        kept = hooked.instrumented
        xllamacpp.install(kept.recorder, kept.hooks, kept.patches)


def test_nothing_is_recorded_where_the_app_wants_nothing(hooked, server, recorder):
    refusing = Recording()
    refusing.enabled = lambda: False
    hooks, patches = guard.ImportHooks(), guard.Patches()
    hooked.instrumented.remove()
    xllamacpp.install(refusing, hooks, patches)
    try:
        assert server.handle_completions(TEXT)["usage"]["completion_tokens"] == 5
        assert not refusing.calls
    finally:
        hooks.stop()
        patches.undo()
        kept = hooked.instrumented
        kept.hooks, kept.patches = guard.ImportHooks(), guard.Patches()
        xllamacpp.install(kept.recorder, kept.hooks, kept.patches)


APP = """
import json, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sottovoce import XLlamaCppInstrumentor, guard, settings

LATE = sys.argv[3] == "late"
if LATE:
    import xllamacpp
exporter, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
chosen, _ = settings.read({"SOTTOVOCE_KEY": "a key of these tests, 32 bytes.."})
def made():
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity = sys.argv[1], 256, False, -1
    return xllamacpp.Server(params)

server = made() if LATE else None
XLlamaCppInstrumentor().instrument(
    tracer_provider=tracers, meter_provider=MeterProvider([reader]), settings=chosen
)
import xllamacpp

server = server or made()
server.handle_chat_completions(json.loads(sys.argv[2]), lambda _: None)
metrics = json.loads(reader.get_metrics_data().to_json())
print(json.dumps([[json.loads(span.to_json()) for span in exporter.get_finished_spans()], metrics]))
assert not guard.failures
"""


@pytest.mark.parametrize("late", [False, True])
def test_what_leaves(site, gguf_path, late):
    done = subprocess.run(
        [sys.executable, "-c", APP, str(gguf_path), json.dumps(STREAM), "late" if late else ""],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # The library may write to the same place.
    told = done.stdout.splitlines()[-1]
    [*loads, chat], metrics = json.loads(told)
    kinds = [(load["name"].split(" ")[0], load["kind"]) for load in loads]
    assert kinds == ([] if late else [("load_model", "SpanKind.INTERNAL")])
    assert (chat["name"], chat["kind"]) == ("chat llama-other-f32", "SpanKind.INTERNAL")
    found = {
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "llama-other-f32",
        "gen_ai.request.stream": True,
        "sottovoce.model.quantization": "f32",
        "gen_ai.usage.output_tokens": 5,
    }
    if not late:
        found |= {"sottovoce.model.context_size": 256, "sottovoce.model.offload": "none"}
    assert {**chat["attributes"], **found} == chat["attributes"]
    assert chat["attributes"]["sottovoce.decode.throughput"] > 0
    scopes = metrics["resource_metrics"][0]["scope_metrics"]
    names = {each["name"] for scope in scopes for each in scope["metrics"]}
    assert {
        "gen_ai.client.token.usage",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "sottovoce.engine.decode.throughput",
    } <= names
    assert ("sottovoce.model.load.duration" in names) is not late
    measured = [
        point["attributes"].get("gen_ai.request.model")
        for scope in scopes
        for each in scope["metrics"]
        for point in each["data"]["data_points"]
        if each["name"].startswith("gen_ai.")
    ]
    assert measured == ["llama-other-f32"] * len(measured)
    assert gguf_path.name not in told
    assert str(gguf_path.parent) not in told
    assert SAID not in told


class TestDescribed:
    """What is said of a model and of the machine, by parameters as the library gives them."""

    GPU: ClassVar = {"type": SimpleNamespace(value=1)}

    def library(self, *devices):
        return SimpleNamespace(get_device_info=lambda: list(devices))

    @pytest.mark.parametrize(
        ("label", "parameters"),
        [
            (b"8B", 8e9),
            (b"0.6B", 0.6e9),
            (b"270M", 270e6),
            (b"8x7B", 56e9),
            (b"30B-A3B", 30e9),
            (b"alice", None),
            (b"", None),
            (7, None),
        ],
    )
    def test_a_size(self, label, parameters):
        head = {b"general.size_label": label}
        assert xllamacpp_models._parameters(head) == parameters
        counted = {**head, b"general.parameter_count": 8_030_261_312}
        assert xllamacpp_models._parameters(counted) == 8_030_261_312
        assert xllamacpp_models._parameters({}) is None

    def test_what_a_request_may_fill(self):
        def context(**params):
            return xllamacpp_models._context(SimpleNamespace(kv_unified=False, **params))

        assert context(n_ctx=4096, n_parallel=4) == 1024
        assert context(n_ctx=0, n_parallel=1) is None
        assert context(n_ctx=4096, n_parallel=-1) is None
        shared = SimpleNamespace(kv_unified=True, n_ctx=4096, n_parallel=4)
        assert xllamacpp_models._context(shared) == 4096

    def test_where_it_is(self):
        assert xllamacpp_models._offload(-1, self.library()) == "none"
        assert xllamacpp_models._offload(0, self.library(self.GPU)) == "none"
        assert xllamacpp_models._offload(-1, self.library(self.GPU)) is None


def test_the_head_of_a_file(gguf_path):
    values = gguf.values(gguf.head(str(gguf_path)))
    assert values[b"general.architecture"] == b"llama"
    assert values[b"general.file_type"] == 0
    assert b"tokenizer.ggml.tokens" not in values


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_head_of_a_file_is_read(gguf_path, noise, at):
    head = gguf.head(str(gguf_path))
    gguf.values(head[:at] + noise + head[at + len(noise) :])
    gguf.values(noise)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(SAID),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "finish_reason", "index", "error", "type"])
            | st.sampled_from(["usage", "timings", "prompt_ms", "predicted_ms", "predicted_n"])
            | st.sampled_from(["tool_calls", "function", "name", "model", "code", "message"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.booleans())
def test_no_piece_raises_or_brings_content(piece, stream):
    before = dict(guard.failures)
    recorder = Recording()
    call = xllamacpp._ServerCall(
        OPENAI_CHAT,
        recorder,
        operation="chat",
        provider="llama_cpp",
        identity=None,
        stream=stream,
    )
    for written in (piece, json.dumps(piece), json.dumps(piece).encode()):
        xllamacpp._read(call, written)
    call.over()
    assert SAID not in repr((call.facts, call.error))
    assert not recorder.open
    # What has another shape is counted and passed on.
    guard.failures.clear()
    guard.failures.update(before)
