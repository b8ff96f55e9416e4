"""What is put around an ASGI app, as llama_cpp.server's is one: any app, any client, any end.

The server itself, with its real models, runs in tests/e2e/test_llama_server.py.
"""

import asyncio
import contextvars
import types

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from conformance.conformance import violations
from sottovoce import dropped, guard
from sottovoce.record_requests import RequestRecorder
from sottovoce.runtimes import llama_server
from sottovoce.settings import Settings

pytestmark = pytest.mark.usefixtures("no_policy")

CHAT = "/v1/chat/completions"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Boom(Exception):
    """The app's own."""


class Bench:
    """An app of Starlette's that is served as `create_app` of llama_cpp.server makes one."""

    def __init__(self, sampler=None, **settings):
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider(sampler=sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.recorder = RequestRecorder(self.tracers, None, Settings(key="k" * 32, **settings))
        self.hooks, self.patches = guard.ImportHooks(), guard.Patches()
        self.made = 0
        self.within = []
        self.module = types.ModuleType("app")
        self.module.create_app = self.create_app
        llama_server.patch(self.module, self.make, self.hooks, self.patches)
        self.app = self.module.create_app(CHAT)

    def make(self):
        self.made += 1
        return self.recorder

    def create_app(self, path):
        async def answer(request):
            self.within.append(trace.get_current_span().get_span_context())
            how = request.query_params.get("how", "whole")
            if how == "raise":
                raise Boom("a secret")
            if how == "stream":
                return StreamingResponse(self.pieces(), media_type="text/event-stream")
            if how.isdigit():
                return Response(status_code=int(how))
            return JSONResponse({"said": "a secret"})

        return Starlette(routes=[Route(path, answer, methods=["GET", "POST"])])

    async def pieces(self):
        for number in range(3):
            yield f"data: a secret {number}\n\n".encode()

    def ask(self, how="whole", method="POST", path=CHAT, headers=None):
        async def main():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://own") as client:
                return await client.request(
                    method, f"{path}?how={how}&key=secret", headers=headers, content=b"a secret"
                )

        return asyncio.run(main())

    @property
    def span(self):
        [span] = self.spans.get_finished_spans()
        assert not violations(span)
        assert "secret" not in span.to_json()
        return span


@pytest.fixture
def bench():
    return Bench()


def test_a_request_is_a_span_of_the_callers_trace_and_the_parent_of_what_runs_in_it(bench):
    assert bench.ask(headers={"traceparent": CALLER}).json()
    span = bench.span
    assert (span.kind, span.name) == (SpanKind.SERVER, f"POST {CHAT}")
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "sottovoce.call.outcome": "completed",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01" == CALLER
    assert bench.within == [span.context]


def test_the_callers_header_is_found_as_a_server_leaves_it(bench):
    ours = CALLER.encode()
    for headers in (
        [(b"Traceparent", ours)],
        [(b"host", b"own"), (b"traceparent", ours[:-2] + b"00"), (b"TRACEPARENT", ours)],
    ):
        bench.spans.clear()
        asyncio.run(run(bench.app, scope(headers=headers)))
        assert f"{bench.span.parent.trace_id:032x}" in CALLER
    assert bench.span.parent.trace_flags == 1


def test_a_policy_that_is_tightened_says_less_of_later_requests(bench):
    bench.ask()
    assert bench.span.name == f"POST {CHAT}"
    bench.spans.clear()
    bench.recorder._policy.tighten("strict")
    bench.ask()
    assert bench.span.name == "POST"


def test_without_a_caller_it_begins_a_trace(bench):
    bench.ask(headers={"traceparent": "nonsense"})
    assert bench.span.parent is None


def test_of_a_caller_nothing_is_taken_but_its_span(bench, caplog):
    for state in ("vendor=a-secret", "\xe2\x9c\x93=a secret", "a secret"):
        bench.spans.clear()
        said = {"traceparent": CALLER, "tracestate": state.encode(), "baggage": "a secret"}
        bench.ask(headers=said)
        span = bench.span
        assert f"{span.parent.trace_id:032x}" in CALLER
        assert not span.context.trace_state
        assert not bench.within[-1].trace_state
    assert "secret" not in caplog.text


def test_a_stream(bench):
    assert bench.ask("stream").content.count(b"data:") == 3
    assert bench.span.attributes["sottovoce.call.outcome"] == "completed"


@pytest.mark.parametrize(("status", "failed"), [(204, 0), (400, 0), (401, 0), (500, 1), (503, 1)])
def test_only_the_servers_own_failures_are_errors(bench, status, failed):
    assert bench.ask(str(status)).status_code == status
    told = bench.span.attributes
    assert told["http.response.status_code"] == status
    assert told.get("error.type") == (str(status) if failed else None)
    assert (bench.span.status.status_code is StatusCode.ERROR) == bool(failed)


def test_an_exception_is_the_apps(bench):
    with pytest.raises(Boom):
        bench.ask("raise")
    assert bench.span.attributes["error.type"] == "_OTHER"
    assert bench.span.status.status_code is StatusCode.ERROR
    assert bench.span.status.description is None


@pytest.mark.parametrize("path", ["/v1/models", "/extras/tokenize", "/", "/v1/chat/completions/x"])
def test_what_asks_no_model_is_none_of_ours(bench, path):
    assert bench.ask(path=path).status_code == 404
    assert bench.ask(method="GET").status_code == 200
    assert not bench.spans.get_finished_spans()
    assert bench.made == 0


@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.INTERNAL])
def test_where_a_server_span_is_there_already_none_is_added(bench, kind):
    """As OpenTelemetry's instrumentations of ASGI make it, and what is made within it."""
    caller = trace.set_span_in_context(
        trace.NonRecordingSpan(
            trace.SpanContext(
                0x0AF7651916CD43DD8448EB211C80319C,
                1,
                is_remote=True,
                trace_flags=trace.TraceFlags(1),
            )
        )
    )
    tracer = bench.tracers.get_tracer("theirs")
    with tracer.start_as_current_span("theirs", context=caller, kind=kind) as theirs:
        bench.ask(headers={"traceparent": CALLER})
    assert bench.within == [theirs.get_span_context()]
    assert [span.name for span in bench.spans.get_finished_spans()] == ["theirs"]


def test_beneath_a_server_span_that_began_the_trace_none_is_added(bench):
    tracer = bench.tracers.get_tracer("theirs")
    with tracer.start_as_current_span("theirs", kind=SpanKind.SERVER):
        bench.ask()
    assert [span.name for span in bench.spans.get_finished_spans()] == ["theirs"]


@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.INTERNAL])
def test_an_app_that_asks_itself(bench, kind):
    tracer = bench.tracers.get_tracer("theirs")
    with tracer.start_as_current_span("work", kind=kind) as work:
        context = work.get_span_context()
        headers = {}
        if kind is SpanKind.CLIENT:
            headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        bench.ask(headers=headers)
    ours, _ = bench.spans.get_finished_spans()
    assert ours.kind is SpanKind.SERVER
    assert ours.parent.span_id == context.span_id


def test_what_is_not_sampled_is_still_a_parent(no_policy):
    bench = Bench(sampler=ALWAYS_OFF)
    bench.ask()
    assert not bench.spans.get_finished_spans()
    assert bench.within[0].is_valid


def test_in_the_strict_profile_no_route_leaves():
    bench = Bench(profile="strict")
    bench.ask()
    assert bench.span.name == "POST"
    assert "http.route" not in bench.span.attributes


def test_below_the_apps_own_root_path(bench):
    messages = asyncio.run(run(bench.app, scope(path=f"/own{CHAT}", root_path="/own")))
    assert messages[0]["status"] == 200
    assert bench.span.attributes["http.route"] == CHAT


# How it ends.


def scope(**more):
    return {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "query_string": b"",
        "scheme": "http",
        **more,
    }


async def run(app, given, receive=None, send=None):
    messages = []

    async def nothing():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def keep(message):
        messages.append(message)

    await app(given, receive or nothing, send or keep)
    return messages


def served(bench, app):
    """`app` behind what is ours."""
    made = Starlette()
    bench.module.create_app = lambda: made
    llama_server.patch(bench.module, bench.make, bench.hooks, bench.patches)
    bench.module.create_app()
    [middleware] = made.user_middleware
    return middleware.cls(app, *middleware.args, **middleware.kwargs)


def test_messages_are_passed_on_as_they_are(bench):
    sent = [
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]},
        {"type": "http.response.body", "body": b"a secret", "more_body": True},
        {"type": "of another kind"},
        {"type": "http.response.body"},
    ]
    given = scope()

    async def app(scope, receive, send):
        assert scope is given
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        for message in sent:
            await send(message)

    messages = asyncio.run(run(served(bench, app), given))
    assert all(one is other for one, other in zip(messages, sent, strict=True))
    assert bench.span.attributes["sottovoce.call.outcome"] == "completed"


def test_it_ends_with_the_last_byte(bench):
    ended = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x"})
        # What an app does in the background afterwards is not the answer.
        ended.extend(bench.spans.get_finished_spans())

    asyncio.run(run(served(bench, app), scope()))
    assert ended == [bench.span]


def test_a_client_that_left(bench):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    asyncio.run(run(served(bench, app), scope()))
    assert bench.span.attributes["sottovoce.call.outcome"] == "abandoned"
    assert bench.span.status.status_code is StatusCode.UNSET


def test_a_connection_that_breaks(bench):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(_):
        raise OSError("a secret")

    with pytest.raises(OSError, match="a secret"):
        asyncio.run(run(served(bench, app), scope(), send=send))
    told = bench.span.attributes
    assert told["error.type"] == "OSError"
    assert "http.response.status_code" not in told


def test_a_cancelled_request(bench):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(run(served(bench, app), scope()))
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not trace.get_current_span().get_span_context().is_valid

    asyncio.run(main())
    assert bench.span.attributes["sottovoce.call.outcome"] == "cancelled"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_request_that_is_dropped(bench, caplog, elsewhere):
    async def app(scope, receive, send):
        await asyncio.Future()

    coroutine = run(served(bench, app), scope())
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        begun = contextvars.copy_context()
        begun.run(coroutine.send, None)
        # Where garbage is collected, which is anywhere.
        (contextvars.Context() if elsewhere else begun).run(coroutine.close)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert not caplog.records
    assert bench.span.attributes["sottovoce.call.outcome"] == "abandoned"


def test_what_is_open_when_the_process_ends(bench):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        dropped.stop_all()

    asyncio.run(run(served(bench, app), scope()))
    assert bench.span.attributes["sottovoce.call.outcome"] == "abandoned"


# Off, or with something odd.


def test_switched_off_apps_that_were_made_before_pass_everything_on(bench):
    bench.hooks.stop()
    bench.patches.undo()
    assert bench.module.create_app == bench.create_app
    assert bench.ask().json()
    assert not bench.spans.get_finished_spans()
    assert bench.made == 0


def test_while_instrumentation_is_suppressed_nothing_is_recorded(bench, monkeypatch):
    monkeypatch.setattr(bench.recorder, "enabled", lambda: False)
    assert bench.ask().json()
    assert not bench.spans.get_finished_spans()


def test_an_app_that_takes_no_middleware_is_served_without_ours(bench):
    bench.module.create_app = lambda: "no app"
    llama_server.patch(bench.module, bench.make, bench.hooks, bench.patches)
    assert bench.module.create_app() == "no app"
    assert guard.failures.pop("llama_server.app") == 1


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    given_scope=st.fixed_dictionaries(
        {"type": st.just("http") | JSON_LIKE},
        optional={
            "method": st.just("POST") | JSON_LIKE,
            "path": st.sampled_from(sorted(llama_server.ROUTES)) | JSON_LIKE,
            "root_path": JSON_LIKE,
            "scheme": JSON_LIKE,
            "headers": JSON_LIKE,
        },
    ),
    messages=st.lists(
        st.dictionaries(st.sampled_from(["type", "status", "more_body", "body"]), JSON_LIKE)
        | st.fixed_dictionaries(
            {"type": st.sampled_from(["http.response.start", "http.response.body"])},
            optional={"status": JSON_LIKE, "more_body": JSON_LIKE},
        ),
        max_size=4,
    ),
)
def test_whatever_a_server_and_an_app_say_to_one_another(given_scope, messages):
    bench = Bench()

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    assert asyncio.run(run(served(bench, app), given_scope)) == messages
    for place in ("llama_server.open", "record_requests.opened", "asgi.sent"):
        guard.failures.pop(place, None)
    assert not guard.failures
    for span in bench.spans.get_finished_spans():
        told = dict(span.attributes)
        assert told.pop("http.route") in llama_server.ROUTES
        assert told.pop("url.scheme") in {"http", "https"}
        assert type(told.pop("http.response.status_code", 200)) is int
        assert told.pop("error.type", "500").isdigit()
        told.pop("sottovoce.call.outcome")
        assert told == {"http.request.method": "POST"}
