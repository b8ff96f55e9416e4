"""The policy's table, row by row, against the registry and against what really leaves."""

from fnmatch import fnmatchcase

import pytest
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext

from sottovoce.privacy.gate import gated_meter_provider, gated_tracer_provider
from sottovoce.registry import ATTRIBUTES, rules
from sottovoce.settings import ALLOWED_KINDS

CANARY = "AnnaSmithHasCancer"
DURATION = "gen_ai.client.operation.duration"

# Attributes; what becomes of them in aggregate, strict and standard. A `*` at the end of the
# names stands for more of the same.
TABLE = """
gen_ai.operation.name gen_ai.token.type gen_ai.output.type gen_ai.tool.type | enum | enum | enum
gen_ai.provider.name | enum | enum | enum
gen_ai.system llm.system | drop | drop | drop
gen_ai.request.model gen_ai.response.model | drop | cat12 | cat12
llm.model_name embedding.model_name ai.model.id | drop | drop | drop
gen_ai.usage.*input_tokens gen_ai.usage.*output_tokens llm.*.total* | drop | bucket | keep
gen_ai.response.time_to_first_chunk | drop | bucket | keep
gen_ai.request.temperature gen_ai.request.top_? gen_ai.request.max_tokens | drop | drop | keep
gen_ai.request.*_penalty gen_ai.request.choice.count | drop | drop | keep
gen_ai.request.seed gen_ai.openai.request.seed | drop | drop | drop
gen_ai.request.stop_sequences | drop | count | count
gen_ai.request.stream gen_ai.embeddings.dimension.count | keep | keep | keep
gen_ai.request.encoding_formats gen_ai.response.finish_reasons | enum | enum | enum
gen_ai.response.id openai.response.system_fingerprint gen_ai.tool.call.id | drop | drop | drop
anthropic.request.id aws.request_id | drop | drop | drop
openai.*.service_tier | drop | enum | enum
gen_ai.conversation.id session.id session.previous_id mcp.session.id | drop | drop | hash_rot
user.id enduser.pseudo.id | drop | drop | hash_user
user.email user.name user.full_name user.hash user.roles | drop | drop | drop
enduser.id enduser.role enduser.scope geo.* device.id app.installation.id | drop | drop | drop
client.address network.peer.address net.peer.ip source.address | drop | drop | drop
gen_ai.agent.name gen_ai.tool.name gen_ai.workflow.name | curated | curated | allow12
gen_ai.prompt.name graph.node.name traceloop.entity.name | curated | curated | allow12
gen_ai.agent.id gen_ai.data_source.id | drop | drop | drop
gen_ai.agent.description gen_ai.tool.description gen_ai.tool.definitions | drop | drop | drop
gen_ai.input.messages gen_ai.output.messages gen_ai.system_instructions | drop | drop | drop
gen_ai.tool.call.arguments gen_ai.tool.call.result gen_ai.retrieval.* | drop | drop | drop
gen_ai.evaluation.explanation gen_ai.prompt gen_ai.completion | drop | drop | drop
llm.input_messages input.value output.value langfuse.*put mlflow.span* | drop | drop | drop
request_data response_data ai.prompt* ai.response.* traceloop.entity.*put | drop | drop | drop
exception.type error.type | error | error | error
exception.message exception.stacktrace error.message | drop | drop | drop
http.request.method url.scheme network.protocol.* | enum | enum | enum
http.response.status_code http.request.resend_count | keep | keep | keep
url.full url.path url.query url.fragment http.url http.target http.host | drop | drop | drop
user_agent.original | drop | drop | drop
http.route url.template | drop | drop | route
http.request.header http.response.header rpc.*.metadata | drop | drop | drop
server.address peer.service | drop | host_class | host
net.peer.name | drop | drop | drop
server.port | drop | keep | keep
db.system.name db.operation.name rpc.system.name messaging.system | drop | enum | enum
mcp.method.name jsonrpc.protocol.version | drop | enum | enum
db.query.text db.statement db.*.parameter db.user db.connection_string | drop | drop | drop
db.collection.name messaging.destination.name | drop | drop | allow12
messaging.kafka.message.key | drop | drop | drop
code.* file.* log.file.* process.executable.* process.working_directory | drop | drop | drop
process.command* process.environment_variable | drop | drop | drop
service.version service.namespace deployment.environment.name | keep | keep | keep
service.name | service | service | keep
telemetry.*.name telemetry.*.version | keep | keep | keep
service.instance.id | drop | drop | keep
host.name host.id host.ip host.mac process.owner process.pid | drop | drop | drop
process.user.name container.* os.description device.* | drop | drop | drop
k8s.* cloud.* | drop | drop | opt_in
os.type host.arch | enum | enum | enum
os.version | drop | minor | minor
process.runtime.name process.runtime.version | drop | keep | keep
gen_ai.evaluation.score.value | drop | bucket | keep
gen_ai.evaluation.score.label gen_ai.evaluation.name | drop | enum | enum
"""
ROWS = [
    (pattern, tuple(rule.strip() for rule in told))
    for names, *told in (line.split("|") for line in TABLE.strip().splitlines())
    for pattern in names.split()
]


@pytest.mark.parametrize(("pattern", "row"), ROWS, ids=[pattern for pattern, _ in ROWS])
def test_a_row_of_the_table_is_what_the_registry_says(pattern, row):
    named = [key for key in ATTRIBUTES if fnmatchcase(key, pattern)]
    # What has a variable end is in no table of the package: it cannot leave.
    assert named or row == ("drop", "drop", "drop")
    for key in named:
        found = tuple(rules(profile)[key] for profile in ("aggregate", "strict", "standard"))
        told = tuple("drop" if rule == "seal" else rule for rule in found)
        assert told == row, key


HOSTS = [
    # given, what strict says, whether its port is told
    ("api.openai.com", "api.openai.com", True),
    ("localhost", "localhost", True),
    ("127.0.0.9", "127.0.0.1", True),
    ("acme.openai.azure.com", "openai.azure.com", True),
    ("anna.example.org", "public_other", False),
    ("10.1.2.3", "private", False),
    ("anna-laptop", "private", False),
    ("private", "private", False),
    ("public_other", "public_other", False),
    (f"private-{CANARY}", "private", False),
]


@pytest.mark.parametrize(("given", "shown", "has_port"), HOSTS)
def test_in_strict_a_host_is_named_or_its_class_is_all(make_policy, given, shown, has_port):
    policy = make_policy(profile="strict")
    for signal in ("span", "metric"):
        left = policy.attributes({"server.address": given, "server.port": 4711}, signal)
        assert left == {"server.address": shown, **({"server.port": 4711} if has_port else {})}
    assert policy.attributes({"server.port": 4711}, "span") == {}
    assert policy.attributes({"peer.service": given}, "span") == {"peer.service": shown}


def test_in_strict_the_pseudonym_of_a_host_is_cut_to_its_class(make_policy):
    policy = make_policy(profile="strict")
    ours = policy.address("anna.example.org", local=False)
    assert ours.startswith("public_other-")
    assert policy.attributes({"server.address": ours}, "span") == {"server.address": "public_other"}


def test_in_strict_a_model_of_an_own_host_is_still_local(make_policy):
    policy = make_policy(profile="strict", own_hosts=("llm.example.org",))
    ours = policy.address("llm.example.org", local=True)
    said = {"server.address": ours, "gen_ai.request.model": "llama3.2"}
    left = policy.attributes(said, "span")
    assert left == {"server.address": "public_other", "gen_ai.request.model": "llama3.2"}
    # Another host of the same class is none of ours.
    other = {**said, "server.address": "public_other"}
    assert policy.attributes(other, "span")["gen_ai.request.model"].startswith("h:")


@pytest.mark.parametrize("profile", ["aggregate", "strict"])
def test_the_name_of_a_service_is_the_operators_to_list(make_policy, profile):
    policy = make_policy(profile=profile, allow=("service:shop", "service:team-*"))
    for name, shown in [
        ("shop", "shop"),
        ("team-a", "team-a"),
        ("unknown_service", "unknown_service"),
        ("unknown_service:python", "unknown_service:python"),
        (CANARY, "unknown_service"),
        ("shop ", "unknown_service"),
    ]:
        assert policy.attributes({"service.name": name}, "resource") == {"service.name": shown}
    assert "service" in ALLOWED_KINDS


def test_in_standard_the_name_of_a_service_leaves(make_policy):
    said = {"service.name": "Anna's shop"}
    assert make_policy().attributes(said, "resource") == said


VERSIONS = [
    ("14", "14"),
    ("14.6", "14.6"),
    ("14.6.1", "14.6"),
    ("10.0.19045", "10.0"),
    ("6.8.0-45-generic", "6.8"),
    ("192.168.1.17", None),
    (CANARY, None),
    (f"6.8.0-{CANARY}", None),
    ("6.8.0-45-generic\n", None),
    ("٦.٨", None),
    ("4915112345678", None),
]


@pytest.mark.parametrize(("given", "shown"), VERSIONS)
def test_of_a_systems_version_two_numbers_are_told(make_policy, given, shown):
    wanted = {} if shown is None else {"os.version": shown}
    assert make_policy().attributes({"os.version": given}, "resource") == wanted


def test_keys_of_clusters_leave_where_the_operator_lists_them(make_policy):
    said = {"k8s.namespace.name": "shop", "k8s.pod.name": CANARY, "host.name": CANARY}
    assert make_policy().attributes(said, "resource") == {}
    allow = ("resource:k8s.namespace.name", "resource:host.name")
    left = make_policy(allow=allow).attributes(said, "resource")
    assert left == {"k8s.namespace.name": "shop"}
    assert make_policy(allow=allow, profile="strict").attributes(said, "resource") == {}
    assert make_policy(allow=allow).attributes(said, "span") == {}
    secret = {"k8s.namespace.name": "anna@example.org"}
    assert make_policy(allow=allow).attributes(secret, "resource") == {}


def test_routes_that_the_operator_lists_leave(make_policy):
    policy = make_policy(allow=("route:/patients/today", "route:/shop/*"))
    for path, leaves in [
        ("/patients/today", True),
        ("/shop/cart", True),
        ("/patients/anna", False),
        ("/shop/anna@example.org", False),
    ]:
        wanted = {"http.route": path} if leaves else {}
        assert policy.attributes({"http.route": path}, "span") == wanted


@pytest.fixture
def spans(make_policy):
    def make(**settings):
        policy = make_policy(**settings)
        provider = gated_tracer_provider(policy, shutdown_on_exit=False)
        exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider.get_tracer("fastapi"), exporter

    return make


def test_scopes_of_fastapi_and_starlette_are_known(spans):
    tracer, exporter = spans()
    tracer.start_span("x").end()
    assert exporter.get_finished_spans()[0].instrumentation_scope.name == "fastapi"


START, END, EVENT = 1_795_000_000_123_456_789, 1_795_000_002_987_654_321, 1_795_000_001_555_555_555


@pytest.mark.parametrize(
    ("settings", "rounded"),
    [
        ({"profile": "strict", "coarse_span_times": True}, True),
        ({"profile": "strict"}, False),
        ({"profile": "standard", "coarse_span_times": True}, False),
    ],
)
def test_in_strict_times_of_spans_are_rounded_where_it_is_asked_for(spans, settings, rounded):
    tracer, exporter = spans(**settings)
    span = tracer.start_span("x", start_time=START)
    span.add_event("exception", {}, EVENT)
    span.end(END)
    (left,) = exporter.get_finished_spans()
    found = (left.start_time, left.end_time, left.events[0].timestamp)
    exact = (START, END, EVENT)
    assert found == (tuple(time - time % 10**8 for time in exact) if rounded else exact)
    if settings["profile"] == "strict":
        assert left.attributes["sottovoce.duration.bucket"] == "1_5s"


def test_declared_attributes_of_links_leave(spans):
    tracer, exporter = spans()
    said = {"gen_ai.operation.name": "chat", "gen_ai.prompt": CANARY, CANARY: CANARY}
    link = Link(SpanContext(1, 2, is_remote=True), said)
    tracer.start_span("x", links=[link]).end()
    (left,) = exporter.get_finished_spans()
    assert dict(left.links[0].attributes) == {"gen_ai.operation.name": "chat"}
    assert CANARY not in left.to_json()


@pytest.mark.parametrize(
    ("profile", "left", "counted"),
    [("standard", 1, "drop"), ("strict", 0, "exemplar"), ("aggregate", 0, "exemplar")],
)
def test_what_is_removed_of_exemplars_is_counted(make_policy, profile, left, counted):
    policy = make_policy(profile=profile)
    reader = InMemoryMetricReader()
    provider = gated_meter_provider(
        policy,
        metric_readers=[reader],
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOnExemplarFilter(),
        views=[View(instrument_name="*", attribute_keys={"gen_ai.operation.name"})],
    )
    said = {"gen_ai.operation.name": "chat", "gen_ai.prompt": CANARY}
    provider.get_meter("x").create_histogram(DURATION, "s").record(1, said)
    data = reader.get_metrics_data()
    assert CANARY not in data.to_json()
    metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    (point,) = next(m for m in metrics if m.name == DURATION).data.data_points
    assert len(point.exemplars) == left
    assert policy.dropped["metric", counted] == 1
