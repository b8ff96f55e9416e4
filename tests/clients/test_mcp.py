"""The Model Context Protocol through the real package: client and server, pipes and HTTP."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import socket
import sys
import threading
import time

import anyio
import hypothesis
import mcp.client.streamable_http
import mcp.shared.jsonrpc_dispatcher
import pytest
import uvicorn
from hypothesis import strategies as st
from mcp import Client, MCPError
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.direct_dispatcher import create_direct_dispatcher_pair
from mcp_types import CreateMessageResult, TextContent
from opentelemetry import propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import sottovoce
from conformance.conformance import violations
from servers.mcp_server import CANARY, make
from sottovoce import guard, steps
from sottovoce.clients import mcp_peers
from sottovoce.instrumentors import MCPInstrumentor
from sottovoce.privacy import policy
from sottovoce.settings import Settings

TESTS = pathlib.Path(__file__).parents[1]


class Recorded:
    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self, kind=None, method=None):
        return [
            span
            for span in self.exporter.get_finished_spans()
            if (kind is None or span.kind is kind)
            and (method is None or span.attributes.get("mcp.method.name") == method)
        ]

    def points(self, name):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@contextlib.contextmanager
def instrumented(**settings):
    policy.activate(Settings(**settings))
    recorded = Recorded()
    instrumentor = MCPInstrumentor()
    instrumentor.instrument(
        tracer_provider=recorded.tracers,
        meter_provider=recorded.meters,
        settings=Settings(**settings),
    )
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    try:
        yield recorded
    finally:
        propagate.set_global_textmap(before)
        instrumentor.uninstrument()
        policy.activate(Settings())
    assert not guard.failures
    assert steps.current_step.get() is None
    data = recorded.reader.get_metrics_data()
    spans = recorded.exporter.get_finished_spans()
    if not settings:
        assert violations(*spans, *([data] if data else [])) == []
    said = "".join(span.to_json() for span in spans) + (data.to_json() if data else "")
    assert CANARY not in said


@pytest.fixture
def recorded():
    with instrumented() as recorded:
        yield recorded


@pytest.fixture(scope="module")
def received():
    return []


@contextlib.contextmanager
def served(app):
    """The port of `app` on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        for _ in range(500):
            if server.started:
                break
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url(received):
    """The server over streamable HTTP."""
    with served(make(received).streamable_http_app()) as port:
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module")
def sse_url():
    """The server over server-sent events, as older clients ask for it."""
    with served(make().sse_app()) as port:
        yield f"http://127.0.0.1:{port}/sse"


def child(*args):
    env = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    return StdioServerParameters(
        command=sys.executable, args=["-m", "servers.mcp_server", *args], env=env
    )


def call(name, arguments, **client):
    async def main():
        async with Client(**client) as session:
            try:
                return await session.call_tool(name, arguments)
            except MCPError as error:
                return error

    return asyncio.run(main())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_tool_call_over_http_is_one_span_on_each_side(recorded, url, mode):
    result = call("bash", {"text": CANARY}, server=url, mode=mode)
    assert result.content[0].text == f"{CANARY} {CANARY}"
    (client,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    (server,) = recorded.spans(SpanKind.SERVER, "tools/call")
    for span in (client, server):
        assert span.name == "tools/call bash"
        assert span.attributes["gen_ai.operation.name"] == "execute_tool"
        assert span.attributes["gen_ai.tool.name"] == "bash"
        assert span.attributes["network.transport"] == "tcp"
        assert span.attributes["sottovoce.call.outcome"] == "completed"
        assert span.attributes["mcp.protocol.version"] in {"2026-07-28", "2025-11-25"}
        assert span.status.status_code is StatusCode.UNSET
    assert client.attributes["server.address"] == "127.0.0.1"
    assert client.attributes["server.port"] == int(url.split(":")[2].split("/")[0])
    assert server.parent.span_id == client.context.span_id
    if mode == "legacy":
        session = client.attributes["mcp.session.id"]
        assert re.fullmatch("[0-9a-f]{16}", session)
        assert server.attributes["mcp.session.id"] == session


def test_the_span_of_http_around_a_request_is_linked(recorded, url):
    app, tracers, around = make().streamable_http_app(), TracerProvider(), []

    async def spanned(scope, receive, send):
        with tracers.get_tracer("http").start_as_current_span("POST") as span:
            around.append(span.get_span_context().span_id)
            await app(scope, receive, send)

    with served(spanned) as port:
        call("bash", {"text": CANARY}, server=f"http://127.0.0.1:{port}/mcp")
    call("bash", {"text": CANARY}, server=url)
    call("bash", {"text": CANARY}, server=make())
    linked, *alone = recorded.spans(SpanKind.SERVER, "tools/call")
    clients = recorded.spans(SpanKind.CLIENT, "tools/call")
    (link,) = linked.links
    assert link.context.span_id in around
    assert link.attributes == {}
    assert len(alone) == 2
    for server, client in zip([linked, *alone], clients, strict=True):
        assert server.parent.span_id == client.context.span_id
    assert [span.links for span in alone] == [(), ()]


def test_each_request_has_its_duration(recorded, url):
    call("bash", {"text": CANARY}, server=url, mode="legacy")
    for side, kind in (("client", SpanKind.CLIENT), ("server", SpanKind.SERVER)):
        points = recorded.points(f"mcp.{side}.operation.duration")
        by_method = {point.attributes["mcp.method.name"]: point for point in points}
        assert {"initialize", "tools/call"} <= set(by_method)
        point = by_method["tools/call"]
        assert point.attributes["gen_ai.tool.name"] == "bash"
        (span,) = recorded.spans(kind, "tools/call")
        assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9)


def test_the_package_s_own_spans_are_replaced(recorded, url):
    trace_of_the_app = recorded.tracers.get_tracer("app")
    with trace_of_the_app.start_as_current_span("work"):
        call("bash", {"text": CANARY}, server=url)
    (span,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    (app,) = [span for span in recorded.spans() if span.name == "work"]
    assert span.parent.span_id == app.context.span_id
    scopes = {s.instrumentation_scope.name for s in recorded.spans()}
    assert scopes == {"sottovoce", "app"}
    recorded.exporter.clear()


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("fails", {"text": CANARY}, "tool_error"),
        ("refuses", {"text": CANARY}, "-32602"),
        ("bash", {CANARY: CANARY}, "tool_error"),
    ],
)
def test_what_goes_wrong_is_said_by_its_code(recorded, url, name, arguments, code):
    result = call(name, arguments, server=url)
    if code == "tool_error":
        assert result.is_error is True
    else:
        assert (result.code, CANARY in result.message) == (int(code), True)
    answered = None if code == "tool_error" else code
    for side, kind in (("client", SpanKind.CLIENT), ("server", SpanKind.SERVER)):
        (span,) = recorded.spans(kind, "tools/call")
        (point,) = [
            point
            for point in recorded.points(f"mcp.{side}.operation.duration")
            if point.attributes["mcp.method.name"] == "tools/call"
        ]
        for attributes in (span.attributes, point.attributes):
            assert attributes["error.type"] == code
            assert attributes.get("rpc.response.status_code") == answered
        assert span.attributes["sottovoce.call.outcome"] == "failed"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert not span.events


def test_an_unknown_tool_is_an_error_whose_name_is_a_pseudonym(recorded, url):
    call(f"no-{CANARY}", {}, server=url)
    for kind in (SpanKind.CLIENT, SpanKind.SERVER):
        (span,) = recorded.spans(kind, "tools/call")
        assert re.fullmatch("tools/call [0-9a-f]{12}", span.name)
        assert span.attributes["error.type"] in {"-32602", "tool_error"}


def test_a_timeout_and_a_cancelled_call(recorded, url):
    async def main():
        async with Client(server=url) as session:
            with pytest.raises(MCPError):
                await session.call_tool("sleeps", {"seconds": 30}, read_timeout_seconds=0.2)
            with anyio.move_on_after(0.2):
                await session.call_tool("sleeps", {"seconds": 30})
            task = asyncio.create_task(session.call_tool("sleeps", {"seconds": 30}))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    timed_out, moved_on, cancelled = recorded.spans(SpanKind.CLIENT, "tools/call")
    assert timed_out.attributes["error.type"] == "-32001"
    for span in (moved_on, cancelled):
        assert span.attributes["sottovoce.call.outcome"] == "cancelled"


def test_calls_at_once_do_not_mix(recorded, url):
    async def main():
        async with Client(server=url) as session:
            names = ["bash", f"tool-{CANARY}"] * 5
            await asyncio.gather(*(session.call_tool(name, {"text": "x"}) for name in names))

    asyncio.run(main())
    clients = recorded.spans(SpanKind.CLIENT, "tools/call")
    servers = recorded.spans(SpanKind.SERVER, "tools/call")
    assert len(clients) == len(servers) == 10
    names = {span.context.span_id: span.name for span in clients}
    assert {span.parent.span_id: span.name for span in servers} == names
    assert all(span.parent is None for span in clients)


def test_other_requests_are_named_by_their_method_alone(recorded, url):
    async def main():
        async with Client(server=url, mode="legacy") as session:
            await session.list_tools()
            await session.read_resource(f"test://{CANARY}")
            await session.get_prompt(f"prompt-{CANARY}", {"text": CANARY})
            await session.session.send_ping()

    asyncio.run(main())
    for kind in (SpanKind.CLIENT, SpanKind.SERVER):
        names = [span.name for span in recorded.spans(kind)]
        assert names[0] == "initialize"
        assert {"tools/list", "resources/read", "ping"} <= set(names)
        (prompt,) = recorded.spans(kind, "prompts/get")
        assert re.fullmatch("prompts/get [0-9a-f]{12}", prompt.name)
        assert "gen_ai.operation.name" not in prompt.attributes


def test_tool_calls_are_children_of_the_agent(recorded, url):
    with sottovoce.agent("clerk"):
        call("bash", {"text": "x"}, server=url)
    (span,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    (agent,) = [span for span in recorded.spans() if span.name.startswith("invoke_agent")]
    assert span.parent.span_id == agent.context.span_id


def test_trace_context_goes_to_this_machine_and_to_no_other(recorded, url, received, monkeypatch):
    received.clear()
    call("bash", {"text": "x"}, server=url)
    (span,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    assert f"{span.context.span_id:016x}" in received[0]["traceparent"]
    received.clear()
    monkeypatch.setattr(mcp_peers.exchange.hosts, "is_local", lambda *_: False)
    mcp_peers.exchange.server.cache_clear()
    try:
        call("bash", {"text": "x"}, server=url)
    finally:
        mcp_peers.exchange.server.cache_clear()
    assert "traceparent" not in received[0]


def test_a_child_process_over_pipes(recorded, tmp_path):
    file = tmp_path / "spans"
    result = call("bash", {"text": CANARY}, server=child(str(file)))
    assert not result.is_error
    (client,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    assert client.name == "tools/call bash"
    assert client.attributes["network.transport"] == "pipe"
    assert "server.address" not in client.attributes
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    (server,) = [span for span in spans if span["name"] == "tools/call bash"]
    assert server["kind"] == "SpanKind.SERVER"
    assert server["attributes"]["network.transport"] == "pipe"
    assert server["parent_id"] == f"0x{client.context.span_id:016x}"
    assert CANARY not in file.read_text()


def test_the_session_of_one_s_own_transport(recorded, tmp_path):
    async def main():
        async with stdio_client(child()) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            return await session.call_tool("fails", {"text": CANARY})

    assert asyncio.run(main()).is_error
    first, tool = recorded.spans(SpanKind.CLIENT)
    assert (first.name, tool.attributes["error.type"]) == ("initialize", "tool_error")
    assert first.attributes["mcp.protocol.version"] == "2025-11-25"


async def sample(*_):
    content = TextContent(type="text", text=CANARY)
    return CreateMessageResult(role="assistant", content=content, model=CANARY)


@contextlib.asynccontextmanager
async def asked_back(url):
    async with (
        sse_client(url) as (read, write),
        ClientSession(read, write, sampling_callback=sample) as session,
    ):
        await session.initialize()
        yield session


@pytest.mark.filterwarnings("ignore:.*deprecated as of 2026-07-28")
def test_what_the_server_asks_back_is_a_request_within_the_other(recorded, sse_url):
    async def main():
        async with asked_back(sse_url) as session:
            assert not (await session.call_tool("asks", {"text": CANARY})).is_error

    asyncio.run(main())
    (tool,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    (server,) = recorded.spans(SpanKind.SERVER, "tools/call")
    (asked,) = recorded.spans(SpanKind.CLIENT, "sampling/createMessage")
    assert tool.attributes["network.transport"] == "tcp"
    assert tool.attributes["server.address"] == "127.0.0.1"
    assert asked.name == "sampling/createMessage"
    assert asked.parent.span_id == server.context.span_id
    assert server.parent.span_id == tool.context.span_id


def test_it_can_be_applied_and_undone_while_a_session_is_open(sse_url):
    async def main():
        async with asked_back(sse_url) as session:
            with instrumented() as recorded:
                await session.call_tool("bash", {"text": CANARY})
                task = asyncio.create_task(session.call_tool("bash", {"text": CANARY}))
                await asyncio.sleep(0)
            assert not (await task).is_error
            assert not (await session.call_tool("bash", {"text": CANARY})).is_error
            return recorded

    recorded = asyncio.run(main())
    assert len(recorded.spans(SpanKind.CLIENT, "tools/call")) == 2


def test_a_child_that_dies_is_an_error_of_the_connection(recorded):
    async def main():
        parameters = StdioServerParameters(command=sys.executable, args=["-c", "pass"])
        async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
            with pytest.raises(MCPError):
                await session.initialize()

    asyncio.run(main())
    (span,) = recorded.spans(SpanKind.CLIENT)
    assert span.attributes["error.type"] == "-32000"


def test_a_server_in_this_process(recorded):
    assert not call("bash", {"text": CANARY}, server=make()).is_error
    (client,) = recorded.spans(SpanKind.CLIENT, "tools/call")
    (server,) = recorded.spans(SpanKind.SERVER, "tools/call")
    assert server.parent.span_id == client.context.span_id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "_meta", "traceparent", "arguments", "isError", "content", CANARY]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    method=st.sampled_from(["tools/call", "prompts/get", "ping", CANARY]), params=JSON, result=JSON
)
def test_whatever_is_asked_and_answered_nothing_of_it_is_said(method, params, result):
    async def main():
        left, right = create_direct_dispatcher_pair()

        async def answer(*_):
            return result

        async with anyio.create_task_group() as tasks:
            await tasks.start(left.run, answer, answer)
            await tasks.start(right.run, answer, answer)
            given = await left.send_raw_request(method, params)
            assert repr(given) == repr(result)
            tasks.cancel_scope.cancel()

    with instrumented() as recorded:
        anyio.run(main)
        (span,) = recorded.spans(SpanKind.CLIENT)
        said = {*span.attributes.values(), span.name}
        assert span.attributes["sottovoce.call.outcome"] in {"completed", "failed"}
        assert "" not in said


def test_arguments_that_are_refused_leave_nothing_current(recorded):
    async def ask():
        client, _ = create_direct_dispatcher_pair()
        before = trace.get_current_span()
        with pytest.raises(TypeError, match="no_such_option"):
            await client.send_raw_request("ping", None, no_such_option=1)
        assert trace.get_current_span() is before
        assert steps.current_step.get() is None

    asyncio.run(ask())
    [span] = recorded.spans()
    assert span.attributes["error.type"] == "TypeError"


def test_an_error_of_ours_is_not_noticed(recorded, url, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError(CANARY)

    for name in ("_sent", "_asked", "_recorder"):
        monkeypatch.setattr(f"sottovoce.clients.mcp._Sides.{name}", guard.never_raise(name)(broken))
    monkeypatch.setattr(mcp_peers, "behind", broken)
    monkeypatch.setattr(mcp_peers, "_at", broken)
    assert not call("bash", {"text": "x"}, server=url).is_error
    guard.failures.clear()


def test_everything_is_put_back(url):
    dispatcher = mcp.shared.jsonrpc_dispatcher
    before = (
        dispatcher.JSONRPCDispatcher.send_raw_request,
        dispatcher.otel_span,
        mcp.client.streamable_http.streamable_http_client,
        stdio_client,
    )
    with instrumented() as recorded:
        assert dispatcher.otel_span is not before[1]
        assert sys.modules["mcp.client.client"].streamable_http_client is not before[2]
    assert not call("bash", {"text": "x"}, server=url).is_error
    assert recorded.spans() == []
    assert before == (
        dispatcher.JSONRPCDispatcher.send_raw_request,
        dispatcher.otel_span,
        mcp.client.streamable_http.streamable_http_client,
        stdio_client,
    )
    assert sys.modules["mcp.client.client"].streamable_http_client is before[2]


@pytest.mark.parametrize("profile", ["strict", "aggregate"])
def test_a_tighter_profile_says_less(url, profile):
    with instrumented(profile=profile) as recorded:
        call(f"tool-{CANARY}", {"text": "x"}, server=url)
        for span in recorded.spans():
            assert span.attributes.get("gen_ai.tool.name", "_OTHER") == "_OTHER"
        points = recorded.points("mcp.client.operation.duration")
        names = {point.attributes.get("gen_ai.tool.name") for point in points}
        assert names == ({"_OTHER", None} if profile == "strict" else {None})


def test_the_trace_of_nobody_is_current_afterwards(recorded, url):
    call("bash", {"text": "x"}, server=url)
    assert not trace.get_current_span().get_span_context().is_valid
