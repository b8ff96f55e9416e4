"""aiobotocore's Bedrock client: each of its calls is one span, whatever comes of it.

It is made for one botocore, and lives with that in a folder of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
APP = """
import asyncio, json, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import bedrock
from sottovoce import guard
from sottovoce.instrumentors import ALL
from sottovoce.settings import Settings

exporter, tracers = InMemorySpanExporter(), TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
settings = Settings(key="a key of these tests")
if sys.argv[1] == "on":
    for kind in ALL:
        kind().instrument(
            tracer_provider=tracers, meter_provider=MeterProvider(), settings=settings
        )

from aiobotocore.session import get_session

ASKED = {"modelId": bedrock.CLAUDE, "messages": bedrock.QUESTION}
MODEL, (BODY, *_) = next(iter(bedrock.FAMILIES.items()))
INVOKED = {"modelId": MODEL, "body": json.dumps(BODY)}

async def read(stream):
    return [sorted(event) async for event in stream]

async def whole(client, server):
    return (await client.converse(**ASKED))["output"]

async def stream(client, server):
    return await read((await client.converse_stream(**ASKED))["stream"])

async def invoked(client, server):
    return (await (await client.invoke_model(**INVOKED))["body"].read()).decode()

async def invoked_stream(client, server):
    return await read((await client.invoke_model_with_response_stream(**INVOKED))["body"])

async def left(client, server):
    server.play("slow")
    answer = (await client.converse_stream(**ASKED))["stream"]
    async for event in answer:
        server.gate.clear()
        break
    answer.close()
    server.gate.set()
    return sorted(event)

async def cancelled(client, server):
    server.play("slow")
    reading = asyncio.Event()

    async def go():
        async for _ in (await client.converse_stream(**ASKED))["stream"]:
            server.gate.clear()
            reading.set()

    task = asyncio.create_task(go())
    await reading.wait()
    task.cancel()
    try:
        await task
    finally:
        server.gate.set()

async def refused(client, server):
    server.play("400")
    await client.converse(**ASKED)

async def main(server):
    given = {"region_name": "us-east-1", "endpoint_url": server.url}
    keys = {"aws_access_key_id": "a key", "aws_secret_access_key": "a secret"}
    seen = []
    async with get_session().create_client("bedrock-runtime", **given, **keys) as client:
        for ask in whole, stream, invoked, invoked_stream, left, cancelled, refused:
            try:
                seen.append(await ask(client, server))
            except BaseException as error:
                seen.append([type(error).__name__, str(error)])
    return seen

with bedrock.serve() as server:
    print(json.dumps(asyncio.run(main(server))))
assert not guard.failures
told = ("sottovoce.call.outcome", "gen_ai.usage.input_tokens", "error.type")
print(json.dumps([[span.attributes.get(key) for key in told] for span in exporter.get_finished_spans()]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aiobotocore") / "site"
    uv = Path(sys.executable).with_name("uv")
    pins = ROOT / "requirements" / "aiobotocore.txt"
    pinned = ("--require-hashes", "--no-deps", "-r", pins)
    install = [uv, "pip", "install", "-q", "--python", sys.executable, "--target", folder, *pinned]
    # From uv's cache, when everything is there: without a look at any index.
    if subprocess.run([*install, "--offline"], capture_output=True).returncode:
        subprocess.run(install, check=True)
    return folder


def run(site, how):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, "-c", APP, how], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return map(json.loads, done.stdout.splitlines())


def test_every_call_is_one_span_and_the_app_sees_no_difference(site):
    without, nothing = run(site, "off")
    seen, spans = run(site, "on")
    assert seen == without
    assert nothing == []
    assert spans == [
        *[["completed", 16, None]] * 4,
        ["abandoned", None, None],
        ["cancelled", None, "asyncio.exceptions.CancelledError"],
        ["failed", None, "ValidationException"],
    ]
