"""A server of the Model Context Protocol, to be mounted or as a process.

`python -m servers.mcp_server [FILE]` serves over standard input and output; with FILE it is
instrumented and writes its spans there at its end, one JSON object a line.
"""

import json
import pathlib
import sys

import anyio
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp_types import INVALID_PARAMS, SamplingMessage, TextContent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.instrumentors import MCPInstrumentor
from sottovoce.settings import Settings

CANARY = "xq-canary-ring-a-bell"


def make(received=None):
    """Make the server; `received` gets the names of what each call brought in `_meta`."""
    server = MCPServer(CANARY)

    @server.tool(name="bash")
    async def echo(text: str, ctx: Context) -> str:
        if received is not None:
            received.append(dict(ctx.request_context.meta or {}))
        return f"{text} {CANARY}"

    @server.tool(name=f"tool-{CANARY}")
    def named(text: str) -> str:
        return text

    @server.tool(name="fails")
    def fails(text: str) -> str:
        raise ValueError(f"{text} {CANARY}")

    @server.tool(name="refuses")
    def refuses(text: str) -> str:
        raise MCPError(code=INVALID_PARAMS, message=f"{text} {CANARY}")

    @server.tool(name="sleeps")
    async def sleeps(seconds: float) -> str:
        await anyio.sleep(seconds)
        return CANARY

    @server.tool(name="asks")
    async def asks(text: str, ctx: Context) -> str:
        message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
        answer = await ctx.session.create_message(messages=[message], max_tokens=5)
        return answer.model

    @server.resource(f"test://{CANARY}")
    def resource() -> str:
        return CANARY

    @server.prompt(name=f"prompt-{CANARY}")
    def prompt(text: str) -> list[UserMessage]:
        return [UserMessage(text)]

    return server


def main(file=None):
    spans = InMemorySpanExporter()
    if file:
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        MCPInstrumentor().instrument(tracer_provider=tracers, settings=Settings())
    make().run("stdio")
    if file:
        lines = [json.dumps(json.loads(span.to_json())) for span in spans.get_finished_spans()]
        pathlib.Path(file).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
