"""An app that other instrumentations watch with their capture of content on: see test_peers.py.

Its environment has CANARIES, a JSON object of kind to text; its arguments are the provider's
address and how it is watched: `gated`, when the launcher has set everything up, or the address
of a Collector, to which the app then sends everything without us, as the peers' users do.
"""

import json
import logging
import os
import sys
from importlib.metadata import entry_points

C = json.loads(os.environ["CANARIES"])


def watch(endpoint):
    """What a user without a distribution does: providers, exporters, every instrumentation."""
    from opentelemetry import metrics, trace
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    spans, logs = TracerProvider(), LoggerProvider()
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{endpoint}/v1/logs")))
    trace.set_tracer_provider(spans)
    set_logger_provider(logs)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))
    metrics.set_meter_provider(MeterProvider([reader]))
    for entry in entry_points(group="opentelemetry_instrumentor"):
        if not entry.value.startswith("sottovoce."):
            entry.load()().instrument()


def ask(url):
    import httpx
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=C["api_key"], max_retries=0)
    tool = {"name": C["tool_name"], "description": C["tool_description"], "parameters": {}}
    messages = [
        {"role": "system", "content": C["system"]},
        {"role": "user", "content": C["prompt"]},
    ]
    asked = {
        "model": C["model"],
        "messages": messages,
        "tools": [{"type": "function", "function": tool}],
        "user": C["user"],
        "stop": [C["stop"]],
        "temperature": 0.5,
    }
    answer = client.chat.completions.create(**asked)
    assert C["completion"] in answer.choices[0].message.content
    for _ in client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        pass
    client.responses.create(model=C["model"], input=C["prompt"], instructions=C["system"])
    client.embeddings.create(model=C["model"], input=C["prompt"])
    try:
        client.chat.completions.create(**asked, metadata={"fail": C["metadata"]})
    except openai.BadRequestError:
        logging.getLogger("app").exception("it failed: %s", C["log"])
    else:
        raise AssertionError("the provider should have refused")
    httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": C["model"], "messages": messages},
        headers={"Authorization": f"Bearer {C['api_key']}"},
        params={"key": C["query"]},
    ).raise_for_status()


def ask_claude(url):
    import anthropic

    anthropic.Anthropic(base_url=url, api_key=C["api_key"], max_retries=0).messages.create(
        model=C["model"],
        max_tokens=64,
        system=C["system"],
        messages=[{"role": "user", "content": C["prompt"]}],
    )


def main():
    url, how = sys.argv[1:]
    # Everything that anyone says, at every level; the app's own log goes nowhere else.
    logging.getLogger().setLevel(logging.DEBUG)
    for name in ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    if how != "gated":
        watch(how)
    ask(url)
    ask_claude(url)
    logging.getLogger("app").warning("done: %s", C["log"], extra={"customer": C["user"]})
    print(json.dumps({"asked": True}))


if __name__ == "__main__":
    main()
