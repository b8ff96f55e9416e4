"""Client and server of an mcp 1.x, instrumented; prints the spans, one JSON object a line.

`python mcp_v1_app.py serve` is the server alone, over standard input and output.
"""

import asyncio
import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import guard
from sottovoce.instrumentors import MCPInstrumentor
from sottovoce.settings import Settings

CANARY = "xq-canary-ring-a-bell"
SPANS = InMemorySpanExporter()


def instrument():
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(SPANS))
    MCPInstrumentor().instrument(tracer_provider=tracers, settings=Settings())


def server():
    from mcp.server.fastmcp import FastMCP

    made = FastMCP(CANARY, log_level="CRITICAL")

    @made.tool(name="bash")
    async def echo(text: str) -> str:
        return f"{text} {CANARY}"

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


async def over_pipes():
    from mcp.client.stdio import StdioServerParameters, stdio_client

    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    parameters = StdioServerParameters(command=sys.executable, args=[__file__, "serve"], env=env)
    async with stdio_client(parameters) as streams:
        await use(streams)


async def over_http(port):
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(f"http://127.0.0.1:{port}/mcp") as streams:
        await use(streams)


def main():
    import uvicorn

    instrument()
    asyncio.run(over_pipes())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = server().streamable_http_app()
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        for _ in range(500):
            if running.started:
                break
            time.sleep(0.01)
        asyncio.run(over_http(listener.getsockname()[1]))
        running.should_exit = True
        thread.join(10)
    assert not guard.failures, guard.failures
    for span in SPANS.get_finished_spans():
        print(json.dumps(json.loads(span.to_json())))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        server().run("stdio")
    else:
        main()
