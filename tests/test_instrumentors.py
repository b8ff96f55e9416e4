"""The instrumentors as a user applies them, with providers of his own."""

import sys
from importlib.metadata import entry_points

import httpx
import httpx2
import openai
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce import instrumentors
from sottovoce.call import current_call
from sottovoce.instrumentor import shared_recorder
from sottovoce.privacy import policy
from sottovoce.privacy.propagation import GatedPropagator
from sottovoce.settings import Settings, read

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
}


@pytest.fixture
def bench(no_policy):
    class Bench:
        injected: dict = {}

        def __init__(self):
            self.exporter = InMemorySpanExporter()
            self.tracers = TracerProvider()
            self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
            self.meters = MeterProvider([InMemoryMetricReader()])
            self.applied = []

        def apply(self, *classes, **settings):
            chosen = Settings(key="a key of these tests", **settings)
            policy.activate(chosen)
            for kind in classes:
                instrumentor = kind()
                instrumentor.instrument(
                    tracer_provider=self.tracers, meter_provider=self.meters, settings=chosen
                )
                self.applied.append(instrumentor)

        @property
        def spans(self):
            return self.exporter.get_finished_spans()

        def answer(self, request):
            # What an HTTP instrumentation would put on the wire from here.
            propagate.inject(self.injected)
            return httpx2.Response(200, json=ANSWER)

        def chat(self, base_url):
            http = httpx2.Client(transport=httpx2.MockTransport(self.answer))
            client = openai.OpenAI(api_key="sk-secret", base_url=base_url, http_client=http)
            messages = [{"role": "user", "content": "hello"}]
            return client.chat.completions.create(model="gpt-4o", messages=messages)

    made = Bench()
    made.injected = {}
    yield made
    for instrumentor in made.applied:
        instrumentor.uninstrument()


@pytest.fixture
def propagation():
    """The propagators that an operator asks for with OTEL_PROPAGATORS=tracecontext,baggage."""
    before = propagate.get_global_textmap()
    inner = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    propagate.set_global_textmap(GatedPropagator(inner, policy.Policy(Settings(key="k" * 16))))
    token = context.attach(baggage.set_baggage("user.email", "bob@example.com"))
    yield
    context.detach(token)
    propagate.set_global_textmap(before)


def test_a_model_provider_gets_neither_trace_context_nor_baggage(bench, propagation):
    bench.apply(instrumentors.OpenAIInstrumentor)
    bench.chat("https://api.openai.com/v1")
    assert bench.injected == {}


@pytest.mark.parametrize(
    ("base_url", "settings"),
    [
        ("http://127.0.0.1:1234/v1", {}),
        ("https://llm.example.org/v1", {"own_hosts": ("*.example.org",)}),
        ("https://api.openai.com/v1", {"propagation": "all"}),
    ],
)
def test_own_hosts_get_the_trace_context_of_the_calls_span(bench, propagation, base_url, settings):
    bench.apply(instrumentors.OpenAIInstrumentor, **settings)
    bench.chat(base_url)
    (span,) = bench.spans
    assert f"{span.context.span_id:016x}" in bench.injected["traceparent"]


def test_a_public_model_on_an_own_host_keeps_its_name_and_a_remote_one_does_not(bench):
    bench.apply(instrumentors.OpenAIInstrumentor, own_hosts=("llm.example.org",))
    bench.chat("https://llm.example.org/v1")
    bench.chat("https://api.openai.com/v1")
    own, remote = (span.attributes["gen_ai.request.model"] for span in bench.spans)
    assert own == "gpt-4o"
    assert remote.startswith("h:")


@pytest.mark.parametrize(
    ("endpoint", "base_url", "provider", "model"),
    [
        ("localhost:8000=vllm", "http://localhost:8000/v1", "vllm", "gpt-4o"),
        ("llm.example.org/v1=vllm:local", "https://llm.example.org/v1", "vllm", "gpt-4o"),
        ("llm.example.org/v1=vllm", "https://llm.example.org/v1", "vllm", "h:"),
        ("localhost:4000=litellm:remote", "http://localhost:4000", "litellm", "h:"),
    ],
)
def test_the_operator_says_who_answers_at_an_endpoint(bench, endpoint, base_url, provider, model):
    chosen, warnings = read({"SOTTOVOCE_ENDPOINTS": endpoint})
    assert not warnings
    named = {"own_hosts": chosen.own_hosts, "endpoints": chosen.endpoints}
    bench.apply(instrumentors.OpenAIInstrumentor, **named)
    bench.chat(base_url)
    (span,) = bench.spans
    assert span.attributes["gen_ai.provider.name"] == provider
    assert span.attributes["gen_ai.request.model"].startswith(model)


def test_the_operators_word_counts_before_the_clients_class(bench):
    named = {"endpoints": ("gateway.example.org=litellm",)}
    bench.apply(instrumentors.OpenAIInstrumentor, **named)
    http = httpx2.Client(transport=httpx2.MockTransport(bench.answer))
    client = openai.AzureOpenAI(
        api_key="sk-secret",
        azure_endpoint="https://gateway.example.org",
        api_version="2024-10-21",
        http_client=http,
    )
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    (span,) = bench.spans
    assert span.attributes["gen_ai.provider.name"] == "litellm"


def test_raw_posts_of_both_libraries_are_calls_and_other_requests_are_not(bench):
    bench.apply(instrumentors.HTTPXInstrumentor)
    for library in (httpx, httpx2):
        transport = library.MockTransport(lambda _, lib=library: lib.Response(200, json=ANSWER))
        with library.Client(transport=transport) as client:
            client.post(
                "http://localhost:8080/v1/chat/completions", json={"model": "m", "messages": []}
            )
            client.get("http://localhost:8080/v1/models")
            client.post("http://localhost:8080/search", json={"query": "x"})
    assert [span.attributes["gen_ai.usage.input_tokens"] for span in bench.spans] == [11, 11]


def test_an_sdk_call_is_one_span_with_both_instrumentors(bench):
    bench.apply(instrumentors.HTTPXInstrumentor, instrumentors.OpenAIInstrumentor)
    bench.chat("https://api.openai.com/v1")
    assert len(bench.spans) == 1


def test_a_call_made_in_a_hook_of_another_is_its_child(bench):
    bench.apply(instrumentors.HTTPXInstrumentor, instrumentors.OpenAIInstrumentor)

    def ask(_):
        bench.chat("http://localhost:8080/v1")

    transport = httpx2.MockTransport(bench.answer)
    with httpx2.Client(transport=transport, event_hooks={"response": [ask]}) as client:
        client.post(
            "http://localhost:8080/v1/chat/completions", json={"model": "m", "messages": []}
        )
    inner, outer = bench.spans
    assert inner.parent.span_id == outer.context.span_id
    assert outer.parent is None


def test_calls_that_are_left_in_the_wrong_order_leave_nothing_behind(bench):
    """As under a scheduler of one's own, whose coroutines share a context."""
    bench.apply(instrumentors.HTTPXInstrumentor)

    class Pause:
        def __await__(self):
            yield

    async def pause(_):
        await Pause()

    def finish(coroutine):
        with pytest.raises(StopIteration):
            while True:
                coroutine.send(None)

    client = httpx2.AsyncClient(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=ANSWER)),
        event_hooks={"request": [pause]},
    )
    url = "http://localhost:8080/v1/chat/completions"
    asked = [client.post(url, json={"model": name, "messages": []}) for name in "abc"]
    for coroutine in asked:
        coroutine.send(None)
    for coroutine in asked:
        finish(coroutine)
    assert len(bench.spans) == 3
    assert current_call.get() is None
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_suppressed_instrumentation_is_obeyed(bench):
    bench.apply(instrumentors.HTTPXInstrumentor, instrumentors.OpenAIInstrumentor)
    with suppress_instrumentation():
        bench.chat("https://api.openai.com/v1")
    assert not bench.spans


def test_uninstrument_restores_everything(bench):
    def functions():
        base = sys.modules["openai._base_client"]
        return [
            base.SyncAPIClient.request,
            base.AsyncAPIClient.request,
            *(c.send for m in (httpx, httpx2) for c in (m.Client, m.AsyncClient)),
        ]

    before = functions()
    bench.apply(*instrumentors.ALL)
    changed = [now is not then for now, then in zip(functions(), before, strict=True)]
    assert all(changed)
    while bench.applied:
        bench.applied.pop().uninstrument()
    assert functions() == before
    bench.chat("https://api.openai.com/v1")
    assert not bench.spans


def test_instrumenting_twice_warns_and_doubles_nothing(bench, caplog):
    bench.apply(instrumentors.OpenAIInstrumentor)
    bench.apply(instrumentors.OpenAIInstrumentor)
    bench.applied.pop()
    bench.chat("https://api.openai.com/v1")
    assert len(bench.spans) == 1
    assert "already instrumented" in caplog.text


def test_what_is_applied_together_shares_a_recorder():
    tracers, meters = TracerProvider(), MeterProvider()
    chosen = [Settings(key="a key of these tests") for _ in range(2)]
    first, second = (shared_recorder(tracers, meters, one) for one in chosen)
    assert first is second


def test_every_instrumentor_is_a_public_name_and_an_entry_point():
    import sottovoce

    names = {kind.__name__ for kind in instrumentors.ALL}
    assert {name for name in sottovoce.__all__ if name.endswith("Instrumentor")} == names
    assert all(getattr(sottovoce, name) is getattr(instrumentors, name) for name in names)
    found = entry_points(group="opentelemetry_instrumentor")
    ours = {entry.value for entry in found if entry.name.startswith("sottovoce_")}
    assert ours == {f"sottovoce.instrumentors:{name}" for name in names}
