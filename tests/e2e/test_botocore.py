"""The instrumentation of every AWS service beside ours: its spans stay, the model's are ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
APP = """
import json, sys
import boto3
from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import bedrock
from sottovoce import BedrockInstrumentor, guard, settings

order, rivals = sys.argv[1:]
exporter, tracers, meters = InMemorySpanExporter(), TracerProvider(), MeterProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
logged, loggers = InMemoryLogRecordExporter(), LoggerProvider()
loggers.add_log_record_processor(SimpleLogRecordProcessor(logged))
chosen, _ = settings.read({"SOTTOVOCE_KEY": "a key of these tests, 32 bytes..", "SOTTOVOCE_RIVALS": rivals})
both = [BotocoreInstrumentor(), BedrockInstrumentor()]
for each in both if order == "after" else reversed(both):
    each.instrument(
        tracer_provider=tracers, meter_provider=meters, logger_provider=loggers, settings=chosen
    )

def make(service):
    session = boto3.Session("a key", "a secret", region_name="us-east-1")
    return session.client(service, endpoint_url=server.url)

def quoted():
    said = [span.to_json() for span in exporter.get_finished_spans()]
    said += [str(each.log_record.body) for each in logged.get_finished_logs()]
    return bedrock.QUESTION[0]["content"][0]["text"] in "".join(said)

def ask():
    client = make("bedrock-runtime")
    client.converse(modelId=bedrock.CLAUDE, messages=bedrock.QUESTION)
    list(client.converse_stream(modelId=bedrock.CLAUDE, messages=bedrock.QUESTION)["stream"])

with bedrock.serve() as server:
    ask()
    first = quoted()
    both[1].uninstrument()
    ask()
print(json.dumps([first, quoted()]))
print(json.dumps([
    [span.instrumentation_scope.name, span.name.split(" ")[0], "gen_ai.operation.name" in span.attributes]
    for span in exporter.get_finished_spans()
]))
assert not guard.failures
"""
THEIRS = "opentelemetry.instrumentation.botocore.bedrock-runtime"


@pytest.fixture(scope="module", params=["botocore", "botocore-oldest"])
def site(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "site"
    uv = Path(sys.executable).with_name("uv")
    pins = ROOT / "requirements" / f"{request.param}.txt"
    pinned = ("--require-hashes", "--no-deps", "-r", pins)
    install = [uv, "pip", "install", "-q", "--python", sys.executable, "--target", folder, *pinned]
    # From uv's cache, when everything is there: without a look at any index.
    if subprocess.run([*install, "--offline"], capture_output=True).returncode:
        subprocess.run(install, check=True)
    return folder


def spans(site, *args):
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "tests")]),
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", APP, *args], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    quotes, found = map(json.loads, done.stdout.splitlines())
    with_ours = sorted(map(tuple, found[:4]))
    # Where ours is gone, theirs records the model's calls again, with what was said.
    assert quotes == [args[1] == "run", True]
    assert sorted(map(tuple, found[4:])) == [(THEIRS, "chat", True)] * 2
    return with_ours


@pytest.mark.parametrize("order", ["before", "after"])
def test_its_span_of_a_models_call_is_plain(site, order):
    assert spans(site, order, "skip") == [
        (THEIRS, "Bedrock", False),
        (THEIRS, "Bedrock", False),
        ("sottovoce", "chat", True),
        ("sottovoce", "chat", True),
    ]


def test_it_records_them_too_where_the_operator_wants_that(site):
    assert spans(site, "after", "run") == [
        (THEIRS, "chat", True),
        (THEIRS, "chat", True),
        ("sottovoce", "chat", True),
        ("sottovoce", "chat", True),
    ]
