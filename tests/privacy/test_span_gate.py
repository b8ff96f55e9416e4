import threading

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState

from sottovoce.privacy.gate import gated_tracer_provider
from sottovoce.privacy.pseudonyms import Pseudonyms

CANARY = "canary"


@pytest.fixture
def gated(make_policy):
    """Builds a gated provider: (provider, exporter, policy)."""

    def make(policy=None, **options):
        policy = policy or make_policy()
        options.setdefault("resource", Resource({"service.name": "app"}))
        provider = gated_tracer_provider(policy, shutdown_on_exit=False, **options)
        exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider, exporter, policy

    return make


def only(exporter):
    (span,) = exporter.get_finished_spans()
    return span


NAMES = [
    # name given, attributes, name that leaves
    ("x", {"gen_ai.operation.name": "chat"}, "chat"),
    ("x", {"gen_ai.operation.name": CANARY}, "_OTHER"),
    (
        "chat llama3.2",
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "llama3.2",
            "gen_ai.provider.name": "mlx",
        },
        "chat llama3.2",
    ),
    (
        f"execute_tool {CANARY}",
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "bash"},
        "execute_tool bash",
    ),
    (
        f"tools/call {CANARY}",
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "bash",
            "mcp.method.name": "tools/call",
        },
        "tools/call bash",
    ),
    ("x", {"mcp.method.name": "ping", "gen_ai.tool.name": "bash"}, "ping"),
    (
        CANARY,
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "_OTHER"},
        "execute_tool",
    ),
    (CANARY, {"gen_ai.operation.name": "execute_tool", "mcp.method.name": CANARY}, "execute_tool"),
    (CANARY, {"gen_ai.operation.name": "invoke_agent"}, "invoke_agent"),
    (f"GET /{CANARY}", {"http.request.method": "GET"}, "GET"),
    (f"{CANARY} /", {"http.request.method": CANARY}, "HTTP"),
    ("GET", {"http.request.method": "GET", "http.route": "/items/{id}"}, "GET /items/{id}"),
    ("GET", {"http.request.method": "GET", "url.template": "/items/{id}"}, "GET /items/{id}"),
    (f"SELECT {CANARY}", {"db.operation.name": "SELECT"}, "SELECT"),
    (CANARY, {}, "_OTHER"),
    ("mine", {}, "mine"),
    ("mine too", {}, "mine too"),
    ("mine too", {"http.request.method": "GET"}, "mine too"),
    ("mine too", {"gen_ai.operation.name": "chat"}, "chat"),
    ("mine\n", {}, "_OTHER"),
    ("mine " + "x" * 128, {}, "_OTHER"),
]


@pytest.mark.parametrize(("given", "attributes", "leaves"), NAMES)
def test_a_span_is_named_by_template_or_by_the_allow_list(
    gated, make_policy, given, attributes, leaves
):
    provider, exporter, _ = gated(make_policy(allow=("span:mine", "span:mine *")))
    provider.get_tracer("x").start_span(given, attributes=attributes).end()
    assert only(exporter).name == leaves


def test_the_name_holds_the_pseudonym_and_not_the_model(gated):
    provider, exporter, policy = gated()
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": f"ft:gpt-4o:{CANARY}"}
    provider.get_tracer("x").start_span(f"chat ft:gpt-4o:{CANARY}", attributes=attributes).end()
    shown = policy.model(f"ft:gpt-4o:{CANARY}", local=False)
    assert only(exporter).name == f"chat {shown}"
    assert only(exporter).attributes["gen_ai.request.model"] == shown


def test_structure_is_kept_and_what_was_said_is_not(gated):
    provider, exporter, policy = gated()
    state = TraceState([("vendor", CANARY)])
    parent = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    linked = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    tracer = provider.get_tracer(CANARY, CANARY, f"https://{CANARY}", {"a": CANARY})
    span = tracer.start_span(
        "chat",
        trace.set_span_in_context(trace.NonRecordingSpan(parent)),
        trace.SpanKind.CLIENT,
        {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 3, CANARY: 1},
        [Link(linked, {"a": CANARY})],
        start_time=1_000,
    )
    span.add_event(
        "exception", {"exception.type": "ValueError", "exception.message": CANARY}, 1_500
    )
    span.add_event(CANARY, {"a": 1})
    span.set_status(Status(StatusCode.ERROR, CANARY))
    span.end(2_000)
    clean = only(exporter)
    assert clean.context.trace_id == 7 and clean.context.trace_flags == span.context.trace_flags
    assert clean.context.span_id == span.context.span_id
    assert clean.parent.span_id == 8 and clean.parent.is_remote
    assert not clean.context.trace_state and not clean.parent.trace_state
    assert (clean.kind, clean.start_time, clean.end_time) == (trace.SpanKind.CLIENT, 1_000, 2_000)
    assert clean.status.status_code is StatusCode.ERROR and clean.status.description is None
    assert dict(clean.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 3,
    }
    ((event),) = clean.events
    assert (event.name, event.timestamp, dict(event.attributes)) == (
        "exception",
        1_500,
        {"exception.type": "ValueError"},
    )
    ((link),) = clean.links
    assert (link.context.trace_id, link.context.span_id) == (5, 6)
    assert not link.attributes and not link.context.trace_state
    scope = clean.instrumentation_scope
    assert (scope.name, scope.version, scope.schema_url) == ("_OTHER", None, "")
    assert not scope.attributes
    assert (clean.dropped_attributes, clean.dropped_events, clean.dropped_links) == (0, 0, 0)
    assert CANARY not in clean.to_json()
    assert policy.dropped == {
        ("span", "unknown"): 1,
        ("span", "trace_state"): 3,
        ("span", "status_description"): 1,
        ("event", "unknown"): 1,
        ("event", "drop"): 1,
        ("link", "unknown"): 1,
        ("scope", "unknown"): 1,
        ("scope", "drop"): 1,
    }


def test_a_known_scope_keeps_its_name_and_version(gated, make_policy):
    provider, exporter, _ = gated(make_policy(allow=("scope:acme.*",)))
    schema = "https://opentelemetry.io/schemas/1.41.0"
    provider.get_tracer("sottovoce", "1.0", schema).start_span("x").end()
    provider.get_tracer("acme.app", "2 beta").start_span("x").end()
    ours, theirs = (span.instrumentation_scope for span in exporter.get_finished_spans())
    assert (ours.name, ours.version, ours.schema_url) == ("sottovoce", "1.0", schema)
    assert (theirs.name, theirs.version) == ("acme.app", None)


def test_the_version_of_a_scope_is_no_address(gated):
    provider, exporter, _ = gated()
    provider.get_tracer("sottovoce", "10.1.2.3").start_span("x").end()
    scope = only(exporter).instrumentation_scope
    assert (scope.name, scope.version) == ("sottovoce", None)


KEY_ID = Pseudonyms(b"a secret of the tests").key_id


def test_the_resource_is_cleaned(gated):
    resource = Resource(
        {"service.name": "app", "host.name": CANARY, "user.email": CANARY}, f"https://{CANARY}"
    )
    provider, exporter, _ = gated(resource=resource)
    provider.get_tracer("x").start_span("x").end()
    attributes = dict(only(exporter).resource.attributes)
    # Which secret pseudonyms are made with: the gate says so itself.
    assert attributes == {"service.name": "app", "sottovoce.key.id": KEY_ID}
    assert only(exporter).resource.schema_url == ""


def test_nobody_else_says_which_secret_pseudonyms_are_made_with(gated, make_policy):
    claimed = Resource({"service.name": "app", "sottovoce.key.id": "deadbeef"})
    provider, exporter, _ = gated(resource=claimed)
    provider.get_tracer("x").start_span("x").end()
    assert only(exporter).resource.attributes["sottovoce.key.id"] == KEY_ID
    assert make_policy(key="another secret of the tests").key_id != KEY_ID


class Recording(SpanProcessor):
    def __init__(self):
        self.started, self.ended = [], []

    def on_start(self, span, parent_context=None):
        self.started.append(span)

    def on_end(self, span):
        self.ended.append(span)


def test_at_start_a_processor_writes_through_and_reads_nothing_raw(gated):
    class FromBaggage(SpanProcessor):
        def on_start(self, span, parent_context=None):
            for key, value in baggage.get_all(parent_context).items():
                span.set_attribute(key, value)
            span.set_attributes({"gen_ai.usage.output_tokens": 5})

    class Reading(Recording):
        def on_start(self, span, parent_context=None):
            super().on_start(span)
            self.seen = (span.name, dict(span.attributes), span.resource.to_json(), repr(span))
            self.ids = span.get_span_context().span_id
            self.open = span.is_recording()
            span.update_name(CANARY)
            span.add_event(CANARY)
            span.add_link(SpanContext(1, 2, is_remote=False))
            span.set_status(StatusCode.ERROR, CANARY)
            span.record_exception(ValueError(CANARY))

    provider, exporter, policy = gated(resource=Resource({"host.name": CANARY}))
    reading = Reading()
    provider.add_span_processor(FromBaggage())
    provider.add_span_processor(reading)
    carried = baggage.set_baggage(CANARY, CANARY, baggage.set_baggage("error.type", "500"))
    span = provider.get_tracer("x").start_span(CANARY, carried, attributes={"a": CANARY})
    before = dict(policy.dropped)
    assert not isinstance(reading.started[0], type(span))
    assert reading.seen[:2] == ("_OTHER", {"error.type": "500", "gen_ai.usage.output_tokens": 5})
    assert CANARY not in str(reading.seen)
    assert reading.ids == span.context.span_id and reading.open
    assert before == {}, "a look is not a drop"
    span.end()
    assert not reading.started[0].is_recording()
    clean = only(exporter)
    assert dict(clean.attributes) == {"error.type": "500", "gen_ai.usage.output_tokens": 5}
    assert clean.status.status_code is StatusCode.ERROR and len(clean.links) == 1
    assert CANARY not in clean.to_json()


def test_at_start_a_processor_has_the_context_and_what_it_copies_is_judged(gated):
    class Copying(SpanProcessor):
        def on_start(self, span, parent_context=None):
            self.given = parent_context
            for key, value in baggage.get_all(parent_context).items():
                span.set_attribute(key, value)
            parent = trace.get_current_span(parent_context)
            for key, value in parent.attributes.items():
                span.set_attribute(f"parent.{key}", value)
                span.set_attribute(key, value)

    provider, exporter, _ = gated()
    copying = Copying()
    parent = provider.get_tracer("x").start_span(CANARY, attributes={"a": CANARY})
    parent.set_attribute("http.response.status_code", 500)
    provider.add_span_processor(copying)
    carried = baggage.set_baggage("user.email", CANARY, trace.set_span_in_context(parent))
    carried = baggage.set_baggage(CANARY, CANARY, carried)
    carried = baggage.set_baggage("gen_ai.agent.name", CANARY, carried)
    provider.get_tracer("x").start_span("x", carried).end()
    assert copying.given is carried
    left = only(exporter)
    assert set(left.attributes) == {"gen_ai.agent.name", "http.response.status_code"}
    assert CANARY not in left.to_json()


def test_while_ending_a_processor_sees_a_facade_too(gated):
    class Ending(SpanProcessor):
        def _on_ending(self, span):
            self.seen = span.name, span.start_time

    provider, _, _ = gated()
    ending = Ending()
    provider.add_span_processor(ending)
    provider.get_tracer("x").start_span(CANARY, start_time=5).end()
    assert ending.seen == ("_OTHER", 5)


def test_a_facade_can_end_its_span(gated):
    class Ender(SpanProcessor):
        def on_start(self, span, parent_context=None):
            span.end()

    provider, exporter, _ = gated()
    provider.add_span_processor(Ender())
    assert not provider.get_tracer("x").start_span("x").is_recording()
    assert len(exporter.get_finished_spans()) == 1


def test_a_processors_error_reaches_neither_the_app_nor_the_next_processor(gated, failures):
    class Broken(SpanProcessor):
        def _fail(self, *_, **__):
            raise RuntimeError(CANARY)

        on_start = _on_ending = on_end = shutdown = force_flush = _fail

    provider, _, _ = gated()
    after = Recording()
    provider._active_span_processor._span_processors = ()
    provider.add_span_processor(Broken())
    provider.add_span_processor(after)
    provider.get_tracer("x").start_span("x").end()
    assert len(after.started) == len(after.ended) == 1
    assert provider.force_flush() is False
    provider.shutdown()
    assert {place.rpartition(" ")[2] for place in failures} == {
        "on_start",
        "_on_ending",
        "on_end",
        "force_flush",
        "shutdown",
    }


def test_a_span_that_cannot_be_cleaned_does_not_leave(gated, monkeypatch):
    provider, exporter, policy = gated()

    def broken(*_):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(policy, "allows", broken)
    provider.get_tracer("x").start_span("x").end()
    assert exporter.get_finished_spans() == ()
    assert policy.dropped == {("span", "gate_error"): 1}


def test_with_the_profile_off_no_span_leaves(gated, make_policy):
    provider, exporter, policy = gated(make_policy(profile="off"))
    provider.get_tracer("x").start_span("x").end()
    assert exporter.get_finished_spans() == ()
    assert policy.dropped == {("span", "off"): 1}


def test_spans_of_many_threads_all_leave_clean(gated):
    provider, exporter, _ = gated()
    tracer = provider.get_tracer("sottovoce")

    def work(number):
        for _ in range(50):
            with tracer.start_as_current_span(CANARY, context.Context()) as span:
                span.set_attributes({"gen_ai.operation.name": "chat", "n": f"{CANARY}{number}"})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = exporter.get_finished_spans()
    assert len(spans) == 200
    assert {(span.name, tuple(span.attributes)) for span in spans} == {
        ("chat", ("gen_ai.operation.name",))
    }
