"""An app that plants a canary wherever an app can: run by test_launcher.py, under the launcher.

Its environment has CANARIES, a JSON object of kind to text; its first argument says which
calls it makes. It prints one JSON object of what the test cannot know.
"""

import json
import logging
import os
import sys
from contextlib import suppress

from opentelemetry import baggage, context, metrics, trace

C = json.loads(os.environ["CANARIES"])


def remote(url):
    import httpx
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=C["api_key"], max_retries=1)
    call = {"id": "call_1", "type": "function"}
    tool = {"name": C["tool_name"], "description": C["tool_description"], "parameters": {}}
    asked = {
        "model": C["model"],
        "messages": [
            {"role": "system", "content": C["system"]},
            {"role": "user", "content": C["prompt"]},
            {
                "role": "assistant",
                "tool_calls": [
                    {**call, "function": {"name": "f", "arguments": C["tool_arguments"]}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": C["tool_result"]},
        ],
        "tools": [{"type": "function", "function": tool}],
        "user": C["user"],
        "metadata": {"note": C["metadata"]},
        "stop": [C["stop"]],
        "temperature": 0.5,
    }
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == C["completion"]
    options = {"include_usage": True}
    for _ in client.chat.completions.create(**asked, stream=True, stream_options=options):
        pass
    try:
        client.chat.completions.create(**asked)
    except openai.BadRequestError as error:
        assert C["prompt"] in str(error)
        logging.getLogger("app").exception("it failed: %s", C["log"])
        trace.get_current_span().record_exception(error)
    client.chat.completions.create(**asked)  # the second attempt is answered
    httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": C["model"], "messages": asked["messages"][:2]},
        headers={"Authorization": f"Bearer {C['api_key']}"},
        params={"session": C["query"]},
    ).raise_for_status()
    client.embeddings.create(model=C["model"], input=C["prompt"])
    return {}


def local(folder):
    from mlx_lm import generate, load, stream_generate

    model, tokenizer = load(folder)
    prompt = f"{C['system']} {C['prompt']}"
    generate(model, tokenizer, prompt=prompt, max_tokens=12)
    for _ in stream_generate(model, tokenizer, prompt=prompt, max_tokens=9):
        pass
    with suppress(Exception):
        load(f"{folder}/{C['query']}")
    return {"prompt_tokens": len(tokenizer.encode(prompt))}


def llama(path):
    from llama_cpp import Llama

    model = Llama(path, n_ctx=256, seed=7, verbose=False)
    prompt = f"{C['system']} {C['prompt']}"
    messages = [{"role": "user", "content": prompt}]
    model.create_completion(prompt, max_tokens=6, temperature=0)
    chunks = list(
        model.create_chat_completion(
            messages, max_tokens=5, temperature=0, stream=True, stop=[C["stop"]]
        )
    )
    return {"prompt_tokens": len(model.tokenize(prompt.encode())), "chunks": len(chunks)}


def added(endpoint):
    """Exporters of the app's own, and a forked child that uses them."""
    from opentelemetry._logs import get_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    spans, logs = trace.get_tracer_provider(), get_logger_provider()
    spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
    logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{endpoint}/v1/logs")))
    child = os.fork()
    if not child:
        with trace.get_tracer("app").start_as_current_span(C["span_name"]) as span:
            span.set_attribute("gen_ai.input.messages", C["prompt"])
            logging.getLogger("app").error(C["log"])
        os._exit(0)
    os.waitpid(child, 0)
    return {"child": child}


def main():
    # The app's own log goes nowhere but to OpenTelemetry.
    logging.getLogger().addHandler(logging.NullHandler())
    kept = context.attach(baggage.set_baggage("customer", C["baggage"]))
    meter = metrics.get_meter(f"meter.{C['meter']}")
    meter.create_counter(f"orders.{C['metric']}", description=C["metric"]).add(
        1, {"customer": C["metric_attribute"]}
    )
    tracer = trace.get_tracer("app", attributes={"owner": C["scope"]})
    attributes = {"note": C["span_attribute"], "gen_ai.input.messages": C["prompt"]}
    result = {}
    try:
        with tracer.start_as_current_span(f"serve {C['span_name']}", attributes=attributes) as span:
            span.add_event(C["event"], {"detail": C["event"]})
            result = {"remote": remote, "local": local, "llama": llama, "added": added}[
                sys.argv[1]
            ](sys.argv[2])
            logging.getLogger("app").warning("done: %s", C["log"], extra={"customer": C["user"]})
            raise RuntimeError(C["exception"])
    except RuntimeError:
        pass
    context.detach(kept)
    # A drop of a metric is counted while an export is made, and seen in the next.
    metrics.get_meter_provider().force_flush()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
