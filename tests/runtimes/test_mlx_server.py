"""mlx-lm's server with a real tiny model, asked over HTTP: one span for each completion."""

from __future__ import annotations

import argparse
import contextlib
import gc
import http.client
import json
import shutil
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from conformance.conformance import violations
from runtimes.conftest import points
from sottovoce.instrumentors import MLXInstrumentor

pytest.importorskip("mlx_lm")
pytestmark = [
    pytest.mark.mlx,
    # The server warns whoever starts it.
    pytest.mark.filterwarnings("ignore:mlx_lm.server is not recommended"),
]

SAID = "a planted sentence"
CHAT = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 5}
TEXT = {"prompt": SAID, "max_tokens": 5}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{SPAN}-01", "baggage": "user=alice"}
CLIENT_METRICS = {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}


class Server:
    """A running server: its port, and what was recorded."""

    def __init__(self, model, **options):
        from mlx_lm import server

        arguments = argparse.Namespace(
            **{
                "model": model,
                "adapter_path": None,
                "draft_model": None,
                "num_draft_tokens": 3,
                "trust_remote_code": False,
                "chat_template": "",
                "use_default_chat_template": False,
                "temp": 0.0,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "max_tokens": 512,
                "chat_template_args": {},
                "decode_concurrency": 32,
                "prompt_concurrency": 8,
                "prefill_step_size": 2048,
                "prompt_cache_size": 10,
                "prompt_cache_bytes": None,
                "kv_bits": None,
                "kv_group_size": 64,
                "quantized_kv_start": 5000,
                "pipeline": False,
                "allowed_origins": ["*"],
                **options,
            }
        )
        provider = server.ModelProvider(arguments)
        self.engine = server.ResponseGenerator(provider, server.LRUPromptCache(10))
        deadline = time.monotonic() + 60
        while provider.tokenizer is None:
            assert time.monotonic() < deadline, "the model was not loaded"
            time.sleep(0.01)

        def handler(*args, **kwargs):
            return server.APIHandler(self.engine, *args, system_fingerprint="none", **kwargs)

        class Quiet(server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                """Print no traceback of a client that went away."""

        self.http = Quiet(("127.0.0.1", 0), handler)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
        self.engine.stop_and_join()

    def post(self, path, body, headers=()):
        """Status and text of the answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            text = body if isinstance(body, str) else json.dumps(body)
            connection.request("POST", path, text.encode(), dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def chat(self, **more):
        status, text = self.post("/v1/chat/completions", CHAT | more, CALLER)
        assert status == 200, text
        return json.loads(text)

    def stream(self, path, **asked):
        """The JSON of each event."""
        status, text = self.post(path, {**asked, "stream": True}, CALLER)
        assert status == 200, text
        lines = (line.partition("data: ")[2] for line in text.splitlines())
        return [json.loads(line) for line in lines if line and line != "[DONE]"]


class Recorded:
    """What the instrumentor recorded."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.carried = []
        self.loads = []
        recorded = self

        class Look(SpanProcessor):
            def on_start(self, span, parent_context=None):
                recorded.carried.append(baggage.get_all(parent_context))

        tracers = TracerProvider()
        tracers.add_span_processor(Look())
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.instrumentor = MLXInstrumentor()
        self.providers = {
            "tracer_provider": tracers,
            "meter_provider": MeterProvider([self.reader]),
        }
        self.instrumentor.instrument(**self.providers)

    def spans(self, count=1, *, judged=True):
        """All spans but those of loading, once there are `count`: a call ends after its answer."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found, self.loads = [], []
            for span in self.exporter.get_finished_spans():
                (self.loads if span.name.startswith("load_model") else found).append(span)
            if len(found) >= count:
                break
            time.sleep(0.01)
        assert len(found) == count, [span.name for span in found]
        self.exporter.clear()
        assert not judged or not violations(*found)
        return found

    @property
    def span(self):
        [span] = self.spans()
        return span

    def metrics(self):
        return points(self.reader)


@pytest.fixture(scope="module")
def recorded():
    made = Recorded()
    yield made
    made.instrumentor.uninstrument()


@pytest.fixture(scope="module")
def server(recorded, mlx_model_path):
    made = Server(str(mlx_model_path))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def fresh(recorded):
    recorded.exporter.clear()


@pytest.fixture(scope="module")
def tokenizer(mlx_model):
    return mlx_model[1]


def test_a_chat_is_one_span_of_the_callers_trace(server, recorded, tokenizer):
    given = len(tokenizer.apply_chat_template(CHAT["messages"], add_generation_prompt=True))
    answer = server.chat(temperature=0.5, top_p=0.9, top_k=7, stop=["never", "ever"])
    span = recorded.span
    assert span.name == "chat llama-lt_1M-f32"
    assert span.kind is SpanKind.SERVER
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    assert span.parent.is_remote
    assert recorded.carried[-1] == {}
    told = dict(span.attributes)
    for timing in ("request.queue.wait", "prefill.throughput", "decode.throughput"):
        assert told.pop(f"sottovoce.{timing}") > 0
    told.pop("sottovoce.model.size", None)
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": "llama-lt_1M-f32",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": given,
        "gen_ai.usage.output_tokens": 5,
        "sottovoce.call.outcome": "completed",
        "sottovoce.context.utilization": round((given + 5) / 2048, 6),
        "sottovoce.memory.peak": "lt_1GiB",
        "sottovoce.model.adapted": False,
        "sottovoce.model.architecture": "llama",
        "sottovoce.model.context_size": 2048,
        "sottovoce.model.parameters": "lt_1M",
        "sottovoce.model.quantization": "f32",
        "sottovoce.request.stop_sequences.count": 2,
    }
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (given, 5)


@pytest.mark.parametrize(
    ("path", "asked", "operation"),
    [
        ("/v1/chat/completions", CHAT, "chat"),
        ("/chat/completions", CHAT, "chat"),
        ("/v1/completions", TEXT, "text_completion"),
    ],
)
def test_a_stream_counts_what_the_server_counts(server, recorded, path, asked, operation):
    usage = {"stream_options": {"include_usage": True}}
    [*_, last] = server.stream(path, **asked, **usage)
    span = recorded.span
    assert span.name == f"{operation} llama-lt_1M-f32"
    told = span.attributes
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.usage.input_tokens"] == last["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == last["usage"]["completion_tokens"] == 5
    assert told["sottovoce.response.chunks"] == 5
    assert told["gen_ai.response.time_to_first_chunk"] > 0


def test_the_metrics_are_a_servers(server, recorded):
    def count(name):
        return sum(
            point.count
            for point in recorded.metrics().get(name, ())
            if point.attributes.get("gen_ai.operation.name") == "chat"
        )

    names = (
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    )
    before = {name: count(name) for name in names}
    server.chat()
    span = recorded.span
    assert {name: count(name) for name in names} == {name: before[name] + 1 for name in names}
    assert not CLIENT_METRICS & recorded.metrics().keys()
    durations = recorded.metrics()["gen_ai.server.request.duration"]
    assert (span.end_time - span.start_time) / 1e9 <= sum(point.sum for point in durations)


def test_what_the_prompt_cache_held_is_told(server, recorded):
    words = [{"role": "user", "content": "said twice, word for word"}]
    answers = [server.chat(messages=words)["usage"] for _ in range(2)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in answers]
    spans = [span.attributes for span in recorded.spans(2)]
    assert cached[1] > cached[0]
    name = "gen_ai.usage.cache_read.input_tokens"
    assert [told.get(name, 0) for told in spans] == cached
    assert {told["gen_ai.usage.input_tokens"] for told in spans} == {answers[0]["prompt_tokens"]}


def test_what_is_served_one_by_one_is_one_span_too(server, recorded):
    # A seed makes the server generate with `stream_generate`, one request after the other.
    answer = server.chat(seed=3)
    told = recorded.span.attributes
    assert told["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == 5


def test_what_a_draft_model_is_worth(recorded, mlx_model_path):
    server = Server(str(mlx_model_path), draft_model=str(mlx_model_path))
    try:
        answers = [server.chat()["usage"], server.stream("/v1/completions", **TEXT)]
        chat, text = (span.attributes for span in recorded.spans(2))
    finally:
        server.close()
    assert chat["gen_ai.usage.input_tokens"] == answers[0]["prompt_tokens"]
    assert chat["gen_ai.usage.output_tokens"] == text["gen_ai.usage.output_tokens"] == 5
    assert text["gen_ai.usage.input_tokens"] == len(SAID)
    # The same model: of the first round three, of the second the last token.
    name = "sottovoce.draft.acceptance_rate"
    assert chat[name] == text[name] == 1


def test_nothing_of_a_request_is_kept(server, recorded):
    from mlx_lm import server as module

    asked = weakref.ref(request := module.CompletionRequest("text", SAID, [], None, None))
    _, tokens = by_hand(server, request=request)
    del request
    next(tokens)
    gc.collect()
    assert asked() is None
    assert len(list(tokens)) == 3


def test_a_handler_is_gone_when_it_has_answered(server, recorded, monkeypatch):
    """It may hold a model; so it did before 0.28.4."""
    from mlx_lm.server import APIHandler

    handlers, setup = [], APIHandler.setup

    def remember(handler):
        handlers.append(weakref.ref(handler))
        setup(handler)

    monkeypatch.setattr(APIHandler, "setup", remember)
    gc.disable()
    try:
        server.chat()
        assert recorded.span
        [handler] = handlers
        deadline = time.monotonic() + 20
        while handler() is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert handler() is None
    finally:
        gc.enable()


def test_requests_in_one_batch_have_a_span_each(server, recorded):
    def ask(tokens):
        trace = f"00-{tokens:032x}-{SPAN}-01"
        status, text = server.post(
            "/v1/completions", TEXT | {"max_tokens": tokens}, {"traceparent": trace}
        )
        return status, json.loads(text)["usage"]["completion_tokens"]

    lengths = [3, 9, 17, 30]
    with ThreadPoolExecutor(len(lengths)) as pool:
        assert list(pool.map(ask, lengths)) == [(200, length) for length in lengths]
    made = {
        span.context.trace_id: span.attributes["gen_ai.usage.output_tokens"]
        for span in recorded.spans(len(lengths))
    }
    assert made == {length: length for length in lengths}


@pytest.mark.parametrize("state", ["vendor=a-secret", "\xe2\x9c\x93=a secret", "a secret"])
def test_of_a_caller_nothing_is_taken_but_its_span(server, recorded, caplog, state):
    headers = {**CALLER, "tracestate": state, "baggage": "a secret"}
    assert server.post("/v1/completions", TEXT, headers)[0] == 200
    span = recorded.span
    assert f"{span.context.trace_id:032x}" == TRACE
    assert not span.context.trace_state
    assert recorded.carried[-1] == {}
    ours = [each for each in caplog.records if each.name.startswith("opentelemetry")]
    assert not ours


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nonsense"}, {"baggage": "a=b"}])
def test_a_caller_without_a_trace_gets_one(server, recorded, headers):
    assert server.post("/v1/completions", TEXT, headers)[0] == 200
    span = recorded.span
    assert span.parent is None
    assert span.kind is SpanKind.SERVER


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", "{", 400),
        ("/v1/chat/completions", "[]", 400),
        ("/v1/chat/completions", {"max_tokens": 5}, 400),
        ("/v1/chat/completions", CHAT | {"temperature": "hot"}, 400),
        ("/v1/elsewhere", CHAT, 404),
    ],
)
def test_what_is_refused_before_a_model_is_asked_is_no_call(server, recorded, path, body, status):
    # Before 0.32 the server hangs up where its own checks fail.
    with contextlib.suppress(http.client.HTTPException):
        assert server.post(path, body, CALLER)[0] == status
    server.chat()
    assert recorded.span.attributes["sottovoce.call.outcome"] == "completed"


def test_a_model_that_cannot_be_loaded(server, recorded, tmp_path):
    status, _ = server.post(
        "/v1/chat/completions", CHAT | {"model": str(tmp_path / "alice-none")}, CALLER
    )
    assert status == 404
    span = recorded.span
    assert span.name == "chat"
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert span.attributes["sottovoce.call.outcome"] == "failed"
    assert span.attributes["error.type"] == "model_not_found"
    assert f"{span.context.trace_id:032x}" == TRACE
    [load] = recorded.loads
    assert (load.parent.span_id, load.name) == (span.context.span_id, "load_model")
    assert load.attributes["error.type"] == "model_not_found"
    assert "alice" not in span.to_json() + load.to_json()


def test_each_load_that_fails_is_of_a_request_of_its_own(server, recorded, tmp_path):
    asked = CHAT | {"model": str(tmp_path / "alice-none")}
    with ThreadPoolExecutor(4) as pool:
        for status, _ in pool.map(lambda _: server.post("/v1/chat/completions", asked), range(4)):
            assert status == 404
    served = {span.context.span_id: span.context.trace_id for span in recorded.spans(4)}
    loads = {load.parent.span_id: load.context.trace_id for load in recorded.loads}
    assert (loads, len(recorded.loads)) == (served, 4)


def test_a_load_that_many_wait_for_is_the_firsts(server, recorded, mlx_model_4bit_path):
    asked = TEXT | {"model": str(mlx_model_4bit_path)}
    with ThreadPoolExecutor(3) as pool:
        for status, _ in pool.map(lambda _: server.post("/v1/completions", asked), range(3)):
            assert status == 200
    spans = recorded.spans(3)
    [load] = recorded.loads
    assert load.parent.span_id in {span.context.span_id for span in spans}
    assert {span.name for span in spans} == {"text_completion llama-lt_1M-4bit"}
    # Other tests want the first model again.
    server.chat()
    assert recorded.span.name == "chat llama-lt_1M-f32"


def test_words_that_cannot_be_read(server, recorded):
    words = [{"role": "user", "content": [{"type": "sound", "sound": SAID}]}]
    asked = CHAT | {"messages": words, "seed": 3}
    status, _ = server.post("/v1/chat/completions", asked, CALLER)
    assert status == 404
    span = recorded.span
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert "gen_ai.usage.output_tokens" not in span.attributes
    assert SAID not in span.to_json()


def test_an_engine_that_fails_while_it_answers(server, recorded):
    # An empty prompt is refused by `stream_generate`, when the answer has begun.
    with pytest.raises(http.client.HTTPException):
        server.post("/v1/completions", TEXT | {"prompt": "", "seed": 3}, CALLER)
    span = recorded.span
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert "gen_ai.usage.output_tokens" not in span.attributes


@pytest.mark.parametrize("more", [{}, {"seed": 3}])
def test_a_client_that_goes_away_has_abandoned_its_call(server, recorded, more):
    asked = CHAT | {"max_tokens": 100_000, "stream": True} | more
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {}\r\n\r\n{}"
    body = json.dumps(asked)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.format(len(body), body).encode())
        got = b""
        while got.count(b"data: ") < 3:
            got += connection.recv(4096)
    span = recorded.span
    told = span.attributes
    assert told["sottovoce.call.outcome"] == "abandoned"
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in told
    assert "gen_ai.response.finish_reasons" not in told
    assert 3 <= told["gen_ai.usage.output_tokens"] == told["sottovoce.response.chunks"] < 100_000
    server.chat()
    assert recorded.span.attributes["sottovoce.call.outcome"] == "completed"


def test_another_model_is_loaded_on_demand(server, recorded, mlx_model_4bit_path, mlx_model_path):
    server.chat(model=str(mlx_model_4bit_path))
    server.chat()
    server.chat()
    other, back, warm = recorded.spans(3)
    loads = [(load.parent.span_id, load.name.split(" ")[1]) for load in recorded.loads]
    ids = (span.context.span_id for span in (other, back))
    assert loads == [*zip(ids, ("llama-lt_1M-4bit", "llama-lt_1M-f32"), strict=True)]
    assert other.name == "chat llama-lt_1M-4bit"
    assert back.name == warm.name == "chat llama-lt_1M-f32"
    for span in (other, back):
        told = span.attributes
        assert 0 < told["sottovoce.model.load.wait"] <= told["sottovoce.request.queue.wait"]
        assert "alice" not in span.to_json()
    assert "sottovoce.model.load.wait" not in warm.attributes


def test_a_load_leaves_no_span_current(server, recorded, mlx_model_4bit_path, monkeypatch):
    tokenize, current = server.engine._tokenize, []

    def look(*args, **kwargs):
        current.append(trace.get_current_span())
        return tokenize(*args, **kwargs)

    # In the thread that has just loaded the model.
    monkeypatch.setattr(server.engine, "_tokenize", look)
    server.chat(model=str(mlx_model_4bit_path))
    server.chat()
    recorded.spans(2)
    assert len(recorded.loads) == 2
    assert current == [trace.INVALID_SPAN] * 2


def test_suppressed_instrumentation_passes_through(server, recorded, monkeypatch):
    from mlx_lm.server import APIHandler

    answer = APIHandler.do_POST

    def quiet(handler):
        with suppress_instrumentation():
            answer(handler)

    monkeypatch.setattr(APIHandler, "do_POST", quiet)
    server.chat()
    monkeypatch.undo()
    server.chat()
    assert recorded.span.attributes["sottovoce.call.outcome"] == "completed"


@pytest.mark.parametrize("reads_headers", [True, False])
def test_a_span_that_is_current_already(server, recorded, monkeypatch, reads_headers):
    from mlx_lm.server import APIHandler

    answer, made = APIHandler.do_POST, []
    tracer = recorded.providers["tracer_provider"].get_tracer("app")

    def watched(handler):
        # Of a request to it, or of the program that serves.
        context = propagate.extract(handler.headers) if reads_headers else None
        with tracer.start_as_current_span("app", context) as span:
            made.append(span.get_span_context())
            answer(handler)

    monkeypatch.setattr(APIHandler, "do_POST", watched)
    server.chat()
    served = next(span for span in recorded.spans(2, judged=False) if span.name != "app")
    assert f"{served.context.trace_id:032x}" == TRACE
    above = made[0].span_id if reads_headers else int(SPAN, 16)
    assert served.parent.span_id == above


def by_hand(server, tokens=4, request=None):
    """What an app gets that uses the server's engine without its HTTP."""
    from mlx_lm import server as module

    request = request or module.CompletionRequest("text", SAID, [], None, None)
    arguments = module.GenerationArguments(
        model=module.ModelDescription("default_model", "default_model", None),
        sampling=module.SamplingArguments(0.0, 1.0, 0, 0.0, 0.0, 0.1),
        logits=module.LogitsProcessorArguments(None, 0.0, 20, 0.0, 20, 0.0, 20),
        stop_words=[],
        max_tokens=tokens,
        num_draft_tokens=3,
        logprobs=False,
        top_logprobs=-1,
        seed=None,
        chat_template_kwargs=None,
    )
    return server.engine.generate(request=request, generation_args=arguments)


def test_the_engine_without_http(server, recorded):
    context, tokens = by_hand(server)
    assert len(list(tokens)) == 4
    span = recorded.span
    assert span.name == "text_completion llama-lt_1M-f32"
    assert span.kind is SpanKind.INTERNAL
    assert span.attributes["gen_ai.usage.input_tokens"] == len(context.prompt)
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert recorded.metrics().keys() & CLIENT_METRICS


def test_how_fast_a_prompt_is_read_is_told_without_company_only(server, recorded):
    from mlx_lm import server as module

    def begin(text):
        _, tokens = by_hand(server, 9, module.CompletionRequest("text", text, [], None, None))
        next(tokens)
        return tokens

    # The second begins beside the first, the third after both.
    for tokens in [begin("a" * 20), begin("b" * 30)]:
        list(tokens)
    list(begin("c" * 40))
    told = {
        span.attributes["gen_ai.usage.input_tokens"] // 10: span.attributes
        for span in recorded.spans(3)
    }
    assert {each for each in told if "sottovoce.prefill.throughput" in told[each]} == {2, 4}
    assert all(each["sottovoce.decode.throughput"] > 0 for each in told.values())


def test_the_engine_that_is_asked_for_nothing(server, recorded):
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        server.engine.generate()
    assert not recorded.spans(0)


def test_the_engine_by_hand_and_left(server, recorded):
    by_hand(server)  # never asked for a token: no call
    context, tokens = by_hand(server, 100_000)
    next(tokens)
    tokens.close()
    context.stop()
    told = recorded.span.attributes
    assert told["sottovoce.call.outcome"] == "abandoned"
    assert told["gen_ai.usage.output_tokens"] == 1


@pytest.mark.parametrize("more", [{}, {"seed": 3}])
def test_instrumented_while_it_serves(recorded, mlx_model_path, more):
    recorded.instrumentor.uninstrument()
    server = Server(str(mlx_model_path))
    try:
        server.chat(**more)
        recorded.instrumentor.instrument(**recorded.providers)
        server.chat(**more)
        span = recorded.span
        assert span.kind is SpanKind.SERVER
        assert span.name == "chat llama-lt_1M-f32"
    finally:
        server.close()


def test_uninstrumented_in_mid_answer(recorded, mlx_model_path):
    module = sys.modules["mlx_lm.server"]
    patched = module.APIHandler.do_POST
    server = Server(str(mlx_model_path))
    try:
        context, tokens = by_hand(server)
        next(tokens)
        recorded.instrumentor.uninstrument()
        assert module.APIHandler.do_POST is not patched
        assert len(list(tokens)) == 3
        assert server.chat()["usage"]["completion_tokens"] == 5
        assert recorded.span.attributes["gen_ai.usage.output_tokens"] == 4
    finally:
        server.close()
        recorded.instrumentor.instrument(**recorded.providers)


@pytest.fixture(scope="module")
def calling_model_path(mlx_model_path, tmp_path_factory):
    """A model with the words for calling tools in its vocabulary."""
    folder = tmp_path_factory.mktemp("calling")
    shutil.copytree(mlx_model_path, folder, dirs_exist_ok=True)
    tokens = folder / "tokenizer.json"
    tokens.write_text(tokens.read_text().replace("<|user|>", "[TOOL_CALLS]"))
    config = folder / "tokenizer_config.json"
    template = {"chat_template": json.loads(config.read_text())["chat_template"]}
    template["chat_template"] += "{# [TOOL_CALLS] #}"
    config.write_text(json.dumps(json.loads(config.read_text()) | template))
    return folder


@pytest.mark.parametrize("stream", [False, True])
def test_what_ended_the_answer_is_what_the_client_is_told(
    server, recorded, calling_model_path, stream
):
    asked = CHAT | {
        "model": str(calling_model_path),
        "tools": [{"type": "function", "function": {"name": "alice_tool"}}],
        # By chance the answer calls a tool, ends with the stop word, or is too long.
        "temperature": 1.0,
        "logit_bias": {"3": 1000, **{str(token): 1000 for token in (70, 71)}},  # b and c
        "stop": "cc",
        "max_tokens": 9,
    }
    ended = set()
    for seed in range(30):
        if stream:
            answers = server.stream("/v1/chat/completions", **asked, seed=seed)
        else:
            answers = [server.chat(**asked, seed=seed)]
        told = recorded.span.attributes
        reason = answers[-1]["choices"][0]["finish_reason"]
        assert told["gen_ai.response.finish_reasons"] == (reason,)
        assert told["sottovoce.request.tools.count"] == 1
        ended.add(reason)
        if ended >= {"tool_calls", "length"}:
            break
    # Before 0.32 the server tells of a call only that is complete.
    assert "tool_calls" in ended or version("mlx-lm") < "0.32"
