"""Over a thousand secrets, replayed through real providers: none leaves, and what may leave does.

The secrets are in `leaks.py`. That its search finds each of them is proved on the same records
without a gate; that the gate does not keep quiet by dropping everything, by the facts that have to arrive.
"""

from collections import Counter

import pytest
from opentelemetry import trace

from privacy import leak_places, leaks
from sottovoce.privacy import buckets

PROFILES = ("off", "aggregate", "strict", "standard", "content")
SENDING = PROFILES[1:]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_secret_leaves_in_any_encoding(profile):
    process = leaks.replay(leaks.policy_of(profile))
    assert leaks.survivors(process.messages()) == []
    for span in process.spans.get_finished_spans():
        assert not any(link.context.trace_state for link in span.links)
    # The spans themselves left: what was planted in them did not.
    made = sum(1 for case in leaks.corpus() if case.place.startswith(("span", "dialect")))
    left = len(process.spans.get_finished_spans())
    assert left >= made if profile in {"strict", "standard", "content"} else left == 0


def test_the_search_finds_every_secret_where_nothing_is_gated():
    missed = []
    for case in leaks.corpus():
        process = leak_places.Process(None)
        leak_places.PLACES[case.place](process, case)
        if case.place not in leak_places.UNSENT and not leaks.survivors(process.messages()):
            missed.append(str(case))
    assert missed == []


def test_the_corpus_is_as_wide_as_it_says():
    corpus = leaks.corpus()
    assert len(corpus) >= 1000
    assert {case.place for case in corpus} == set(leak_places.PLACES)
    encodings = Counter(case.encoding for case in corpus)
    assert min(encodings[each] for each in leaks.ENCODINGS) >= 40
    dialects = {case.key.partition(" ")[0] for case in corpus if case.place == "dialect"}
    # Every dialect whose captured spans hold something that was said.
    assert len(dialects) >= 12


MODEL, ANSWERED = "gpt-4o", "gpt-4o-2024-08-06"
FACTS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": MODEL,
    "gen_ai.response.model": ANSWERED,
    "gen_ai.request.stream": True,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.usage.input_tokens": 1523,
    "gen_ai.usage.output_tokens": 7,
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.response.time_to_first_chunk": 0.25,
    "openai.response.service_tier": "default",
    "server.address": "api.openai.com",
    "server.port": 443,
    "error.type": "429",
    "http.request.method": "POST",
    "http.response.status_code": 429,
    "http.route": "/v1/chat/{id}",
    "url.scheme": "https",
    "db.system.name": "postgresql",
}
ONLY_EXACT = {"gen_ai.request.temperature", "http.route"}
ON_POINTS = (
    "gen_ai.operation.name", "gen_ai.provider.name", "server.address", "server.port", "error.type",
)  # fmt: skip


def facts(policy, profile):
    """`FACTS` as they have to arrive."""
    shown = dict(FACTS)
    for key in ("gen_ai.request.model", "gen_ai.response.model"):
        shown[key] = policy.model(FACTS[key], local=False)
    if profile == "strict":
        for key in ONLY_EXACT:
            del shown[key]
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            shown[key] = buckets.count(FACTS[key])
        key = "gen_ai.response.time_to_first_chunk"
        shown[key] = buckets.seconds(FACTS[key])
        shown["sottovoce.duration.bucket"] = "1_5s"
    return shown


def where(policy):
    """What the resource says."""
    key = {} if policy.profile == "aggregate" else {"sottovoce.key.id": policy.key_id}
    # Not one of the names that the operator lists.
    name = "unknown_service" if policy.profile in {"aggregate", "strict"} else "shop"
    return {"service.name": name, **key}


@pytest.mark.parametrize("profile", ["strict", "standard", "content"])
def test_what_a_span_may_say_arrives(profile):
    policy = leaks.policy_of(profile)
    process = leak_places.Process(policy)
    tracer = process.tracers.get_tracer(
        leak_places.GENAI, "2.4", "https://opentelemetry.io/schemas/1.40.0"
    )
    linked = trace.SpanContext(7, 8, is_remote=True, trace_flags=trace.TraceFlags(1))
    with tracer.start_as_current_span("serve") as parent:
        span = tracer.start_span(
            "said", attributes=FACTS, kind=trace.SpanKind.CLIENT, links=[trace.Link(linked)],
            start_time=1_795_000_000_000_000_000,
        )  # fmt: skip
        span.add_event("exception", {"exception.type": "ValueError"})
        span.set_status(trace.StatusCode.ERROR, "said")
        span.end(1_795_000_001_000_000_000)
    sent, _ = process.spans.get_finished_spans()
    shown = facts(policy, profile)
    assert dict(sent.attributes) == shown
    assert sent.name == f"chat {shown['gen_ai.request.model']}"
    assert sent.kind is trace.SpanKind.CLIENT
    assert sent.status.status_code is trace.StatusCode.ERROR
    assert sent.context.span_id == span.get_span_context().span_id
    assert sent.context.trace_id == sent.parent.trace_id
    assert sent.parent.span_id == parent.get_span_context().span_id
    assert sent.end_time - sent.start_time == 1_000_000_000
    assert [(link.context.trace_id, link.context.span_id) for link in sent.links] == [(7, 8)]
    (event,) = sent.events
    assert (event.name, dict(event.attributes)) == ("exception", {"exception.type": "ValueError"})
    scope = sent.instrumentation_scope
    assert (scope.name, scope.version) == (leak_places.GENAI, "2.4")
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.40.0"
    assert sent.resource.attributes == where(policy)


@pytest.mark.parametrize("profile", ["standard", "content"])
def test_what_a_log_record_may_say_arrives(profile):
    process = leak_places.Process(leaks.policy_of(profile))
    attributes = {"error.type": "429", "http.response.status_code": 429}
    process.log(severity_text="WARN", attributes=attributes, timestamp=1_795_000_000_000_000_000)
    (sent,) = process.logs.get_finished_logs()
    assert sent.log_record.severity_text == "WARN"
    assert sent.log_record.severity_number.name == "WARN"
    assert sent.log_record.timestamp == 1_795_000_000_000_000_000
    assert dict(sent.log_record.attributes) == attributes
    assert sent.instrumentation_scope.name == leak_places.GENAI


@pytest.mark.parametrize("profile", SENDING)
def test_what_a_metric_may_say_arrives(profile):
    policy = leaks.policy_of(profile)
    process = leak_places.Process(policy)
    for _ in range(3):
        process.metric({key: FACTS[key] for key in ON_POINTS})
    (reader,) = process.readers
    (given,) = reader.get_metrics_data().resource_metrics
    assert given.resource.attributes == where(policy)
    (scope,) = given.scope_metrics
    assert scope.scope.name == leak_places.GENAI
    (metric,) = scope.metrics
    assert (metric.name, metric.unit) == (leak_places.DURATION, "s")
    (point,) = metric.data.data_points
    assert point.count == 3
    assert point.sum > 0
    kept = {"gen_ai.operation.name", "gen_ai.provider.name", "error.type"}
    if profile != "aggregate":
        kept |= {"server.address", "server.port"}
    assert {key: point.attributes[key] for key in kept} == {key: FACTS[key] for key in kept}


def test_what_the_operator_let_leave_arrives():
    process = leak_places.Process(leaks.policy_of("standard"))
    process.of({"team": "search"})
    process.span({"gen_ai.operation.name": None}, "checkout", scope=("shop",))
    process.metric(name="orders", scope=("shop",))
    (span,) = process.spans.get_finished_spans()
    assert (span.name, span.instrumentation_scope.name) == ("checkout", "shop")
    assert span.resource.attributes["team"] == "search"
    (given,) = process.readers[-1].get_metrics_data().resource_metrics
    assert [metric.name for metric in given.scope_metrics[0].metrics] == ["orders"]
