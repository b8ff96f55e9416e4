"""Client and server of an mcp 1.x, instrumented; prints what it saw, as one JSON object.

``spans`` of this process, those of the ``child`` that was asked over pipes, and what a tool found
in ``meta``, by how it was asked. `python mcp_v1_app.py FILE` is the child: the server alone, over
standard input and output; its spans go to FILE.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import guard
from sottovoce.clients import mcp_peers
from sottovoce.instrumentors import MCPInstrumentor
from sottovoce.settings import Settings

CANARY = "xq-canary-ring-a-bell"
SPANS = InMemorySpanExporter()


class Lines(SpanExporter):
    """Writes each span at once: a child may be killed when its client has done."""

    def __init__(self, file):
        self.file = file

    def export(self, spans):
        with self.file.open("a") as lines:
            lines.writelines(json.dumps(json.loads(span.to_json())) + "\n" for span in spans)


def instrument(exporter=SPANS):
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    MCPInstrumentor().instrument(tracer_provider=tracers, settings=Settings())


def spans():
    return [json.loads(span.to_json()) for span in SPANS.get_finished_spans()]


def server():
    from mcp.server.fastmcp import Context, FastMCP

    made = FastMCP(CANARY, log_level="CRITICAL")

    @made.tool(name="bash")
    async def echo(text: str) -> str:
        return f"{text} {CANARY}"

    @made.tool(name="read")
    async def found(ctx: Context) -> str:
        meta = ctx.request_context.meta
        return json.dumps(meta and meta.model_dump(by_alias=True, exclude_none=True))

    @made.tool(name=f"fails-{CANARY}")
    def fails(text: str) -> str:
        raise ValueError(f"{text} {CANARY}")

    @made.tool(name="sleeps")
    async def sleeps(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return CANARY

    return made


async def use(streams):
    from mcp import ClientSession, McpError

    async with ClientSession(*streams[:2]) as session:
        await session.initialize()
        result = await session.call_tool("bash", {"text": CANARY})
        assert result.content[0].text == f"{CANARY} {CANARY}"
        assert (await session.call_tool(f"fails-{CANARY}", {"text": CANARY})).isError
        try:
            await session.get_prompt(CANARY)
        except McpError as error:
            assert error.error.code == 0
        try:
            await session.call_tool(
                "sleeps", {"seconds": 1}, read_timeout_seconds=timedelta(seconds=0.1)
            )
        except McpError as error:
            assert error.error.code == 408
        task = asyncio.create_task(session.call_tool("sleeps", {"seconds": 1}))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])


async def ask(session, meta=None, **options):
    """What the server's tool finds in `_meta`; what was asked with stays as it is."""
    from mcp import types

    params = types.CallToolRequestParams(name="read", arguments={}, _meta=meta)
    request = types.ClientRequest(types.CallToolRequest(method="tools/call", params=params))
    before = request.model_dump()
    token = context.attach(baggage.set_baggage("said", CANARY))
    result = await session.send_request(request, types.CallToolResult, **options)
    context.detach(token)
    assert request.model_dump() == before
    return json.loads(result.content[0].text)


async def ask_otherwise(session):
    """The same by a request of the app's own class, whose parameters are a mapping."""
    from mcp import types

    params = {"name": "read", "arguments": {}, "_meta": {"of/app": 7}}
    request = types.Request[dict, str](method="tools/call", params=params)
    result = await session.send_request(request=request, result_type=types.CallToolResult)
    assert params["_meta"] == {"of/app": 7}
    return json.loads(result.content[0].text)


async def progressed(*_):
    pass


async def read(streams):
    from mcp import ClientSession

    async with ClientSession(*streams[:2]) as session:
        await session.initialize()
        await session.send_ping()
        found = {
            "plain": await ask(session),
            "kept": await ask(session, {"of/app": 7, "progressToken": "p"}),
            "theirs": await ask(session, {"traceparent": "of the app"}),
            "mapping": await ask_otherwise(session),
            "progress": await ask(session, progress_callback=progressed),
        }
        # Once this is answered, the span of what was asked before has ended.
        await session.send_ping()
        return found


async def over_pipes(file, work):
    from mcp.client.stdio import StdioServerParameters, stdio_client

    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    parameters = StdioServerParameters(command=sys.executable, args=[__file__, str(file)], env=env)
    async with stdio_client(parameters) as streams:
        await work(streams)


def over_http(work):
    """Ask a server of its own, which in some versions does not outlive its first client."""
    import uvicorn
    from mcp.client.streamable_http import streamablehttp_client

    async def ask_at(port):
        async with streamablehttp_client(f"http://127.0.0.1:{port}/mcp") as streams:
            return await work(streams)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = server().streamable_http_app()
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            for _ in range(2000):
                if running.started:
                    break
                time.sleep(0.01)
            return asyncio.run(ask_at(listener.getsockname()[1]))
        finally:
            running.should_exit = True
            thread.join(20)


async def in_memory():
    from mcp.shared.memory import create_connected_server_and_client_session

    # The low-level server, which is what 1.9 wants here.
    async with create_connected_server_and_client_session(server()._mcp_server) as session:
        return {"here": await ask(session)}


def elsewhere():
    """The same of a server as if it were somebody else's."""
    mcp_peers.exchange.server.cache_clear()
    with mock.patch.object(mcp_peers.exchange.hosts, "is_local", lambda *_: False):
        found = over_http(read)
    mcp_peers.exchange.server.cache_clear()
    return {f"foreign {name}": meta for name, meta in found.items()}


def main(folder):
    instrument()
    asyncio.run(over_pipes(folder / "child", read))
    meta = over_http(read) | elsewhere() | asyncio.run(in_memory())
    before = len(spans())
    asyncio.run(over_pipes(folder / "other", use))
    over_http(use)
    assert not guard.failures, guard.failures
    child = [json.loads(line) for line in (folder / "child").read_text().splitlines()]
    print(
        json.dumps(
            {"read": spans()[:before], "spans": spans()[before:], "child": child, "meta": meta}
        )
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        instrument(Lines(Path(sys.argv[1])))
        server().run("stdio")
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
